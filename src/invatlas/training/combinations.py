"""The combinations of values that a prior speaks of, and how often each occurs.

    p(d) = (cells of d + 1) / (cells + combinations)

Cells that lack a value, or have a coarse one, are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from invatlas.data.covariates import Covariate
from invatlas.model.priors import CovariateTable

MAXIMUM_COMBINATIONS = 4096


def combine(covariates: Sequence[Covariate], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Combinations of values that a prior speaks of, and how often each occurs.

    Every combination where there are at most 4,096, else those that occur in the reference, each
    with every knot of a scale.

    Returns
    -------
    Codes (combination, covariate), and p(d) (combination,) with one cell added to each.
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
    place = {tuple(row): j for j, row in enumerate(combinations.tolist())}
    counts = np.ones(len(combinations))
    found, times = np.unique(complete, axis=0, return_counts=True)
    for row, n in zip(found.tolist(), times, strict=True):
        counts[place[tuple(row)]] += n
    return combinations, counts / counts.sum()


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
