"""The combinations of values that a prior speaks of, and how often each occurs.

    p(d)    = (sum_x p(d | A_x) + 1) / (cells + combinations)
    p(d | A) = p(d) / sum_{c in A} p(c)  for d in A

A_x holds the combinations that agree with what is known of a cell: one, or several where it
lacks a value or has a coarse one. Both lines are met in turn (expectation and maximisation,
Dempster et al. 1977), from the product of the covariates' own frequencies. Cells of which nothing
is known say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch

from invatlas.data.covariates import MISSING, Covariate
from invatlas.model.priors import CovariateTable, list_admitted

MAXIMUM_COMBINATIONS = 4096
MOST_ROUNDS = 200
SETTLED = 1e-6


def combine(covariates: Sequence[Covariate], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Combinations of values that a prior speaks of, and how often each occurs.

    Every combination where there are at most 4,096, else those that occur in the reference, each
    with every knot of a scale.

    Returns
    -------
    Codes (combination, covariate), and p(d) (combination,), one cell more of each.
    """
    if not covariates:
        return np.zeros((1, 0), dtype=np.int64), np.ones(1)
    sizes = [len(covariate.categories) for covariate in covariates]
    complete = codes[(codes >= 0).all(1)]
    if np.prod(sizes, dtype=float) <= MAXIMUM_COMBINATIONS or not len(complete):
        combinations = np.indices(sizes).reshape(len(sizes), -1).T.astype(np.int64)
    else:
        combinations = complete
        for c, covariate in enumerate(covariates):
            if covariate.knots:  # a value may be dealt to either knot beside it
                combinations = np.unique(combinations, axis=0).repeat(sizes[c], axis=0)
                combinations[:, c] = np.arange(len(combinations)) % sizes[c]
        combinations = np.unique(combinations, axis=0)
    return combinations, _weigh(covariates, codes, combinations)


def _weigh(
    covariates: Sequence[Covariate], codes: np.ndarray, combinations: np.ndarray
) -> np.ndarray:
    """p(d) of some combinations, shape (combination,)."""
    p = np.ones(len(combinations))
    for covariate, said, values in zip(covariates, codes.T, combinations.T, strict=True):
        p *= (1 + np.bincount(said[said >= 0], minlength=len(covariate.categories)))[values]
    known, times = np.unique(codes[(codes != MISSING).any(1)], axis=0, return_counts=True)
    members, met = find_members(covariates, known, combinations)
    return settle(members, times[met], p, np.ones(len(p)))


def find_members(
    covariates: Sequence[Covariate], codes: np.ndarray, combinations: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray]:
    """A_x of each of some codes (set, covariate), (set, combination), and which are not empty."""
    agrees = np.ones((len(codes), len(combinations)), dtype=bool)
    for covariate, said, values in zip(covariates, codes.T, combinations.T, strict=True):
        agrees &= list_admitted(torch.from_numpy(covariate.members)).numpy()[said][:, values]
    met = np.asarray(
        agrees.any(1)
    )  # of very many combinations some that nobody measured are left out
    return sp.csr_matrix(agrees[met], dtype=float), met


def settle(
    members: sp.csr_matrix, times: np.ndarray, start: np.ndarray, trust: np.ndarray
) -> np.ndarray:
    """p(d), with ``trust`` cells of each combination beside those of the sets."""
    p = start
    for _ in range(MOST_ROUNDS):
        before, p = p / p.sum(), trust + p * (members.T @ (times / (members @ p)))
        if np.abs(p / p.sum() - before).max() < SETTLED:
            break
    return np.asarray(p / p.sum())


def tabulate(covariates: Sequence[Covariate], codes: np.ndarray) -> CovariateTable:
    """Lay out what a prior conditions on, from the codes (cell, covariate) of the reference."""
    combinations, weights = combine(covariates, codes)
    return tabulate_values(
        covariates, torch.from_numpy(combinations), torch.from_numpy(weights.astype(np.float32))
    )


def count_cells(covariates: Sequence[Covariate], codes: np.ndarray) -> torch.Tensor:
    """Cells of each value, all covariates below each other, from codes (cell, covariate)."""
    values = [np.arange(len(covariate.categories)) for covariate in covariates]
    cells = [
        (column[:, None] == value).sum(0) for column, value in zip(codes.T, values, strict=True)
    ]
    return torch.from_numpy(np.concatenate([[], *cells]).astype(np.float32))


def tabulate_values(
    covariates: Sequence[Covariate], combinations: torch.Tensor, weights: torch.Tensor
) -> CovariateTable:
    """Lay out some combinations (combination, covariate) of the values of covariates."""
    groups = tuple(torch.as_tensor(c.members, device=combinations.device) for c in covariates)
    sizes, ordered = [len(c.categories) for c in covariates], [bool(c.knots) for c in covariates]
    return CovariateTable(sizes, combinations, weights, groups, tuple(ordered))
