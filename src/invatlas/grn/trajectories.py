"""Expression in time: the points of a series, or of the cells along a lineage.

    points of a series    every time that was sampled: mean, spread and number of its rows
    bins of a lineage     pseudotime in bins of equally many cells: mean, spread, number

A series is a lineage (or a replicate) of one donor under one intervention. Its times are sampled
where rows share them, as those of an experiment do; pseudotime is another number in every cell.
Equal rows of a series and time are one measurement that was drawn twice, and count once; those of
cells and of counts are what they are, since few counts in few genes are often equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from invatlas.data.columns import NOTHING_SPELLINGS, text_values
from invatlas.errors import CovariateError
from invatlas.grn.interventions import Intervention

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_BINS = 20
CELLS_PER_BIN = 8
CALLED_TIME = re.compile(r"(?<![a-z])(pseudo)?(time|timepoint|dpt|day|hour)s?(?![a-z])", re.I)
FEWEST_CELLS = 3 * CELLS_PER_BIN
FEWEST_TIMES_ALONE = 5
MOST_SAMPLED_TIMES = 200
LONGEST_SINGLE_SERIES = 50
CELLS_PER_TIME = 5  # from which on the rows of a time are cells, not repeats


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Expression of one series in time.

    Attributes
    ----------
    lineage, donor
        Names; empty where none are given.
    times
        Rising, (time,); in the unit of the column.
    mean
        Mean over the rows of each time or bin, (time, gene).
    spread
        Their standard deviation, (time, gene); 0 where there is one row.
    cells
        How many rows each time or bin has, (time,).
    intervention
        Of the series as a whole.
    perturbed
        Whether the column of experiments calls it a time series: in DREAM4 genes that nobody names
        are then perturbed during the first half of the time.
    """

    lineage: str
    donor: str
    times: FloatArray
    mean: FloatArray
    spread: FloatArray
    cells: IntArray
    intervention: Intervention
    perturbed: bool = False

    @property
    def name(self) -> str:
        """Lineage and donor, as a reader would name them."""
        names = [f"lineage {self.lineage!r}"] * bool(self.lineage)
        return " of ".join([*names, *[f"donor {self.donor!r}"] * bool(self.donor)]) or "the series"


def is_like_time(obs: pd.DataFrame, column: object) -> bool:
    """Whether a column is called as times are, and holds what could be some."""
    if not isinstance(column, str) or not CALLED_TIME.search(column):
        return False
    try:
        read_times(obs, column)
    except CovariateError:
        return False
    return True


def read_times(obs: pd.DataFrame, column: str) -> FloatArray:
    """Time of every row, (row,); NaN where missing, which makes the row a steady state.

    Raises
    ------
    CovariateError
        If the column is absent, holds something that is no number, or does not vary.
    """
    text = text_values(obs, column, NOTHING_SPELLINGS)
    times = np.array(pd.to_numeric(text, errors="coerce"), dtype=np.float64)
    odd = text.notna().to_numpy() & ~np.isfinite(times)
    if odd.any():
        raise CovariateError(
            f"obs column {column!r} holds {text[odd].iloc[0]!r} (row {obs.index[odd][0]!r}), which "
            "is no finite number; a time is a number, or missing in a steady state."
        )
    distinct = np.unique(times[np.isfinite(times)])
    if len(distinct) < 2:
        found = f"is {distinct[0]:g} in every row" if len(distinct) else "is missing in every row"
        raise CovariateError(
            f"obs column {column!r} {found}; a time needs two values at least. Without times, all "
            "rows are steady states: name no time."
        )
    return times


def read_trajectories(
    y: FloatArray,
    times: FloatArray,
    names: pd.DataFrame,
    interventions: Sequence[Intervention],
    bins: int | None,
    counted: bool = False,
) -> tuple[tuple[Trajectory, ...], list[str]]:
    """Every series among rows that have a time, in order of their names, and what to know of them.

    Parameters
    ----------
    y
        Expression (row, gene).
    times
        Times (row,).
    names
        Columns ``lineage``, ``donor`` and ``perturbed`` of every row.
    interventions
        Of every row; rows of one series share them.
    bins
        None decides: a point for each time where times are shared, else bins. 0 makes a point of
        each time, any other number is the most bins a series may have.
    counted
        Whether the expression was counted.

    Raises
    ------
    CovariateError
        If a series has too few rows, or one time only; or if the only one has a few times.
    """
    if not len(y):
        return (), []
    key = names.assign(intervention=[(i.kind, i.genes) for i in interventions], time=times)
    by_series = key.groupby(list(key.columns[:-1]), sort=False).indices
    groups = [rows for _, rows in sorted(by_series.items())]
    sampled = _times_are_sampled(times, groups) if bins is None else bins == 0
    snapshots = not sampled or _rows_are_cells(times, groups)
    twice, notes = np.zeros(len(y), dtype=bool), []
    if not (snapshots or counted):
        twice = key.assign(row=[row.tobytes() for row in y]).duplicated().to_numpy()
    if twice.any():
        notes.append(
            f"{twice.sum():,} rows repeat another of the same series and time, and count once."
        )
    found = []
    for rows in groups:
        rows = rows[~twice[rows]]
        rows = rows[np.argsort(times[rows], kind="stable")]
        first = names.iloc[rows[0]]
        trajectory = Trajectory(
            first["lineage"],
            first["donor"],
            *_summarise(y[rows], times[rows], 0 if sampled else bins or MOST_BINS),
            interventions[rows[0]],
            bool(first["perturbed"]),
        )
        _check_length(trajectory, len(rows), snapshots, len(groups) == 1)
        found.append(trajectory)
    return tuple(found), notes


def _times_are_sampled(times: FloatArray, groups: Sequence[IntArray]) -> bool:
    """Whether rows share their times, or are few enough of a single series."""
    if len(groups) == 1 and len(groups[0]) <= LONGEST_SINGLE_SERIES:
        return True
    distinct = len(np.unique(times))
    return distinct <= min(MOST_SAMPLED_TIMES, len(times) / 2)


def _rows_are_cells(times: FloatArray, groups: Sequence[IntArray]) -> bool:
    """Whether the usual series has several rows a time."""
    per_time = [len(rows) / len(np.unique(times[rows])) for rows in groups]
    return bool(np.median(per_time) >= CELLS_PER_TIME)


def _summarise(
    y: FloatArray, times: FloatArray, bins: int
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
    """Times, mean, spread and number of rows that are sorted by time; a point a time if no bins."""
    starts = np.unique(times, return_index=True)[1]
    wanted = min(bins, len(times) // CELLS_PER_BIN)
    if bins and len(starts) > wanted > 0:
        even = np.linspace(0, len(times), wanted + 1)[:-1]
        starts = np.unique(starts[np.searchsorted(starts, even.round(), side="right") - 1])
    cells = np.diff(np.append(starts, len(times)))
    mean = np.add.reduceat(y, starts) / cells[:, None]
    centred = y - mean.repeat(cells, axis=0)
    spread = np.sqrt(np.add.reduceat(centred**2, starts) / np.maximum(cells - 1, 1)[:, None])
    return np.add.reduceat(times, starts) / cells, mean, spread, cells


def _check_length(trajectory: Trajectory, rows: int, snapshots: bool, alone: bool) -> None:
    name = trajectory.name[0].upper() + trajectory.name[1:]
    if snapshots and rows < FEWEST_CELLS:
        raise CovariateError(
            f"{name} has {rows} cells; a trajectory of cells needs {FEWEST_CELLS}. Leave it out, "
            "or say bins=0 if each row is a sample of a series in time."
        )
    if len(trajectory.times) < 2:
        raise CovariateError(
            f"{name} has one time only, {trajectory.times[0]:g}; a trajectory needs two. Rows "
            "without a time are steady states."
        )
    if alone and not snapshots and len(trajectory.times) < FEWEST_TIMES_ALONE:
        raise CovariateError(
            f"{name} has {rows} rows at {len(trajectory.times)} times and is the only one; a "
            f"series alone needs {FEWEST_TIMES_ALONE} times, a trajectory of cells {FEWEST_CELLS} "
            "cells. Without a time, all rows are steady states."
        )
