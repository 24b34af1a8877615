"""What z_I tells of the batch of donors no fit has seen, given biology, in simulated studies.

Studies of 24 donors, two diseases and two batches; two donors of each disease and batch are kept
from the fit, which runs with defaults. A linear probe learns the batch on fitted donors, within
cell type and disease, and is judged on the others; the null distribution deals batches anew to
whole donors of one disease, kept ones among themselves. Cell type and disease are told the same
way, the disease in the cell types it acts on. ``--directions 0,8`` fits each study once a number of
nuisance directions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from peers import limit_threads, say, write_json
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import invatlas as ia

KEPT_PER_STRATUM = 2
FEWEST_CELLS = 200  # of a cell type and disease


def learn(z: np.ndarray, label: np.ndarray):
    """Fit the linear probe."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(z, label)


def tell_batch(z: np.ndarray, biology: np.ndarray, batch: np.ndarray, kept: np.ndarray) -> float:
    """Mean balanced accuracy of the batch of kept donors within each biology."""
    scores = []
    for one in np.unique(biology):
        of = biology == one
        if of.sum() >= FEWEST_CELLS:
            probe = learn(z[of & ~kept], batch[of & ~kept])
            scores.append(balanced_accuracy_score(batch[of & kept], probe.predict(z[of & kept])))
    return float(np.mean(scores))


def deal_batches(obs: pd.DataFrame, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal batches anew to donors of one disease, kept ones among themselves."""
    people = obs.assign(kept=kept).groupby("donor", observed=True)[["disease", "batch", "kept"]]
    people = people.first().astype({"batch": str})
    for _, group in people.groupby(["disease", "kept"], observed=True):
        people.loc[group.index, "batch"] = rng.permutation(group["batch"].to_numpy())
    return people["batch"].reindex(obs["donor"]).to_numpy()


def measure(seed: int, directions: int, permutations: int) -> dict[str, float]:
    """Fit one study with one number of directions, and ask its latents."""
    study = ia.simulate(
        cells=3600,
        genes=1000,
        donors=24,
        batches=2,
        diseases=2,
        cell_types=4,
        truth=False,
        seed=seed,
    )
    people = study.obs.groupby("donor", observed=True)[["disease", "batch"]].first()
    chosen = people.groupby(["disease", "batch"], observed=True).head(KEPT_PER_STRATUM).index
    kept = study.obs["donor"].isin(chosen).to_numpy()
    settings = ia.Settings(genes=0, spared_donors=0.0, nuisance_directions=directions)
    atlas = ia.fit(
        study[~kept].copy(), ["cell_type", "disease"], ["donor", "batch"], settings=settings
    )
    z = ia.embed(atlas, anndata.AnnData(study.X, var=study.var[[]]))
    kind, disease, batch = (study.obs[c].astype(str) for c in ("cell_type", "disease", "batch"))
    biology = (kind + disease).to_numpy()
    rng = np.random.default_rng(0)
    null = [
        tell_batch(z, biology, deal_batches(study.obs, kept, rng), kept)
        for _ in range(permutations)
    ]
    areas = []
    for one in sorted(set(study.uns["differential_genes"]["cell_type"])):
        of = (kind == one).to_numpy()
        probe = learn(z[of & ~kept], disease[of & ~kept])
        ill = disease[of & kept] == probe.classes_[1]
        areas.append(roc_auc_score(ill, probe.predict_proba(z[of & kept])[:, 1]))
    called = learn(z[~kept], kind[~kept]).predict(z[kept])
    return {
        "seed": seed,
        "directions": directions,
        "batch": tell_batch(z, biology, batch.to_numpy(), kept),
        "null_95": float(np.quantile(null, 0.95)),
        "cell_type": float(balanced_accuracy_score(kind[kept], called)),
        "disease_auroc": float(np.mean(areas)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="200,201,202,203,204")
    parser.add_argument("--directions", default="8", help="numbers of nuisance directions")
    parser.add_argument("--permutations", type=int, default=19)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    limit_threads(args.threads)
    records = []
    for seed in map(int, args.seeds.split(",")):
        for directions in map(int, args.directions.split(",")):
            records.append(measure(seed, directions, args.permutations))
            say("  ".join(f"{name} {value:.3g}" for name, value in records[-1].items()))
    say(
        pd.DataFrame(records).drop(columns="seed").groupby("directions").mean().round(3).to_string()
    )
    if args.json:
        write_json(args.json, {"records": records})


if __name__ == "__main__":
    main()
