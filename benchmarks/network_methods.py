"""The methods that are compared: networks they find, and predictions they make.

A method takes experiments and a seed and returns an :class:`Answer`. What it cannot do it leaves
out: a correlation predicts no knockout, and the mean of other donors finds no network.

    no_change             rest after a knockout = rest of the wild type, the gene itself at 0;
                          expression stays where it started
    usual                 the same with the median of all steady states for the wild type; what is
                          farthest from it in a row, in standard deviations, is an off-target
    linear                y_t = sum_r w_rt y_r + b_t at rest, ridge regression of each gene on all
                          others; a knockout clamps its gene and solves for the rest; what the
                          equation of a gene leaves over in a row tells of an off-target
    scaled_knockdown      usual + a (knockdown of the same gene - usual), the one number a by least
                          squares from genes of which both were measured
    mean_trajectory       mean over the other donors of the same lineage, at the times asked
    mean_change           the same, moved to where the trajectory starts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from invatlas.grn import baselines
from invatlas.grn.experiments import Experiments, Intervention
from invatlas.grn.measured import LEFT
from invatlas.grn.network import fit_experiments
from invatlas.grn.predict import predict_path, predict_rest
from invatlas.grn.readout import HALF
from invatlas.grn.settings import NetworkSettings

RIDGES = np.logspace(-4, 4, 25)
DOSES = {"knockout": 1.0, "knockdown": 0.5}


class RestPredictor(Protocol):
    """Predicts a steady state, (gene,), under an intervention."""

    def __call__(self, intervention: Intervention) -> np.ndarray: ...


class PathPredictor(Protocol):
    """Predicts expression (time, gene) of a lineage from what it is at the first time, (gene,)."""

    def __call__(self, lineage: str, start: np.ndarray, times: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Answer:
    """What a method found.

    Attributes
    ----------
    scores
        Of edges, (regulator, target).
    threshold
        The size of a score from which on the method calls an edge.
    rest, path
        Predictions.
    off_targets
        How strongly each gene seems hit beside the one that was meant, (gene,), of the steady
        states that were fitted, by the name of the row; 0 where it is not.
    """

    scores: np.ndarray | None = None
    threshold: float | None = None
    rest: RestPredictor | None = None
    path: PathPredictor | None = None
    off_targets: dict[str, np.ndarray] | None = None


Fit = Callable[[Experiments, int], Answer]  # takes a seed


@dataclass(frozen=True)
class Method:
    """A method and what of an :class:`Answer` it may give, so that it is not asked in vain."""

    fit: Fit
    gives: tuple[str, ...]


def no_change(experiments: Experiments, seed: int) -> Answer:
    usual = find_usual(experiments)

    def rest(intervention: Intervention) -> np.ndarray:
        return clamp(usual, usual, intervention)

    return Answer(rest=rest, path=lambda lineage, start, times: np.tile(start, (len(times), 1)))


def linear(experiments: Experiments, seed: int) -> Answer:
    from sklearn.linear_model import RidgeCV

    if not experiments.steady:
        return Answer()
    y = np.stack([s.expression for s in experiments.steady])
    held = np.zeros(y.shape, dtype=bool)
    for row, state in enumerate(experiments.steady):
        held[row, list(state.intervention.genes)] = True
    usual, n_genes = find_usual(experiments), y.shape[1]
    weights, offset = np.zeros((n_genes, n_genes)), np.zeros(n_genes)
    for target in range(n_genes):
        rows, sources = ~held[:, target], np.delete(np.arange(n_genes), target)
        fitted = RidgeCV(RIDGES).fit(y[np.ix_(rows, sources)], y[rows, target])
        weights[sources, target], offset[target] = fitted.coef_, fitted.intercept_

    def rest(intervention: Intervention) -> np.ndarray:
        pull, push = np.eye(n_genes) - weights.T, offset.copy()
        genes = list(intervention.genes)
        pull[genes], push[genes] = np.eye(n_genes)[genes], clamp(usual, usual, intervention)[genes]
        return np.linalg.solve(pull, push)

    left_over = (y - (y @ weights + offset)) * ~held
    return Answer(rest=rest, off_targets=_standardise_rows(experiments, left_over))


def usual_rest(experiments: Experiments, seed: int) -> Answer:
    if not experiments.steady:
        return Answer()
    y = np.stack([s.expression for s in experiments.steady])
    usual = np.median(y, axis=0)
    change = _standardise_rows(experiments, y - usual)
    return Answer(rest=lambda i: clamp(usual, usual, i), off_targets=change)


def _standardise_rows(experiments: Experiments, change: np.ndarray) -> dict[str, np.ndarray]:
    """Change of each row in robust standard deviations of the gene, 0 at intervened genes."""
    spread = 1.4826 * np.median(np.abs(change), axis=0)
    sizes = np.abs(change) / np.where(spread > 0, spread, 1)
    for size, state in zip(sizes, experiments.steady, strict=True):
        size[list(state.intervention.genes)] = 0
    return {s.name: size for s, size in zip(experiments.steady, sizes, strict=True)}


def scaled_knockdown(experiments: Experiments, seed: int) -> Answer:
    changes: dict[str, dict[tuple[int, ...], np.ndarray]] = {"knockout": {}, "knockdown": {}}
    usual = np.median([s.expression for s in experiments.steady] or [[0.0]], axis=0)
    for s in experiments.steady:
        if s.intervention.kind in changes:
            change = s.expression - usual
            change[list(s.intervention.genes)] = 0
            changes[s.intervention.kind][s.intervention.genes] = change
    both = sorted(set(changes["knockout"]) & set(changes["knockdown"]))
    if not both:
        return Answer()
    out, down = (np.concatenate([changes[kind][g] for g in both]) for kind in changes)
    scale = (out @ down) / (down @ down)

    def rest(intervention: Intervention) -> np.ndarray:
        change = changes["knockdown"].get(intervention.genes, 0)
        return clamp(usual + scale * change, usual, intervention)

    return Answer(rest=rest)


def mean_trajectory(experiments: Experiments, seed: int, moved: bool = False) -> Answer:
    def path(lineage: str, start: np.ndarray, times: np.ndarray) -> np.ndarray:
        others = [t for t in experiments.trajectories if t.lineage == lineage]
        mean = np.mean([interpolate(t.mean, t.times, times) for t in others], axis=0)
        return mean + (start - mean[0]) * moved

    return Answer(path=path)


def find_usual(experiments: Experiments) -> np.ndarray:
    """Expression (gene,) at rest with nothing done: mean of wild types, else median of all."""
    wild = [s.expression for s in experiments.steady if s.intervention.kind == "none"]
    if wild:
        return np.mean(wild, axis=0)
    return np.median(baselines.stack_rows(experiments), axis=0)


def clamp(y: np.ndarray, usual: np.ndarray, intervention: Intervention) -> np.ndarray:
    """Expression in which intervened genes are what a dose makes of the usual."""
    y, genes = y.copy(), list(intervention.genes)
    y[genes] = (1 - DOSES[intervention.kind]) * usual[genes]
    return y


def interpolate(y: np.ndarray, known: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Expression (time, gene) at other times, constant beyond the ends."""
    return np.stack([np.interp(times, known, gene) for gene in y.T], 1)


def ours(experiments: Experiments, seed: int) -> Answer:
    network = fit_experiments(experiments, NetworkSettings(seed=seed))
    genes = list(network.genes)

    def rest(intervention: Intervention) -> np.ndarray:
        left = np.ones((1, len(genes)))
        left[0, list(intervention.genes)] = LEFT[intervention.kind]
        return predict_rest(network, left)[0]

    def path(lineage: str, start: np.ndarray, times: np.ndarray) -> np.ndarray:
        return predict_path(network, lineage, start, times)

    hit = {s.name: np.zeros(len(genes)) for s in experiments.steady}
    for row in network.off_targets.itertuples():
        hit[row.experiment][genes.index(row.off_target)] = row.gain
    return Answer(network.edges.weight, HALF, rest, path, hit)


def _score(baseline: Callable[[Experiments], np.ndarray]) -> Method:
    return Method(lambda experiments, seed: Answer(scores=baseline(experiments)), ("scores",))


def _score_with_seed(baseline: Callable[..., np.ndarray], **choices: int) -> Method:
    return Method(
        lambda experiments, seed: Answer(scores=baseline(experiments, seed=seed, **choices)),
        ("scores",),
    )


METHODS: dict[str, Method] = {
    "ours": Method(ours, ("scores", "rest", "path", "off_targets")),
    "correlation": _score(baselines.correlation),
    "forests": _score_with_seed(baselines.forests, trees=100),
    "forests_1000": _score_with_seed(baselines.forests, trees=1000),
    "lasso": _score_with_seed(baselines.lasso),
    "knockout_zscore": _score(baselines.knockout_zscore),
    "prior_only": _score(baselines.prior_only),
    "no_change": Method(no_change, ("rest", "path")),
    "linear": Method(linear, ("rest", "off_targets")),
    "usual": Method(usual_rest, ("rest", "off_targets")),
    "scaled_knockdown": Method(scaled_knockdown, ("rest",)),
    "mean_trajectory": Method(mean_trajectory, ("path",)),
    "mean_change": Method(partial(mean_trajectory, moved=True), ("path",)),
}
