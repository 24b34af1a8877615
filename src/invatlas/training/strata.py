"""Which cells are alike in their biology, where that has scales.

    stratum of a cell = its categories, and of each scale the bin  floor(k b / knots)  of its knot k

Laboratories can be compared within a stratum only where it holds cells of two of them. An age is
constant in a donor: with a stratum for each knot hardly any donor has another to be compared with.
The number of bins b is therefore the largest with which nine in ten of the cells that could be
compared without scales still can, by each technical covariate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from invatlas.data.covariates import Covariate
from invatlas.data.crossing import number_rows

KEPT = 0.9
FEWEST_CELLS = 3  # of a value in a stratum, for it to count there


def count_bins(
    covariates: Sequence[Covariate], biological: np.ndarray, technical: np.ndarray
) -> int:
    """Bins of every scale, from codes of cells; those of technical scales count as missing."""
    most = max((len(covariate.knots) for covariate in covariates), default=0)
    if not most:
        return 1
    wanted = KEPT * count_comparable(merge(covariates, biological, 1), technical)
    for bins in range(most, 1, -1):
        found = count_comparable(merge(covariates, biological, bins), technical)
        if (found >= wanted).all():
            return bins
    return 1


def merge(covariates: Sequence[Covariate], codes: np.ndarray, bins: int) -> np.ndarray:
    """Exchange knots for their bins, as many as there are of either at most.

    Codes have the shape (cell, covariate); missing values stay missing.
    """
    merged = codes.copy()
    for c, covariate in enumerate(covariates):
        if knots := len(covariate.knots):
            merged[:, c] = np.where(codes[:, c] < 0, codes[:, c], codes[:, c] * bins // knots)
    return merged


def count_comparable(given: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """Cells whose stratum has two values of each covariate, shape (covariate,).

    Strata are combinations of the codes given, (cell, column); compared are (cell, covariate).
    """
    known = (given >= 0).all(1)
    keys = number_rows(given[known], given.max(0, initial=0) + 1)
    stratum = np.unique(keys, return_inverse=True)[1].ravel()
    comparable = []
    for codes in compared[known].T:
        told = codes >= 0
        cells = np.zeros((stratum.max(initial=0) + 1, codes.max(initial=0) + 1), dtype=int)
        np.add.at(cells, (stratum[told], codes[told]), 1)
        met = (cells >= FEWEST_CELLS).sum(1) > 1
        comparable.append(cells[met].sum())
    return np.array(comparable, dtype=float)
