"""Two groups of cells and the donors they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from invatlas.data.columns import text_values
from invatlas.errors import CovariateError, DataError
from invatlas.wording import count_noun, suggest

Value: TypeAlias = str | float | bool
Group: TypeAlias = Mapping[str, Value | Sequence[Value]] | np.ndarray | pd.Series
FEWEST_DONORS = 2


@dataclass(frozen=True)
class Samples:
    """The cells of one donor in one group are a sample.

    Attributes
    ----------
    cells
        Sample of each cell, -1 for none, shape (cell,).
    first
        Whether a sample is of the first group, shape (sample,).
    donor
        Donor of each sample, shape (sample,).
    paired
        Whether every donor has a sample in both groups, in the same order.
    """

    cells: np.ndarray
    first: np.ndarray
    donor: np.ndarray
    paired: bool


def choose_cells(obs: pd.DataFrame, group: Group, name: str) -> np.ndarray:
    """Which cells a group means, bool (cell,).

    ``group`` is a mask, or values by column: ``{"condition": "stim", "cell_type": ["B", "T"]}``.

    Raises
    ------
    CovariateError
        If a column or value is absent from obs.
    DataError
        If the mask does not fit the cells, or no cell is meant.
    """
    if not isinstance(group, Mapping):
        if isinstance(group, pd.Series) and not group.index.equals(obs.index):
            raise DataError(
                f"{name} is a Series of other cells than obs, or in another order "
                f"({', '.join(map(str, group.index[:2]))}, ... for "
                f"{', '.join(map(str, obs.index[:2]))}, ...); it takes one of the same index."
            )
        mask = np.asarray(group)
        if mask.dtype != bool or mask.shape != (len(obs),):
            raise DataError(
                f"{name} is an array of {mask.dtype} {mask.shape}; it takes one True or False for "
                f"each of the {len(obs)} cells, or values of obs columns by name."
            )
        chosen = mask
    else:
        chosen = np.ones(len(obs), dtype=bool)
        for column, asked in group.items():
            listed = [asked] if isinstance(asked, str) else np.atleast_1d(np.asarray(asked, object))
            values = set(text_values(pd.DataFrame({column: listed}, dtype=object), column).dropna())
            met = text_values(obs, column)
            if absent := sorted(values - set(met.dropna())):
                known = ", ".join(sorted(set(met.dropna()))[:10])
                raise CovariateError(
                    f"{name}: no cell has {column} {absent[0]!r}; the values are {known}."
                    f"{suggest(absent[0], set(met.dropna()))}"
                )
            chosen &= met.isin(values).to_numpy()
    if not chosen.any():
        raise DataError(f"{name} is empty: {group!r} fits none of the {len(obs)} cells.")
    return chosen


def take_samples(
    obs: pd.DataFrame, first: np.ndarray, second: np.ndarray, donor: str, fewest: int
) -> Samples:
    """Split two groups by donor; a donor with fewer than ``fewest`` cells in a group is left out.

    Where at least two donors, and half of all, are in both groups, each is compared with itself
    and the others are left out.

    Raises
    ------
    DataError
        If the groups overlap, or either has fewer than two donors left.
    """
    if (first & second).any():
        raise DataError(f"The groups share {(first & second).sum()} cells; they must share none.")
    names = text_values(obs, donor)
    counts = [names[group].value_counts() for group in (first, second)]
    kept = [sorted(times.index[times >= fewest]) for times in counts]
    both = sorted(set(kept[0]) & set(kept[1]))
    paired = len(both) >= FEWEST_DONORS and 2 * len(both) >= len(set(kept[0]) | set(kept[1]))
    if paired:
        kept = [both, both]
    for number, group in enumerate(kept, 1):
        if len(group) < FEWEST_DONORS:
            raise DataError(
                f"Group {number} has {count_noun(len(group), 'value')} of {donor} with {fewest} or "
                f"more cells; replicates take at least {FEWEST_DONORS}. A difference between two "
                "donors says nothing about the groups they are from."
            )
    cells = np.full(len(obs), -1)
    for mask, group, start in zip((first, second), kept, (0, len(kept[0])), strict=True):
        codes = pd.Categorical(names.where(mask), categories=group).codes
        cells = np.where(codes >= 0, codes + start, cells)
    donors = np.array(kept[0] + kept[1], dtype=object)
    return Samples(cells, np.arange(len(donors)) < len(kept[0]), donors, paired)
