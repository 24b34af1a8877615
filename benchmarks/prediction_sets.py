"""How many cells of new donors a prediction set holds, in simulated studies.

Studies of three diseases, each donor with one of them; a quarter or a third of the donors is kept
from the fit, which runs with defaults. Sets of cell type x disease are asked to hold the truth of
``--coverage`` of the cells. Printed: the share they hold in each study and in each kept donor, and
how many values a set has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from peers import limit_threads, say, write_json

import invatlas as ia

KEPT = {12: 4, 28: 7}  # donors, by how many the study has


def measure(donors: int, seed: int, coverage: float) -> dict:
    """Fit one study without some donors, and ask for sets of theirs."""
    study = ia.simulate(
        cells=6000,
        genes=1000,
        donors=donors,
        batches=4,
        diseases=3,
        cell_types=6,
        truth=False,
        seed=seed,
    )
    everybody = study.obs["donor"].cat.categories
    kept = np.random.default_rng(seed).permutation(everybody)[: KEPT[donors]]
    new = study.obs["donor"].isin(kept).to_numpy()
    atlas = ia.fit(study[~new].copy(), ["cell_type", "disease"], ["donor", "batch"])
    query = anndata.AnnData(study.X[new], var=study.var[[]])
    sets = ia.prediction_sets(atlas, query, coverage=coverage)
    obs = study.obs[new].astype(str)
    place = sets.columns.get_indexer(obs["cell_type"] + " | " + obs["disease"])
    held = (place >= 0) & sets.to_numpy()[np.arange(len(obs)), place]
    return {
        "donors": donors,
        "seed": seed,
        "coverage": float(held.mean()),
        "by_donor": pd.Series(held).groupby(obs["donor"].to_numpy()).mean().round(3).tolist(),
        "set_size": float(sets.to_numpy().sum(1).mean()),
    }


def main() -> None:
    """Measure every study and print their mean by number of donors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--donors", default="28,12", help=f"of {sorted(KEPT)}")
    parser.add_argument("--seeds", default="500,501,502,503,504,505")
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    limit_threads(args.threads)
    records = []
    for donors in map(int, args.donors.split(",")):
        for seed in map(int, args.seeds.split(",")):
            records.append(measure(donors, seed, args.coverage))
            say("  ".join(f"{name} {value}" for name, value in records[-1].items()))
    table = pd.DataFrame(records).groupby("donors")["coverage"].agg(["mean", "min", "max"])
    say(table.round(3).to_string())
    if args.json:
        write_json(args.json, {"records": records})


if __name__ == "__main__":
    main()
