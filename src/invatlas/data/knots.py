"""Numbers as values of a covariate: knots, and where between them a number lies.

    p(v)     position of the number v among the knots k_0 < ... < k_n, 0 to n, linear in between
    code     p rounded to the nearest knot
    offset   p less the code, -1/2 to 1/2; a loop that moves the code to the other neighbour with
             probability |offset| sees, on average, the linear interpolation of the two knots

Knots are quantiles of the distinct numbers of the reference, so that each stretch of the scale
has numbers to be learnt from, whatever the unit. Numbers beyond the ends count as the ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from invatlas.errors import CovariateError
from invatlas.wording import list_first

MOST_KNOTS = 8
FEWEST_NUMBERS = 3


def read_numbers(values: pd.Series) -> np.ndarray:
    """Finite numbers of a column given as text, anything else as NaN, shape (cell,)."""
    numbers = np.array(pd.to_numeric(values, errors="coerce"), dtype=np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def check_numbers(values: pd.Series, name: str) -> np.ndarray:
    """Numbers of a column given as text, missing ones as NaN, shape (cell,).

    Raises
    ------
    CovariateError
        If a value is no finite number.
    """
    numbers = read_numbers(values)
    odd = values.notna().to_numpy() & np.isnan(numbers)
    if odd.any() and np.isnan(numbers).all():
        raise CovariateError(
            f"obs column {name!r} is asked for as continuous and holds text "
            f"({list_first(sorted(set(values[odd])))}), no number. Name it without ':continuous'."
        )
    if odd.any():
        raise CovariateError(
            f"obs column {name!r} is asked for as continuous and holds "
            f"{values[odd].iloc[0]!r}, which is no finite number."
        )
    return numbers


def choose_knots(numbers: np.ndarray, name: str) -> tuple[float, ...]:
    """Knots for the numbers of a reference, smallest and largest among them.

    Raises
    ------
    CovariateError
        If there are fewer than three distinct numbers.
    """
    distinct = np.unique(numbers[np.isfinite(numbers)])
    if len(distinct) < FEWEST_NUMBERS:
        raise CovariateError(
            f"obs column {name!r} has {len(distinct)} distinct numbers; a continuous covariate "
            f"needs at least {FEWEST_NUMBERS}. Name it without ':continuous'."
        )
    knots = np.quantile(distinct, np.linspace(0, 1, min(MOST_KNOTS, len(distinct))))
    return tuple(np.unique(knots).tolist())


def locate(numbers: np.ndarray, knots: Sequence[float]) -> np.ndarray:
    """Position of each number among the knots; NaN stays NaN."""
    positions = np.interp(numbers, knots, np.arange(len(knots)))
    return np.where(np.isnan(numbers), np.nan, positions)


def name_knots(knots: Sequence[float]) -> tuple[str, ...]:
    """Write knots with as few digits as tell them apart."""
    for digits in range(3, 18):
        names = tuple(f"{knot:.{digits}g}" for knot in knots)
        if len(set(names)) == len(names):
            break
    return names
