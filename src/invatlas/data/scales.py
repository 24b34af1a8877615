"""Which numbers cannot be told from the values, or the numbers, they go with.

For n cells with numbers x_c in k categories of means m_j, and for two numbers with Pearson's r,

    left = sum_c (x_c - m_j(c))^2 / sum_c (x_c - mean)^2        1 - R2
    left = 1 - r^2, k = 2                                       of a line
    explained = 1 - left (n - 1) / (n - k)                      adjusted (Ezekiel 1930)
    chance = I_left((n - k) / 2, (k - 1) / 2)                   of no more left, were x noise

where I is the regularised incomplete beta function (Fisher 1928, Proc. R. Soc. A 121, 654). As in
:mod:`invatlas.data.connectedness`, 1 / (1 - explained) is the variance inflation of an effect, and
five or more is near. What may be chance counts as nothing.

A biological number is often one of a technical value, as age is of a donor. Technical effects are
random, so what it does can be told across values, if there are enough: five with a fair part of
the cells, and none that alone sets the numbers apart. With m the mean of the m_j,

    r_j^2 = (m_j - m)^2 / ((1 - 1/k) sum_i (m_i - m)^2)         alone from four fifths on

is the squared correlation, over values, of the number with being j.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import betainc

from invatlas.data.connectedness import LIGHT
from invatlas.data.covariates import Covariate
from invatlas.data.findings import Finding, Match, conclude_scale

FULLY = 0.999  # explained
NEARLY = 1 - LIGHT
LIKELY = 1e-4  # the chance from which a share explained is none
FEWEST_VALUES = 5  # a line through them leaves three to judge it by


def compare_with_categories(
    scale: str, numbers: np.ndarray, column: Covariate, codes: np.ndarray, *, biological: bool
) -> Iterator[Finding]:
    """Find whether a scale can be told from categories of the other role.

    Parameters
    ----------
    scale, numbers
        Its column, and its number in each cell, NaN where missing.
    column, codes
        The other column, and the category of each cell, negative where missing or coarse.
    biological
        Whether the scale is biological and the categories are technical.
    """
    known = np.isfinite(numbers) & (codes >= 0)
    x, (present, place) = numbers[known], np.unique(codes[known], return_inverse=True)
    explained = measure_between(x, place)
    if explained < NEARLY:
        return
    kind, named = _grade(explained), np.arange(len(present))
    if biological:
        kind, named = _look_across(kind, x, place)
    parts = np.split(x[np.argsort(place)], np.cumsum(np.bincount(place))[:-1])
    matches = []
    for j in named:
        pair = write_span(parts[j]), column.categories[present[j]]
        matches.append(_match(pair if biological else pair[::-1], len(parts[j]), explained))
    d, e = (scale, column.name) if biological else (column.name, scale)
    yield conclude_scale(kind, d, e, matches, scale, alone=len(named) == 1)


def compare_scales(d: str, x: np.ndarray, e: str, y: np.ndarray) -> Iterator[Finding]:
    """Find whether a biological scale can be told from a technical one."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    explained = measure_along(x, y)
    if explained >= NEARLY:
        match = _match((write_span(x), write_span(y)), len(x), explained)
        yield conclude_scale(_grade(explained), d, e, [match])


def measure_between(x: np.ndarray, place: np.ndarray) -> float:
    """Adjusted share of the variation of numbers that lies between categories 0 ... k - 1."""
    if not len(x) or x.min() == x.max():
        return 0.0
    within = x - _means(x, place)[place]
    return _adjust((within**2).sum() / ((x - x.mean()) ** 2).sum(), len(x), int(place.max()) + 1)


def measure_along(x: np.ndarray, y: np.ndarray) -> float:
    """Adjusted share of the variation of numbers that lies along a line in others."""
    if not len(x) or x.min() == x.max() or y.min() == y.max():
        return 0.0
    return _adjust(1 - np.corrcoef(x, y)[0, 1] ** 2, len(x), 2)


def write_span(x: np.ndarray) -> str:
    """Write the least and the greatest number, or the one there is."""
    ends = [f"{end:,.0f}" if abs(end) >= 1000 else f"{end:.4g}" for end in (x.min(), x.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _adjust(left: float, n: int, k: int) -> float:
    left = min(1.0, max(0.0, left))
    if not 1 < k < n or betainc((n - k) / 2, (k - 1) / 2, left) >= LIKELY:
        return 0.0
    share = round(1 - left * (n - 1) / (n - k), 9)  # rounding errors are no variation
    return max(0.0, float(share))


def _look_across(kind: str, x: np.ndarray, place: np.ndarray) -> tuple[str, np.ndarray]:
    """Kind of what is found of a biological scale, and the technical values it is found of."""
    sizes, means = np.bincount(place), _means(x, place)
    every = np.arange(len(means))
    if (sizes >= LIGHT * sizes.mean()).sum() < FEWEST_VALUES:
        return kind, every
    pull = (means - means.mean()) ** 2
    alone = np.flatnonzero(pull >= NEARLY * (1 - 1 / len(means)) * pull.sum())
    return (kind, alone) if len(alone) else ("nested", every)


def _means(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    means: np.ndarray = np.bincount(place, x) / np.bincount(place)
    return means


def _grade(explained: float) -> str:
    return "full" if explained >= FULLY else "near"


def _match(pair: tuple[str, str], cells: int, explained: float) -> Match:
    values, beside = pair
    return Match((values,), (beside,), cells, cells, cells, explained)
