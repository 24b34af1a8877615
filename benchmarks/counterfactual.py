"""What would they have looked like: ours and baselines on cells that were measured, and hidden.

Kang 2018 without guessed cell types. One cell type at a time, its stimulated cells are hidden from
every method, which predicts them from the type's control cells (``type``); or the stimulated cells
of two donors are hidden, and each type of theirs is predicted from its control cells (``donor``).
Types with ten cells or more on both sides are scored, mean over types. A simulated screen hides
one perturbation of one type at a time (``screen``), or all pairs of perturbations in all types
(``pair``), or every second pair where a pair does 0.7 of its sum (``together``); there the truth of
each cell is known and intervals are scored too.

Protocol. Expression is log(1 + counts per 10,000) over the genes of the fit, and every method
returns cells. R2 is the squared correlation, over genes, of the mean over predicted and over true
cells (as scGen has it), R2_det the coefficient of determination of the same, R2_bulk the squared
correlation of log(1 + mean counts per 10,000), R2_var that of the variances over cells. The top
genes are the 100 with the smallest Wilcoxon p-value between true cells and control cells. Pearson
is the correlation of the change of the means from control over all genes. E-distance and MMD (five
Gaussian kernels around the median distance) are taken in 30 principal components of the cells that
were shown. Coverage is the share of genes whose true mean of expected counts per 10,000 lies in
the 90 % interval.

Baselines. No change; mean shift: of each cell by the mean over the other types of the change of
the means; linear: the same on 30 principal components, the residual kept; latent arithmetic (scGen,
Lotfollahi et al. 2019) on scVI: the mean over other types of the change of the latent means, five
draws of counts a cell. Where the same type was shown in other donors, every baseline takes the
change of this type alone. Pairs: the changes of both singles are added, with ``together`` s times
their sum, s by least squares over the pairs shown, of the same type, in the space of the baseline.

    python benchmarks/counterfactual.py --parts type,donor,screen,pair,together --json out.json
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from datasets import load_kang
from perturbed import CONTROL, simulate_screen, true_shares
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu
from sklearn.decomposition import PCA

import invatlas as ia

DRAWS = 5
LEAST = 10


@dataclass(frozen=True)
class Task:
    """Cells to predict from others.

    ``source`` and ``truth`` are rows of ``adata``; ``effects`` lists (before, after) row sets of
    shown cells whose change the baselines take, a list for each effect that is added; ``measured``
    are shown tasks that say how much of the sum is there.
    """

    name: str
    adata: anndata.AnnData
    source: np.ndarray
    truth: np.ndarray
    effects: list[list[tuple[np.ndarray, np.ndarray]]]
    change: dict[str, str]
    measured: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Fold:
    """What is shown, the tasks it serves, and the covariates of a fit."""

    shown: np.ndarray
    tasks: list[Task]
    biological: list[str]


def normalise(counts: np.ndarray) -> np.ndarray:
    """Log(1 + counts per 10,000)."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1e-9))


def shift_of(values: np.ndarray, task: Task) -> np.ndarray:
    """Sum over effects of the mean over groups of the change of the mean, times s."""
    shift = _add_effects(values, task)
    if not task.measured:
        return shift
    sums = np.stack([_add_effects(values, shown) for shown in task.measured])
    found = np.stack([values[t.truth].mean(0) - values[t.source].mean(0) for t in task.measured])
    return shift * (sums * found).sum() / (sums * sums).sum()


def _add_effects(values: np.ndarray, task: Task) -> np.ndarray:
    return sum(
        np.mean([values[b].mean(0) - values[a].mean(0) for a, b in pairs], axis=0)
        for pairs in task.effects
    )


def no_change(task: Task, x: np.ndarray, shown: np.ndarray) -> np.ndarray:
    return x[task.source]


def mean_shift(task: Task, x: np.ndarray, shown: np.ndarray) -> np.ndarray:
    return np.maximum(x[task.source] + shift_of(x, task), 0)


def linear(task: Task, x: np.ndarray, shown: np.ndarray) -> np.ndarray:
    pca = PCA(30, svd_solver="randomized", random_state=0).fit(x[shown])
    return np.maximum(x[task.source] + shift_of(pca.transform(x), task) @ pca.components_, 0)


class Scvi:
    """scVI of the shown cells, with its batch the donor, and arithmetic on its latents."""

    def __init__(self, adata: anndata.AnnData, shown: np.ndarray, epochs: int) -> None:
        import scvi

        scvi.settings.seed, scvi.settings.verbosity = 0, logging.ERROR
        cells = adata[shown].copy()
        scvi.model.SCVI.setup_anndata(cells, batch_key="donor")
        self.model = scvi.model.SCVI(cells)
        self.model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
        self.batches = list(cells.obs["donor"].astype("category").cat.categories)
        self.latent = np.full((adata.n_obs, 10), np.nan, dtype=np.float32)
        self.latent[shown] = self.model.get_latent_representation(cells)

    @torch.inference_mode()
    def predict(self, task: Task) -> np.ndarray:
        rows = np.tile(task.source, DRAWS)
        z = torch.from_numpy(self.latent[rows] + shift_of(self.latent, task)).float()
        donor = task.adata.obs["donor"].iloc[rows]
        batch = torch.tensor([self.batches.index(d) for d in donor])[:, None]
        size = torch.tensor(np.asarray(task.adata.X[rows].sum(1)), dtype=torch.float32).log()
        torch.manual_seed(0)
        generated = self.model.module.generative(z=z, library=size, batch_index=batch)
        return normalise(generated["px"].sample().numpy())


def predict_ours(atlas: ia.Atlas, task: Task) -> tuple[np.ndarray, pd.DataFrame]:
    """Draws of counts, and the table of means with intervals."""
    cells = task.adata[task.source].copy()
    found = ia.counterfactual(atlas, cells, task.change)
    draws = [found.X.toarray()]
    for seed in range(1, DRAWS):
        draws.append(ia.counterfactual(atlas, cells, task.change, samples=2, seed=seed).X.toarray())
    return normalise(np.concatenate(draws)), found.var


def score(task: Task, x: np.ndarray, predicted: np.ndarray, pca: PCA) -> dict[str, float]:
    """Compare predicted with true cells."""
    truth, control = x[task.truth], x[task.source]
    p = mannwhitneyu(truth, control, method="asymptotic").pvalue
    top = np.argsort(np.nan_to_num(p, nan=1.0), kind="stable")[:100]
    m, t, c = (v.mean(0) for v in (predicted, truth, control))
    bulk_m, bulk_t = (np.log1p(np.expm1(v).mean(0)) for v in (predicted, truth))
    var_m, var_t = predicted.var(0), truth.var(0)
    a, b = pca.transform(predicted), pca.transform(truth)
    scores = {
        "R2": r2(t[top], m[top]),
        "R2_det": 1 - np.square(t - m)[top].sum() / np.square(t[top] - t[top].mean()).sum(),
        "R2_bulk": r2(bulk_t[top], bulk_m[top]),
        "R2_all": r2(t, m),
        "R2_var": r2(var_t[top], var_m[top]),
        "R2_var_all": r2(var_t, var_m),
        "Pearson": np.corrcoef(t - c, m - c)[0, 1] if (m != c).any() else 0.0,
        "Pearson_top": np.corrcoef((t - c)[top], (m - c)[top])[0, 1] if (m != c).any() else 0.0,
        "E": e_distance(a, b),
        "MMD": mmd(a, b),
    }
    return {name: float(value) for name, value in scores.items()}


def r2(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1] ** 2)


def e_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Energy distance of two samples, in squared units as scperturb has it with distance 1."""
    return float(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy, mean over five Gaussian kernels."""
    ab, aa, bb = (cdist(u, v, "sqeuclidean") for u, v in ((a, b), (a, a), (b, b)))
    widths = np.median(bb) * np.array([0.25, 0.5, 1, 2, 4])
    return float(
        np.mean(
            [
                np.exp(-aa / w).mean() + np.exp(-bb / w).mean() - 2 * np.exp(-ab / w).mean()
                for w in widths
            ]
        )
    )


def kang(held_out: str) -> tuple[anndata.AnnData, str]:
    """Cells with measured types, and the other condition."""
    study = load_kang()
    adata = study.adata[study.scored].copy()
    adata.obs = adata.obs.astype(str)
    return adata, {"stim": "ctrl", "ctrl": "stim"}[held_out]


def kang_types(held_out: str, wanted: str) -> list[Fold]:
    """One fold for each cell type whose cells of one condition are hidden."""
    adata, given = kang(held_out)
    cell_type, condition = (adata.obs[c].to_numpy() for c in ("cell_type", "condition"))
    rows = {
        (t, c): np.flatnonzero((cell_type == t) & (condition == c))
        for t in np.unique(cell_type)
        for c in (given, held_out)
    }
    types = [
        t for t in np.unique(cell_type) if min(len(rows[t, c]) for c in (given, held_out)) >= 5
    ]
    folds = []
    for t in types:
        if len(rows[t, given]) < LEAST or len(rows[t, held_out]) < LEAST or wanted not in t:
            continue
        effects = [[(rows[u, given], rows[u, held_out]) for u in types if u != t]]
        change = {"condition": held_out}
        task = Task(t, adata, rows[t, given], rows[t, held_out], effects, change)
        shown = ~((cell_type == t) & (condition == held_out))
        folds.append(Fold(shown, [task], ["cell_type", "condition"]))
    return folds


def kang_donors(held_out: str, donors: list[str]) -> list[Fold]:
    """One fold: cells of one condition are hidden in some donors."""
    adata, given = kang(held_out)
    cell_type, condition = (adata.obs[c].to_numpy() for c in ("cell_type", "condition"))
    theirs = adata.obs["donor"].isin(donors).to_numpy()
    tasks = []
    for t in np.unique(cell_type):
        rows = {
            (c, own): np.flatnonzero((cell_type == t) & (condition == c) & (theirs == own))
            for c in (given, held_out)
            for own in (True, False)
        }
        if min(len(rows[c, True]) for c in (given, held_out)) >= LEAST:
            effects = [[(rows[given, False], rows[held_out, False])]]
            change = {"condition": held_out}
            tasks.append(Task(t, adata, rows[given, True], rows[held_out, True], effects, change))
    return [Fold(~(theirs & (condition == held_out)), tasks, ["cell_type", "condition"])]


def screen(seed: int) -> list[Fold]:
    """One fold: a perturbation of each type is hidden, and all pairs."""
    adata, types, rows = draw_screen(seed)
    singles = [n for n in adata.uns["screen"]["labels"][1:] if "+" not in n]
    tasks, shown = [], ~adata.obs["perturbation"].str.contains("+", regex=False).to_numpy()
    for t, n in zip(types, singles, strict=False):
        effects = [[(rows[u, CONTROL], rows[u, n]) for u in types if u != t]]
        tasks.append(compare(adata, rows, t, n, effects))
        shown[tasks[-1].truth] = False
    return [Fold(shown, tasks, ["cell_type", "perturbation"])]


def pair(seed: int, together: float = 1.0, step: int = 1) -> list[Fold]:
    """One fold: every ``step``-th pair of perturbations is hidden, in all types."""
    adata, types, rows = draw_screen(seed, together)
    names = [n for n in adata.uns["screen"]["labels"] if "+" in n]
    hidden = names[::step]
    every = {
        (t, n): compare(adata, rows, t, n, [[(rows[t, CONTROL], rows[t, p])] for p in n.split("+")])
        for t in types
        for n in names
    }
    tasks = []
    for (t, n), task in every.items():
        if n in hidden:
            measured = tuple(every[t, m] for m in names if m not in hidden)
            tasks.append(replace(task, measured=measured))
    shown = ~adata.obs["perturbation"].isin(hidden).to_numpy()
    return [Fold(shown, tasks, ["cell_type", "perturbation"])]


def draw_screen(seed: int, together: float = 1.0) -> tuple[anndata.AnnData, list[str], dict]:
    """A simulated screen, its types, and the rows of each under each perturbation."""
    adata = simulate_screen(together=together, seed=seed)
    rows = adata.obs.groupby(["cell_type", "perturbation"], sort=True).indices
    return adata, sorted(set(adata.obs["cell_type"])), rows


def compare(adata: anndata.AnnData, rows: dict, t: str, n: str, effects: list) -> Task:
    """The control cells of a type, to be those of a perturbation."""
    change = {"perturbation": n}
    return Task(f"{t} {n}", adata, rows[t, CONTROL], rows[t, n], effects, change)


def coverage(task: Task, genes: pd.Index, table: pd.DataFrame) -> dict[str, float]:
    """Share of true means inside the intervals, of all genes and of the 100 that change most."""
    place = task.adata.var_names.get_indexer(genes)
    cells = task.adata[task.source]
    truth, now = (
        1e4 * true_shares(cells, p)[:, place].mean(0) for p in (task.change["perturbation"], None)
    )
    low, high = table["counterfactual_mean_low"], table["counterfactual_mean_high"]
    inside = ((truth >= low) & (truth <= high)).to_numpy()
    top = np.argsort(-np.abs(np.log1p(truth) - np.log1p(now)))[:100]
    return {"coverage": float(inside.mean()), "coverage_top": float(inside[top].mean())}


def run_fold(fold: Fold, settings: ia.Settings, scvi_epochs: int) -> list[dict[str, object]]:
    """Fit what has to be fitted and score every method on every task."""
    whole, start = fold.tasks[0].adata, time.perf_counter()
    atlas = ia.fit(whole[fold.shown].copy(), fold.biological, ["donor"], settings=settings)
    seconds = time.perf_counter() - start
    adata = whole[:, list(atlas.genes)]
    counts = adata.X.toarray()
    x = normalise(counts)
    pca = PCA(30, svd_solver="randomized", random_state=0).fit(x[fold.shown])
    arithmetic = Scvi(adata, fold.shown, scvi_epochs) if scvi_epochs else None
    rows: list[dict[str, object]] = []
    for task in fold.tasks:
        methods: dict[str, Callable[[], np.ndarray]] = {
            "no change": lambda t=task: no_change(t, x, fold.shown),
            "mean shift": lambda t=task: mean_shift(t, x, fold.shown),
            "linear": lambda t=task: linear(t, x, fold.shown),
        }
        if arithmetic:
            methods["scVI arithmetic"] = lambda t=task: arithmetic.predict(t)
        predicted, table = predict_ours(atlas, task)
        extra = coverage(task, pd.Index(atlas.genes), table) if "screen" in whole.uns else {}
        common = {"task": task.name, "cells": len(task.truth)}
        rows.append({**common, "method": "ours", **score(task, x, predicted, pca), **extra})
        for name, method in methods.items():
            rows.append({**common, "method": name, **score(task, x, method(), pca)})
        print(
            task.name,
            f"fit {seconds:.0f} s",
            {r["method"]: round(float(r["R2"]), 3) for r in rows if r["task"] == task.name},
            flush=True,
        )
    return rows


def main() -> None:
    """Run the parts asked for; write after each fold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="type,donor,screen,pair")
    parser.add_argument("--held-out", default="stim", choices=["stim", "ctrl"])
    parser.add_argument("--type", default="", help="part of the names of the types to run")
    parser.add_argument("--donors", default="101,1488")
    parser.add_argument("--screens", type=int, default=2, help="simulated screens, from seed 1")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--scvi-epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = ia.Settings(genes=args.genes, seed=args.seed, spared_donors=0.0)
    makers = {
        "type": lambda: kang_types(args.held_out, args.type),
        "donor": lambda: kang_donors(args.held_out, args.donors.split(",")),
        "screen": lambda: [f for s in range(1, args.screens + 1) for f in screen(s)],
        "pair": lambda: [f for s in range(1, args.screens + 1) for f in pair(s)],
        "together": lambda: [f for s in range(1, args.screens + 1) for f in pair(s, 0.7, 2)],
    }
    rows: list[dict[str, object]] = []
    for part in args.parts.split(","):
        for fold in makers[part]():
            rows += [{"part": part, **row} for row in run_fold(fold, settings, args.scvi_epochs)]
            if args.json:
                args.json.write_text(
                    json.dumps({"arguments": vars(args), "rows": rows}, indent=1, default=str)
                )
    frame = pd.DataFrame(rows).drop(columns=["task", "cells"])
    means = frame.groupby(["part", "method"], sort=False).mean()
    print(means.round(3).to_string())


if __name__ == "__main__":
    main()
