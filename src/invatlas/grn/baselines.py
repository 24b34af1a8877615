"""Networks found without a model of the dynamics: the yardsticks.

    correlation       s_rt = corr(y_r, y_t) over all rows
    forests           s_rt = drop of variance of y_t by splits on y_r, mean over trees: GENIE3
                      (Huynh-Thu et al. 2010, PLoS ONE 5:e12776)
    lasso             y_t + tau_t dy_t/dt = sum_r s_rt y_r + b_t, at rest dy/dt = 0 (the
                      Inferelator, Bonneau et al. 2006, Genome Biol 7:R36); in a series y is the
                      middle of two neighbours, so that noise of y is not correlated with dy
    knockout_zscore   s_rt = (median_t - y_t) / sd_t, y_t in the knockout of r, median and sd over
                      all knockouts: steadier than one wild type (as Prill et al. 2010, PLoS ONE
                      5:e9202)
    prior_only        s_rt = prior_rt

Each returns scores s (regulator, target) over all genes: the larger in size, the likelier the
edge; negative where the regulator lowers its target, if the method can tell. Genes that do not
regulate, and genes themselves, have 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from invatlas.errors import DataError
from invatlas.grn.experiments import Experiments

FloatArray = NDArray[np.float64]

MOST_ROWS_PER_TREE = 2000
PENALTIES = np.logspace(0, -2, 20)
TOLERANCE = 1e-3
FOLDS = 5
MANY_GENES = 200  # above it penalties are searched along the path of LARS, ten times faster
MOST_EDGES = 150  # steps of that path, so about as many regulators of a gene at most
MOST_ROWS_FOR_DECAY = 300  # of many genes: its search needs their decomposition for each target
TIME_STEPS = 2.0 ** np.arange(-1, 6)
RIDGES = np.logspace(-2, 4, 13)


def correlation(experiments: Experiments) -> FloatArray:
    """Pearson correlation over all steady states and points in time; 0 for constant genes."""
    z = _standardise(stack_rows(experiments))
    return _keep_candidates(z.T @ z / len(z), experiments)


def forests(
    experiments: Experiments, *, trees: int = 1000, seed: int = 0, n_jobs: int = 1
) -> FloatArray:
    """Importance of each regulator in a random forest of each target (GENIE3); unsigned.

    A tree sees at most 2,000 rows, and the square root of the number of regulators at a split.
    """
    from sklearn.ensemble import RandomForestRegressor

    z = _standardise(stack_rows(experiments))
    scores = np.zeros((z.shape[1], z.shape[1]))
    for target in np.flatnonzero(z.any(0)):
        sources = _other_regulators(experiments, target)
        if not len(sources):
            continue
        forest = RandomForestRegressor(
            n_estimators=trees,
            max_features="sqrt",
            max_samples=min(len(z), MOST_ROWS_PER_TREE),
            random_state=seed,
            n_jobs=n_jobs,
        ).fit(z[:, sources], z[:, target])
        scores[sources, target] = np.mean(
            [tree.tree_.compute_feature_importances(normalize=False) for tree in forest], axis=0
        )
    return scores


def lasso(
    experiments: Experiments, *, seed: int = 0, on_gene: Callable[[], None] = lambda: None
) -> FloatArray:
    """Sparse linear regulation of finite differences and steady states, penalty by five folds.

    The decay time tau is, for each target, the one of a grid that predicts dy/dt best by ridge
    regression with one row left out. A row in which the target itself was intervened on says
    nothing of its regulators and is left out. ``on_gene`` is called before every target.
    """
    from threadpoolctl import threadpool_limits

    y, slope, held = _join_equations(experiments)
    taus = _decay_times(experiments)
    scores = np.zeros((y.shape[1], y.shape[1]))
    with threadpool_limits(1, "blas"):  # products are too small to share
        for target in range(y.shape[1]):
            on_gene()
            sources, rows = _other_regulators(experiments, target), ~held[:, target]
            if len(sources) and rows.sum() >= FOLDS:
                sides = y[rows, target, None] + taus * slope[rows, target, None]
                x = _standardise(y[np.ix_(rows, sources)])
                scores[sources, target] = _search_penalty(x, sides, taus, seed)
    return scores


def _search_penalty(x: FloatArray, sides: FloatArray, taus: FloatArray, seed: int) -> FloatArray:
    """Coefficients (regulator,) of the lasso of one target; ``sides`` is (row, tau)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LassoCV, LassoLarsCV
    from sklearn.model_selection import KFold

    side = _standardise(sides[:, [_choose_decay_time(x, sides, taus)]])[:, 0]
    largest = np.abs(x.T @ side).max() / len(side)
    if largest <= 0:
        return np.zeros(x.shape[1])
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    search = (
        LassoCV(alphas=largest * PENALTIES, cv=folds, tol=TOLERANCE)
        if x.shape[1] <= MANY_GENES
        else LassoLarsCV(cv=folds, max_iter=MOST_EDGES)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        coefficients: FloatArray = search.fit(x, side).coef_
    return coefficients


def knockout_zscore(experiments: Experiments) -> FloatArray:
    """How far each knockout moves each gene from its usual expression, in standard deviations.

    Raises
    ------
    DataError
        If there are no knockouts of single genes.
    """
    single = [
        (s.intervention.genes[0], s.expression)
        for s in experiments.steady
        if s.intervention.kind == "knockout" and len(s.intervention.genes) == 1
    ]
    if not single:
        raise DataError("There are no steady states of single knockouts to take z-scores of.")
    genes = np.array([gene for gene, _ in single])
    y = np.stack([expression for _, expression in single])
    spread = y.std(0)
    z = (np.median(y, axis=0) - y) / np.where(spread > 0, spread, 1)
    scores = np.zeros((y.shape[1], y.shape[1]))
    for gene in np.unique(genes):
        scores[gene] = z[genes == gene].mean(0)
    return _keep_candidates(scores, experiments)


def prior_only(experiments: Experiments) -> FloatArray:
    """Give the prior network as it was given.

    Raises
    ------
    DataError
        If there is none.
    """
    if experiments.prior is None:
        raise DataError("There is no prior network to score.")
    return _keep_candidates(experiments.prior, experiments)


def stack_rows(experiments: Experiments) -> FloatArray:
    """All steady states, then all points in time, (row, gene)."""
    rows = [s.expression for s in experiments.steady]
    return np.vstack([*rows, *[t.mean for t in experiments.trajectories]])


def _join_equations(experiments: Experiments) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Expression, dy/dt, and where a gene was held, each (row, gene)."""
    y = [s.expression[None] for s in experiments.steady]
    slope = [np.zeros_like(expression) for expression in y]
    done = [s.intervention.genes for s in experiments.steady]
    for t in experiments.trajectories:
        y.append((t.mean[:-1] + t.mean[1:]) / 2)
        slope.append(np.diff(t.mean, axis=0) / np.diff(t.times)[:, None])
        done += [t.intervention.genes] * (len(t.times) - 1)
    held = np.zeros((len(done), len(experiments.genes)), dtype=bool)
    for row, genes in enumerate(done):
        held[row, list(genes)] = True
    return np.vstack(y), np.vstack(slope), held


def _decay_times(experiments: Experiments) -> FloatArray:
    """Half to 32 times the usual time step; 0 where nothing was measured in time."""
    steps = [np.diff(t.times) for t in experiments.trajectories]
    return np.median(np.concatenate(steps)) * TIME_STEPS if steps else np.zeros(1)


def _choose_decay_time(x: FloatArray, sides: FloatArray, taus: FloatArray) -> int:
    """Place of the tau whose equation, in units of dy/dt, leaves the least error."""
    from sklearn.linear_model import RidgeCV

    if len(taus) == 1:
        return 0
    if x.shape[1] > MANY_GENES:
        some = slice(None, None, -(-len(x) // MOST_ROWS_FOR_DECAY))
        x, sides = x[some], sides[some]
    ridge = RidgeCV(RIDGES, alpha_per_target=True).fit(x, sides)
    return int(np.argmin(-ridge.best_score_ / taus**2))


def _standardise(values: FloatArray) -> FloatArray:
    """Mean 0 and standard deviation 1 of each column; 0 where constant."""
    centred = values - values.mean(0)
    spread = centred.std(0)
    constant = spread <= math.sqrt(np.finfo(float).eps) * np.abs(values).max(0, initial=0)
    return np.asarray(np.where(constant, 0, centred / np.where(constant, 1, spread)))


def _other_regulators(experiments: Experiments, target: np.intp | int) -> NDArray[np.intp]:
    regulators = np.flatnonzero(experiments.regulators)
    return np.asarray(regulators[regulators != target])


def _keep_candidates(scores: FloatArray, experiments: Experiments) -> FloatArray:
    kept = np.where(experiments.regulators[:, None], scores, 0)
    np.fill_diagonal(kept, 0)
    return kept
