"""Which penalty hides the laboratory from z_I, and what of biology it costs: a frontier.

Simulated studies, half of the donors fitted, the other half asked: how well a linear probe tells
the batch from z_I given cell type and disease (judged on donors it did not learn from), and how
well logistic regression, learnt on the fitted donors, tells cell type and disease.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import penalties
from datasets import Split, Study, split_study
from peers import limit_threads, say, write_json
from scores import score_accuracy, score_leak

import invatlas as ia
from invatlas.evaluate.probes import Linear

WEIGHTS = {
    "energy": (0.0, 50.0, 100.0, 200.0, 400.0, 800.0),
    "mmd": (1000.0, 2000.0, 4000.0),
    "hsic": (3000.0, 10000.0),
    "adversary": (30.0, 100.0),
    "total_correlation": (1.0, 10.0),
}
BIOLOGY = ["cell_type", "disease"]
LATENTS = 20


def make_split(correlation: float, seed: int) -> Split:
    """Simulate a study of 40 donors, half of which no fit sees."""
    adata = ia.simulate(
        cells=5000,
        genes=300,
        donors=40,
        batches=2,
        diseases=2,
        cell_types=4,
        library_size=800,
        correlation=correlation,
        truth=False,
        seed=seed,
    )
    people = adata.obs.groupby("donor", observed=True)[["disease", "batch"]].first()
    turn = people.groupby(["disease", "batch"], observed=True).cumcount()
    asked = list(turn.index[turn % 2 == 1])
    study = Study("simulation", adata, BIOLOGY, ["batch"], "donor", np.ones(adata.n_obs, bool))
    return split_study(study, asked)


def judge(split: Split, z: np.ndarray) -> dict[str, float]:
    """Leak, the 95 % quantile of its exchanges, and what is told of biology."""
    told = score_leak(split.study, split.hidden, z, kinds=(Linear,))
    kept = score_accuracy(split, z)
    return {
        "leak": told["leak_linear"],
        "leak_null": told["leak_linear_null"],
        **{name: kept[f"accuracy_{name}"] for name in BIOLOGY},
    }


def fit_with(name: str, weight: float, split: Split, seed: int) -> dict[str, float]:
    """Fit the shown donors with a penalty and judge the others."""
    start = time.perf_counter()
    penalties.install(name, LATENTS)
    settings = ia.Settings(
        dependence_weight=weight,
        genes=0,
        spared_donors=0.0,
        invariant_latents=LATENTS,
        seed=seed,
    )
    adata = split.study.adata
    atlas = ia.fit(adata[~split.hidden].copy(), BIOLOGY, ["donor", "batch"], settings=settings)
    z = ia.embed(atlas, adata)
    return {"seconds": time.perf_counter() - start} | judge(split, z)


def draw_frontier(table: pd.DataFrame, path: Path) -> None:
    """Draw the leak beyond its null against the disease that is kept, one line a penalty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, rows in table.groupby(level="penalty", sort=False):
        excess = rows["leak"] - rows["leak_null"]
        axes.plot(excess, rows["disease"], "o-", label=name, linewidth=1.2)
        for weight, x, y in zip(
            rows.index.get_level_values("weight"), excess, rows["disease"], strict=True
        ):
            axes.annotate(f"{weight:g}", (x, y), (3, 3), textcoords="offset points", fontsize=7)
    axes.axvline(0, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xlabel("batch told from z_I given biology, beyond 95 % of exchanges")
    axes.set_ylabel("disease told, balanced accuracy")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def read_records(paths: list[Path]) -> list[dict]:
    """Records of earlier runs, one after the other."""
    return [record for path in paths for record in json.loads(path.read_text())["records"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penalties", default=",".join(WEIGHTS))
    parser.add_argument("--correlation", type=float, default=0.5)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="records of earlier runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="write the frontier here (PNG)")
    args = parser.parse_args()
    limit_threads(1)
    records = read_records(args.add)
    for seed in [int(seed) for seed in args.seeds.split(",") if seed]:
        split = make_split(args.correlation, seed)
        adata, told = split.study.adata, {"seed": seed, "seconds": 0.0}
        truth = judge(split, adata.obsm["z_invariant_true"])
        records.append({"penalty": "true z_I", "weight": 0.0} | told | truth)
        for name in args.penalties.split(","):
            for weight in WEIGHTS[name]:
                records.append({"penalty": name, "weight": weight, "seed": seed})
                records[-1] |= fit_with(name, weight, split, seed)
                say(str(records[-1]))
                if args.json:
                    write_json(args.json, {"correlation": args.correlation, "records": records})
    table = pd.DataFrame(records).groupby(["penalty", "weight"], sort=False).mean()
    if args.figure:
        draw_frontier(table, args.figure)
    say(table.drop(columns="seed").round(3).to_string())


if __name__ == "__main__":
    main()
