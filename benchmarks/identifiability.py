"""Are the latents the true ones? Simulated studies, cells nobody was fitted to.

    matched = mean |correlation| of latents and true latents, paired one to one at their best
    linear  = mean correlation of each with its linear prediction from the other

Both are those of :mod:`invatlas.evaluate.identifiability`. Theorem 1 of Khemakhem et al. 2020 asks
for 2 n + 1 combinations of biological values to find n latents; the studies have more than
that, or fewer. Every model is told how many latents there are. ``invae`` is told the labels of the
cells it embeds, as its README does; ``invae_permuted`` those of other cells, and ours none.
``likelihood`` is ours with the weights and without the noises that calls and integration want, and
``likelihood_unmixed`` that turned by :func:`invatlas.evaluate.unmix`.
``ridge`` regresses the true latents on the counts: what a linear map of counts could give somebody
who had been told them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from peers import describe_environment, limit_threads, say, write_json
from published_invae import EPOCHS, embed_published, train_published

import invatlas as ia

BIOLOGICAL, TECHNICAL = ["cell_type", "disease"], ["donor", "batch"]
SPURIOUS = 4
HELD_OUT = 0.2
LIKELIHOOD = {  # what the theorem speaks of, mild penalties between z_I and z_S, long training
    "classification_weight": 1.0,
    "dependence_weight": 20.0,
    "spurious_dependence_weight": 20.0,
    "divergence_weight": 1.0,
    "input_dropout": 0.0,
    "depth_noise": 0.0,
    "laboratory_noise": False,
    "nuisance_directions": 0,
    "learning_rate": 6e-3,
    "epochs": 200,
    "patience": 200,
}


@dataclass(frozen=True)
class Design:
    """How many latents a simulated study has, and how many biological values to find them by."""

    latents: int
    cell_types: int
    diseases: int

    @property
    def combinations(self) -> int:
        """Combinations of biological values."""
        return self.cell_types * self.diseases

    @property
    def holds(self) -> bool:
        """Whether there are as many combinations as the theorem asks for."""
        return self.combinations >= 2 * self.latents + 1


DESIGNS = [Design(2, 12, 3), Design(3, 12, 3), Design(4, 12, 3), Design(6, 4, 2), Design(8, 4, 2)]


@dataclass(frozen=True, eq=False)
class Trial:
    """A simulated study, cells to learn from and cells to embed."""

    design: Design
    study: anndata.AnnData
    held_out: np.ndarray
    seed: int
    epochs_scale: float

    @property
    def truth(self) -> np.ndarray:
        """True invariant latents of every cell (cell, latent)."""
        return self.study.obsm["z_invariant_true"]


def draw_trial(design: Design, seed: int, cells: int, epochs_scale: float) -> Trial:
    """Simulate a study of 24 donors, and hold out a fifth of its cells at random."""
    study = ia.simulate(
        cells=cells,
        genes=500,
        cell_types=design.cell_types,
        diseases=design.diseases,
        donors=24,
        batches=3,
        library_size=2000.0,
        invariant_latents=design.latents,
        spurious_latents=SPURIOUS,
        truth=False,
        seed=seed,
    )
    held_out = np.random.default_rng(seed).random(cells) < HELD_OUT
    return Trial(design, study, held_out, seed, epochs_scale)


def find_ours(trial: Trial) -> dict[str, np.ndarray]:
    """Fit with defaults but for the number of latents; as it is, and unmixed."""
    atlas, z = _fit_ours(trial, {})
    return {"ours": z, "ours_unmixed": z @ ia.evaluate.unmix(atlas)}


def find_likelihood(trial: Trial) -> dict[str, np.ndarray]:
    """The same with the weights and noises of plain likelihood; as it is, and unmixed."""
    atlas, z = _fit_ours(trial, LIKELIHOOD)
    return {"likelihood": z, "likelihood_unmixed": z @ ia.evaluate.unmix(atlas)}


def _fit_ours(trial: Trial, changes: dict) -> tuple[ia.Atlas, np.ndarray]:
    settings = ia.Settings(
        invariant_latents=trial.design.latents,
        spurious_latents=SPURIOUS,
        spared_donors=0.0,
        seed=trial.seed,
    ).changed(changes)
    atlas = ia.fit(trial.study[~trial.held_out].copy(), BIOLOGICAL, TECHNICAL, settings=settings)
    rank = ia.evaluate.identifiability(atlas).loc["invariant"]
    say(f"rank {rank['rank']} of {rank['needed_rank']}, weakest {rank['weakest']:.4f} ...", end=" ")
    bare = anndata.AnnData(trial.study[trial.held_out].X, var=trial.study.var[[]])
    return atlas, ia.embed(atlas, bare)


def find_published(trial: Trial) -> dict[str, np.ndarray]:
    """Train the published model once; embed with the labels of the cells, and of other cells."""
    obs = trial.study.obs[[*BIOLOGICAL, *TECHNICAL]].astype(str)
    cells = anndata.AnnData(trial.study.X.toarray(), obs=obs, var=trial.study.var[[]])
    epochs = max(1, round(EPOCHS * trial.epochs_scale))
    latents = (trial.design.latents, SPURIOUS)
    model = train_published(
        cells[~trial.held_out].copy(), BIOLOGICAL, TECHNICAL, trial.seed, epochs, latents
    )
    told = cells[trial.held_out].copy()
    other = told.copy()
    order = np.random.default_rng(trial.seed).permutation(other.n_obs)
    other.obs[BIOLOGICAL] = other.obs[BIOLOGICAL].to_numpy()[order]
    return {
        "invae": embed_published(model, told),
        "invae_permuted": embed_published(model, other),
    }


def find_ridge(trial: Trial) -> dict[str, np.ndarray]:
    """Regress the true latents on log counts, in the cells that are not held out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = trial.study.X.toarray()
    logs = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9)))
    model.fit(logs[~trial.held_out], trial.truth[~trial.held_out])
    return {"ridge": model.predict(logs[trial.held_out])}


FINDERS: dict[str, Callable[[Trial], dict[str, np.ndarray]]] = {
    "ours": find_ours,
    "likelihood": find_likelihood,
    "invae": find_published,
    "ridge": find_ridge,
}


def evaluate(trial: Trial, methods: list[str]):
    """Yield one record (dict) for each embedding of a trial."""
    from invatlas.evaluate.identifiability import match, predict

    design, truth = trial.design, trial.truth[trial.held_out]
    for method in methods:
        say(f"  {method} ...", end=" ")
        start = time.perf_counter()
        embeddings = FINDERS[method](trial)
        seconds = time.perf_counter() - start
        for name, z in embeddings.items():
            matched, linear = match(z, truth), predict(z, truth)
            say(f"{name} {matched:.3f} {linear:.3f},", end=" ")
            yield {
                "latents": design.latents,
                "combinations": design.combinations,
                "needed": 2 * design.latents + 1,
                "holds": design.holds,
                "seed": trial.seed,
                "method": name,
                "matched": matched,
                "linear": linear,
                "seconds": seconds,
            }
        say(f"{seconds:.0f} s")


def summarise(records: list[dict]) -> pd.DataFrame:
    """Mean and lowest over the seeds, of each design and method."""
    keys = ["holds", "latents", "combinations", "needed", "method"]
    groups = pd.DataFrame(records).groupby(keys, sort=False)
    return groups.agg(
        matched=("matched", "mean"),
        matched_lowest=("matched", "min"),
        linear=("linear", "mean"),
        linear_lowest=("linear", "min"),
        seeds=("seed", "nunique"),
        seconds=("seconds", "mean"),
    ).reset_index()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", default="ours,likelihood,invae,ridge", help=f"of {','.join(FINDERS)}"
    )
    parser.add_argument("--latents", help="only designs with these numbers of latents, as 2,4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--epochs-scale",
        type=float,
        default=1.0,
        help="multiplies the epochs of the published model for a quick trial; never for a result",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every record here")
    args = parser.parse_args(arguments)
    args.methods = args.methods.split(",")
    if unknown := sorted(set(args.methods) - set(FINDERS)):
        parser.error(f"unknown method {', '.join(unknown)}: choose from {', '.join(FINDERS)}")
    chosen = {int(n) for n in args.latents.split(",")} if args.latents else None
    args.designs = [d for d in DESIGNS if chosen is None or d.latents in chosen]
    if not args.designs:
        parser.error(f"no design has {args.latents} latents: {[d.latents for d in DESIGNS]} do")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print its table and write its records."""
    args = parse(arguments)
    limit_threads(args.threads)
    settings = {"threads": args.threads, "cells": args.cells, "epochs_scale": args.epochs_scale}
    environment = describe_environment() | settings
    records: list[dict] = []
    for seed in range(args.seeds):
        for design in args.designs:
            say(f"{design.latents} latents, {design.combinations} combinations, seed {seed}")
            trial = draw_trial(design, seed, args.cells, args.epochs_scale)
            records += evaluate(trial, args.methods)
            if args.json:  # rewritten after each trial: a stopped run keeps what it measured
                means = summarise(records).to_dict(orient="records")
                content = {"environment": environment, "records": records, "means": means}
                write_json(args.json, content)
    say(summarise(records).round(3).to_string(index=False))
    if args.json:
        say(f"records written to {args.json}")


if __name__ == "__main__":
    main()
