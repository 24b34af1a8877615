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
from peers import limit_threads, say, write_json
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import invatlas as ia
from invatlas.evaluate.probes import Linear
from invatlas.evaluate.question import ask

WEIGHTS = {
    "energy": (0.0, 100.0, 300.0, 600.0, 1000.0),
    "mmd": (500.0, 1000.0, 2000.0, 4000.0),
    "hsic": (1000.0, 3000.0, 10000.0),
    "adversary": (10.0, 30.0, 100.0),
    "total_correlation": (1.0, 10.0),
}
BIOLOGY = ["cell_type", "disease"]
LATENTS = 20


def make_study(correlation: float, seed: int):
    """A study of 40 donors, and which cells belong to the half of them that is asked."""
    study = ia.simulate(
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
    people = study.obs.groupby("donor", observed=True)[["disease", "batch"]].first()
    turn = people.groupby(["disease", "batch"], observed=True).cumcount()
    asked = study.obs["donor"].isin(turn.index[turn % 2 == 1]).to_numpy()
    return study, asked


def tell_batch(z: np.ndarray, study, asked: np.ndarray, exchanges: int = 39) -> dict[str, float]:
    """Balanced accuracy of the batch given biology on new donors, and 95 % of its exchanges."""
    labels = study.obs[[*BIOLOGY, "donor", "batch"]].astype(str)[asked]
    generator = np.random.default_rng(0)
    question = ask(labels, "batch", BIOLOGY, "donor", 4, generator)
    probe = Linear(z[asked], question)
    found = question.score(question.t, probe.learn(question.t, question.fold)(probe.z))
    null = []
    for _ in range(exchanges):
        t, fold = question.exchange(generator)
        null.append(question.score(t, probe.learn(t, fold)(probe.z)))
    return {"leak": found, "leak_null": float(np.quantile(null, 0.95))}


def tell_biology(z: np.ndarray, study, asked: np.ndarray) -> dict[str, float]:
    """Balanced accuracy of each biological covariate on new donors, from the joint label."""
    joint = study.obs[BIOLOGY].astype(str).agg("|".join, axis=1).to_numpy()
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=500)
    )
    called = model.fit(z[~asked], joint[~asked]).predict(z[asked])
    called = pd.Series(called).str.split("|", expand=True).to_numpy()
    return {
        name: balanced_accuracy_score(study.obs[name].astype(str)[asked], called[:, c])
        for c, name in enumerate(BIOLOGY)
    }


def draw_frontier(table: pd.DataFrame, path: Path) -> None:
    """Draw the leak beyond its null against the disease that is kept, one line a penalty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, rows in table.groupby(level="penalty", sort=False):
        excess = rows["leak"] - rows["leak_null"]
        axes.plot(excess, rows["disease"], "o-", label=name, linewidth=1.2)
        for weight, x, y in zip(rows.index.get_level_values("weight"), excess, rows["disease"]):
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
        study, asked = make_study(args.correlation, seed)
        truth = study.obsm["z_invariant_true"]
        records.append(
            {"penalty": "true z_I", "weight": 0.0, "seed": seed}
            | tell_batch(truth, study, asked)
            | tell_biology(truth, study, asked)
        )
        for name in args.penalties.split(","):
            for weight in WEIGHTS[name]:
                start = time.perf_counter()
                penalties.install(name, LATENTS)
                settings = ia.Settings(
                    dependence_weight=weight, genes=0, spared_donors=0.0, invariant_latents=LATENTS
                )
                atlas = ia.fit(study[~asked].copy(), BIOLOGY, ["donor", "batch"], settings=settings)
                z = ia.embed(atlas, study)
                seconds = time.perf_counter() - start
                records.append(
                    {"penalty": name, "weight": weight, "seed": seed, "seconds": seconds}
                    | tell_batch(z, study, asked)
                    | tell_biology(z, study, asked)
                )
                say(str(records[-1]))
                if args.json:
                    write_json(args.json, {"correlation": args.correlation, "records": records})
    frame = pd.DataFrame(records)
    table = frame.groupby(["penalty", "weight"], sort=False).mean()
    if args.figure:
        draw_frontier(table, args.figure)
    say(table.drop(columns="seed").round(3).to_string())


if __name__ == "__main__":
    main()
