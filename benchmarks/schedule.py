"""Epochs and minibatch size: which steps, of how many cells, suit a study of a given size.

Simulated studies of several sizes are fitted with every combination of minibatch size and
number of steps. Judged on donors no fit has seen: the reconstruction of their counts and the
macro-F1 of cell types by 15 nearest neighbours. The best row of each size is what
``plan_training`` should come close to. Run ``python benchmarks/schedule.py --help``.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from peers import describe_environment, limit_threads, say, write_json

DONORS = 30


def measure(study, held_out: np.ndarray, minibatch: int, steps: int, seed: int) -> dict:
    """Fit with one plan and judge it on the held-out donors."""
    from sklearn.metrics import f1_score
    from sklearn.neighbors import KNeighborsClassifier

    import invatlas as ia

    reference = study[~held_out]
    epochs = max(1, round(steps / max(1, 0.9 * reference.n_obs / minibatch)))
    settings = ia.Settings(epochs=epochs, minibatch_size=minibatch, patience=epochs, seed=seed)
    atlas = ia.fit(reference, ["cell_type", "disease"], ["donor", "batch"], settings=settings)
    z = ia.embed(atlas, study)
    labels = (study.obs["cell_type"].astype(str) + study.obs["disease"].astype(str)).to_numpy()
    classifier = KNeighborsClassifier(15).fit(z[~held_out], labels[~held_out])
    best = atlas.history.set_index("epoch").loc[atlas.record["training"]["best_epoch"]]
    return {
        "cells": int(reference.n_obs),
        "minibatch": minibatch,
        "steps": steps,
        "epochs": epochs,
        "reconstruction": float(best["held_out_reconstruction"]),
        "macro_f1": float(
            f1_score(labels[held_out], classifier.predict(z[held_out]), average="macro")
        ),
        "seconds": float(atlas.history["seconds"].sum()),
    }


def main() -> None:
    """Fit the grid, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="1000,4000,16000")
    parser.add_argument("--minibatch", default="128,256,512")
    parser.add_argument("--steps", default="250,500,1000,2000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    import invatlas as ia

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    records = []
    for cells in numbers(arguments.cells):
        study = ia.simulate(
            cells=round(cells * 1.25), donors=DONORS, truth=False, seed=arguments.seed
        )
        donors = study.obs["donor"].cat.categories
        held_out = study.obs["donor"].isin(donors[::5]).to_numpy()
        for minibatch, steps in product(numbers(arguments.minibatch), numbers(arguments.steps)):
            record = measure(study, held_out, minibatch, steps, arguments.seed)
            say(", ".join(f"{name} {value:,.3f}" for name, value in record.items()))
            records.append(record)
    table = pd.DataFrame(records)
    print(table.to_string(index=False, float_format=lambda value: f"{value:,.3f}"))
    if arguments.json:
        write_json(arguments.json, {"environment": describe_environment(), "records": records})


if __name__ == "__main__":
    main()
