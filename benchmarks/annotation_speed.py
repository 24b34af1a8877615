"""Seconds to annotate many cells: ours beside scANVI's ``predict`` without surgery.

Both are trained for a moment on the Kang cells, whose repeats are then called in turns in one
process: the time of a call does not depend on how good it is. ``invatlas.annotate`` also reads
and checks counts, scores novelty and abstains; ``predict`` gives labels alone. Run
``python benchmarks/annotation_speed.py --help``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from peers import describe_environment, limit_threads, say, silence, write_json
from training_speed import tile_kang

GENES = 2000


def main() -> None:
    """Time both in turns and print medians and the ratio within a repeat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    plan = parser.parse_args()
    limit_threads(plan.threads)
    import scvi

    import invatlas as ia

    reference, query = tile_kang(3000, GENES), tile_kang(plan.cells, GENES)
    biological = ["cell_type", "condition"]
    settings = ia.Settings(genes=0, epochs=2)
    atlas = ia.fit(reference, biological, ["donor"], settings=settings)
    columns = reference.obs[biological].astype(str)
    reference.obs["target"] = columns["cell_type"] + " | " + columns["condition"]
    query.obs["target"] = "Unknown"
    with silence():
        scvi.model.SCVI.setup_anndata(reference, batch_key="donor")
        model = scvi.model.SCVI(reference)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        model = scvi.model.SCANVI.from_scvi_model(model, "Unknown", labels_key="target")
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    records = []
    for repeat in range(1, plan.repeats + 1):
        start = time.perf_counter()
        ia.annotate(atlas, query)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        with silence():
            model.predict(query)
        peer = time.perf_counter() - start
        say(f"repeat {repeat}: invatlas {ours:.1f} s, scANVI {peer:.1f} s")
        records.append({"repeat": repeat, "invatlas": ours, "scanvi": peer})
    medians = {name: statistics.median(r[name] for r in records) for name in ("invatlas", "scanvi")}
    ratios = sorted(r["scanvi"] / r["invatlas"] for r in records)
    print(
        f"{plan.cells:,} cells, {plan.threads} threads, medians: invatlas "
        f"{medians['invatlas']:.1f} s, scANVI {medians['scanvi']:.1f} s; "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    if plan.json:
        write_json(plan.json, {"environment": describe_environment(), "records": records})


if __name__ == "__main__":
    main()
