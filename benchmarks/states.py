"""A state that two diseases share within a cell type: how often it is found and rightly named.

Simulated studies of four diseases and healthy donors, four donors each; 40 % of the cells of one
type are, in two diseases, in a state of their own. Found means: one state has more than half of
the planted cells, more than half of it are planted, and the two diseases and no other are named.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from peers import describe_environment, limit_threads, say, write_json

SHARE = 0.4


def measure(seed: int, cells: int, genes: int, share: float) -> dict:
    """Plant, fit, look, and compare with what was planted."""
    import invatlas as ia

    study = ia.simulate(
        cells=cells,
        genes=genes,
        donors=20,
        diseases=5,
        batches=4,
        shared_state=share,
        truth=False,
        seed=seed,
    )
    planted = study.uns["shared_state"]
    start = time.perf_counter()
    settings = ia.Settings(genes=0, spared_donors=0.0, seed=seed)
    atlas = ia.fit(study, ["cell_type", "disease"], ["donor", "batch"], settings=settings)
    fitted = time.perf_counter() - start
    found = ia.states(
        atlas,
        study,
        cell_type=planted["cell_type"],
        reference="healthy",
        gene_lists={"planted": list(planted["genes"])},
        seed=seed,
    )
    inside = (study.obs.loc[found.cells.index, "state"] == "shared").to_numpy()
    overlap = pd.crosstab(found.cells.to_numpy(), inside)[True]
    name = overlap.idxmax()
    row = found.table.set_index("state").loc[name]
    markers = [gene for gene in row["markers"].split(", ") if gene]
    answer = {
        "seed": seed,
        "cell_type": planted["cell_type"],
        "planted": ", ".join(planted["diseases"]),
        "named": row["diseases"],
        "states": len(found.table),
        "planted_cells": int(inside.sum()),
        "recall": float(overlap[name] / inside.sum()),
        "precision": float(overlap[name] / row["cells"]),
        "stability": float(row["stability"]),
        "markers_right": float(np.mean(np.isin(markers, planted["genes"]))) if markers else 0.0,
        "score": float(row["score_planted"]),
        "fit_seconds": fitted,
        "states_seconds": time.perf_counter() - start - fitted,
    }
    answer["found"] = bool(
        answer["recall"] > 0.5
        and answer["precision"] > 0.5
        and answer["named"] == answer["planted"]
    )
    return answer


def main() -> None:
    """Measure each seed, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        rows.append(measure(seed, arguments.cells, arguments.genes, arguments.share))
        say(pd.DataFrame(rows[-1:]).round(2).to_string(index=False, header=len(rows) == 1))
        if arguments.json:
            write_json(arguments.json, {"environment": describe_environment(), "seeds": rows})
    say(f"found in {sum(row['found'] for row in rows)} of {len(rows)} seeds")


if __name__ == "__main__":
    main()
