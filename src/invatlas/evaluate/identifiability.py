"""What the theorem of identifiability asks of an atlas, and how far fits of other seeds agree.

    lambda(d) = (m_d / v_d, -1 / (2 v_d))     natural parameters of p(z | d): k = 2 for each latent
    L         = the rows lambda(d) - lambda(d_0) of every combination d that was met
    rank L    = 2 n                           what theorem 1 of Khemakhem et al. 2020 (arXiv
                                              1907.04809) asks for, n being the number of latents

For dependent latents m_d and v_d alone are counted, without W_d (``low_rank``) and a_d
(``exponential_family``, for which the theorem is another: Lu et al. 2021, arXiv 2102.12353).

Where it holds, and the model is right, latents are determined up to a linear map of (z, z^2).
A dozen combinations cannot give rank 40; the latents are then free in what the rank leaves open.

    matched   mean |correlation| of latents of two fits, paired one to one (the MCC of Hyvarinen
              and Morioka 2016, NeurIPS)
    linear    mean correlation of latents with their linear prediction from those of the other
              fit, learnt on other cells; both ways

Within a stratum, a combination of biological values, what the values themselves say is constant,
so agreement there is about the rest. Most strata are too small for a map of their own; pooled,
all N labelled cells of S strata make N - S rows

    d = sqrt(m / (m + 1)) (z - mean of the m cells of its stratum before it)

of which both correlations are asked as of cells. Their scatter is that of the cells about the
means of their strata (recursive residuals; Brown, Durbin and Evans 1975, JRSS B 37), and they are
as independent as the cells: once centred, the cells of a small stratum tell of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from invatlas.atlas import Atlas, check_atlas
from invatlas.errors import DataError
from invatlas.model.priors import Prior

AGREEMENTS = (
    "matched",
    "linear",
    "matched_pooled",
    "linear_pooled",
    "matched_within",
    "linear_within",
)
FEWEST_TIMES = 5  # cells, for each latent, to learn a linear map within strata or one of them
MET = 1.5  # a prior counts one cell more than there were


def identifiability(atlas: Atlas) -> pd.DataFrame:
    """Count what the priors vary against what the theorem of identifiability needs.

    Parameters
    ----------
    atlas
        A fitted atlas.

    Returns
    -------
    DataFrame
        One row a set of latents: ``latents`` (n), ``combinations`` (of covariate values that were
        met), ``needed`` (2 n + 1), ``rank`` (of the differences of natural parameters, to single
        precision), ``needed_rank`` (2 n), ``weakest`` (the singular value that decides, over
        the largest; 0 where combinations are too few) and ``holds``. That it holds is necessary,
        no proof: the theorem also asks for a right model and endless data.
    """
    check_atlas(atlas)
    rows = {}
    for which in ("invariant", "spurious"):
        prior: Prior = getattr(atlas.model, f"prior_{which}")
        rows[which] = _count_rank(prior, atlas.record["labelled"][which])
    return pd.DataFrame.from_dict(rows, orient="index")


def _count_rank(prior: Prior, cells: int) -> dict[str, object]:
    given = prior()
    met = (prior.weights * (cells + len(prior.weights)) >= MET).numpy()
    variance = given.log_variance.detach().double().exp().numpy()
    mean = given.mean.detach().double().numpy()
    natural = np.concatenate([mean / variance, -0.5 / variance], axis=1)[met]
    needed = natural.shape[1]
    differences = natural[1:] - natural[:1]
    values = np.linalg.svd(differences, compute_uv=False) if differences.size else np.zeros(0)
    largest = float(values.max(initial=0.0))
    tolerance = largest * max(differences.shape, default=0) * np.finfo(np.float32).eps
    rank = int((values > tolerance).sum())
    weakest = float(values[needed - 1] / largest) if len(values) >= needed > 0 and largest else 0.0
    return {
        "latents": needed // 2,
        "combinations": int(met.sum()),
        "needed": needed + 1,
        "rank": rank,
        "needed_rank": needed,
        "weakest": weakest,
        "holds": rank >= needed,
    }


def agreement(embeddings: Sequence[np.ndarray], strata: np.ndarray) -> pd.DataFrame:
    """Compare what several fits say of the same cells, pair by pair.

    Parameters
    ----------
    embeddings
        Latents of each fit, shape (cell, latent), for the same cells in the same order; best of
        cells that none was trained on.
    strata
        Combination of biological values of each cell, shape (cell,); NaN where one is missing.

    Returns
    -------
    DataFrame
        One row a pair: ``first``, ``second`` (positions), ``matched``, ``linear``;
        ``matched_pooled`` and ``linear_pooled`` (of all cells, the means of their strata taken
        out; NaN where ``cells`` less ``strata`` are fewer than ``needed``, five for each latent);
        ``matched_within`` and ``linear_within`` (means over strata by their cells; NaN where none
        has as many as needed); ``cells``, ``strata``, ``needed``.

    Raises
    ------
    DataError
        If there are fewer than two fits or they are not of the same cells.
    """
    if len(embeddings) < 2 or len({len(z) for z in (*embeddings, strata)}) != 1:
        raise DataError(
            f"Agreement takes at least two fits of the same cells; there are {len(embeddings)}, of "
            f"{', '.join(str(len(z)) for z in embeddings)} cells, and {len(strata)} strata."
        )
    rows = []
    for i, j in combinations(range(len(embeddings)), 2):
        a, b = embeddings[i], embeddings[j]
        whole = {"first": i, "second": j, "matched": match(a, b), "linear": predict(a, b)}
        rows.append(whole | _agree_within(a, b, strata))
    return pd.DataFrame(rows)


def _agree_within(a: np.ndarray, b: np.ndarray, strata: np.ndarray) -> dict[str, float]:
    """Agreement of two fits on what the strata do not say, pooled and in each that is large."""
    needed = FEWEST_TIMES * max(a.shape[1], b.shape[1])
    members = list(pd.Series(strata).groupby(strata).indices.values())
    pooled = [subtract_means(z, strata) for z in (a, b)]
    enough = len(pooled[0]) >= needed
    large = [some for some in members if len(some) >= needed]
    sizes = np.array([len(some) for some in large])
    return {
        "matched_pooled": match(*pooled) if enough else np.nan,
        "linear_pooled": predict(*pooled) if enough else np.nan,
        "matched_within": _weighted_mean([match(a[some], b[some]) for some in large], sizes),
        "linear_within": _weighted_mean([predict(a[some], b[some]) for some in large], sizes),
        "cells": sum(map(len, members)),
        "strata": len(members),
        "needed": needed,
    }


def subtract_means(z: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Take the means of strata out of latents (cell, latent): one row fewer for each stratum."""
    known = pd.notna(strata)
    cells, of = pd.DataFrame(z[known], dtype=np.float64), strata[known]
    before = cells.groupby(of).cumcount().to_numpy()[:, None]
    mean = (cells.groupby(of).cumsum() - cells) / np.maximum(before, 1)
    rows = np.sqrt(before / (before + 1)) * (cells - mean)
    return np.asarray(rows[before > 0])


def match(a: np.ndarray, b: np.ndarray) -> float:
    """Mean |correlation| of latents (cell, latent) paired one to one at their best."""
    size = a.shape[1]
    table = np.abs(_correlate(a, b))
    pairs = linear_sum_assignment(-table)
    return float(table[pairs].sum() / max(size, b.shape[1]))


def predict(a: np.ndarray, b: np.ndarray) -> float:
    """Mean correlation of each set of latents with its linear prediction from the other.

    Learnt on every second cell and asked of the rest, then the other way round.
    """
    found = []
    for x, y in ((a, b), (b, a)):
        for start in (0, 1):
            learn, rest = slice(start, None, 2), slice(1 - start, None, 2)
            design = np.c_[np.ones(len(x[learn])), x[learn]]
            weights, *_ = np.linalg.lstsq(design, y[learn], rcond=None)
            told = np.c_[np.ones(len(x[rest])), x[rest]] @ weights
            found.append(np.diag(_correlate(told, y[rest])).mean())
    return float(np.mean(found))


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of every column of a with every one of b; 0 where one is constant."""
    scaled = []
    for z in (a, b):
        centred = np.asarray(z, dtype=np.float64) - np.mean(z, axis=0, dtype=np.float64)
        length = np.linalg.norm(centred, axis=0)
        scaled.append(centred / np.where(length > 0, length, 1.0))
    return np.asarray(scaled[0].T @ scaled[1])


def _weighted_mean(values: Sequence[float], weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights)) if len(values) else float("nan")
