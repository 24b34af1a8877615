"""Experiments as tensors, with the scales and the noise of every gene.

    centre_j   median of wild types and of the interventions that leave gene j alone, which move
               few genes each; of three wild types or more alone where it is far from theirs; of
               all where few rows leave j alone
    unit_j     typical size of its changes
    floor_j    0, or the least where some are < 0
    noise_j    standard deviation of one measurement
    spread_j   standard deviation over interventions, else over all measurements
    reach_j    how far a gene goes as a regulator: all the way down where it was knocked out or
               down, else its standard deviation

Noise is taken before the fit, so that no edge can hide in it. At rest: the median absolute
difference of replicates of an intervention, or of wild types, if there are five pairs, else the
median absolute deviation over interventions, which move few genes each, if five leave the gene
alone. In a series: each point beside the line between its neighbours (Gasser, Sroka and
Jennen-Steinmetz 1986, Biometrika 73:625).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invatlas.grn.experiments import (
    NORMALISED,
    Experiments,
    Intervention,
    SteadyState,
    Trajectory,
)

FloatArray = NDArray[np.float64]

LEFT = {"knockout": 0.0, "knockdown": 0.5, "overexpression": 2.0}
ALONE = ("knockout", "knockdown", "overexpression")
MAD_TO_SD = 1.4826
LEAST_SHARE_OF_NOISE = 0.02
LEAST_SHARE_OF_USUAL_NOISE = 0.2
LEAST_SHARE_OF_HEIGHT = 0.05
FEWEST_WILD = 3
FEWEST_FOR_MAD = 5
MOST_PAIRED = 10
NOBODY = -1  # place of a donor whose name is not known


@dataclass(frozen=True, eq=False)
class Rest:
    """Steady states under interventions.

    Attributes
    ----------
    y
        Expression (row, gene).
    left
        Nominal share of production that is left, (row, gene): 1 where nothing was done.
    held
        Where a gene was intervened on, bool (row, gene).
    names
        Of the rows.
    donor
        Places of the donors' names, -1 where none is known, (row,).
    """

    y: Tensor
    left: Tensor
    held: Tensor
    names: tuple[str, ...]
    donor: Tensor


@dataclass(frozen=True, eq=False)
class Series:
    """Trajectories, the shorter ones repeated at their last point.

    Attributes
    ----------
    y
        Expression (series, time, gene).
    times
        Since the first of the series, (series, time).
    known
        1 where a point was measured, (series, time).
    left
        As in :class:`Rest`, (series, 1, gene).
    lineage, donor
        Places of the names, (series,).
    upset
        1 where genes that nobody names may be perturbed, (series, time, 1).
    """

    y: Tensor
    times: Tensor
    known: Tensor
    left: Tensor
    lineage: Tensor
    donor: Tensor
    upset: Tensor


@dataclass(frozen=True, eq=False)
class Measured:
    """All measurements of a network; see the head of the file for the scales.

    Attributes
    ----------
    rest
        Steady states under interventions.
    seen
        Steady states nobody intervened on, (row, gene).
    seen_donor
        Places of their donors' names, as in :class:`Rest`.
    series
        Trajectories.
    lineages, donors
        Names; lineages have an offset of their own only where their points are means of cells.
    time_unit
        Median time between two points; 1 without series.
    logarithmic
        Whether expression is log(1 + counts per 10,000).
    """

    rest: Rest
    seen: Tensor
    seen_donor: Tensor
    series: Series
    lineages: tuple[str, ...]
    donors: tuple[str, ...]
    time_unit: float
    centre: Tensor
    unit: Tensor
    floor: Tensor
    noise: Tensor
    spread: Tensor
    reach: Tensor
    noise_slope: float
    least_height: float
    logarithmic: bool

    @property
    def points(self) -> Tensor:
        """All that was measured of expression, (row, gene)."""
        return torch.cat([self.rest.y, self.seen, self.series.y[self.series.known > 0]])


def measure(experiments: Experiments) -> Measured:
    """Bring experiments into tensors."""
    done = [s for s in experiments.steady if s.intervention.kind in ALONE]
    seen = [s for s in experiments.steady if s.intervention.kind not in ALONE]
    trajectories = experiments.trajectories
    n = len(experiments.genes)
    rest, held = _stack(done, n), _mark([s.intervention for s in done], n)
    points = np.vstack([rest, _stack(seen, n), *[t.mean for t in trajectories]])
    floor = np.minimum(points.min(0), 0)
    sd = points.std(0)
    free = np.where(held, np.nan, rest)
    wild = [s for s in seen if s.intervention.kind == "none"] if done else []
    of_wild = _stack(wild, n)
    left_alone = np.vstack([free, of_wild])
    enough = (~np.isnan(left_alone)).sum(0) >= FEWEST_FOR_MAD
    centre = np.where(enough, _over_free(np.nanmedian, left_alone), _find_usual(points, held))
    if len(wild) >= FEWEST_WILD:
        usual = np.median(of_wild, axis=0)
        centre = np.where(np.abs(centre - usual) > np.ptp(of_wild, axis=0), usual, centre)
    several = (~held).sum(0) >= FEWEST_FOR_MAD
    spread = np.where(several, _over_free(np.nanstd, free), sd)
    apart = _pair_replicates([s.intervention for s in [*done, *wild]], left_alone)
    paired = (~np.isnan(apart)).sum(0) >= FEWEST_FOR_MAD
    far = np.where(
        paired,
        _over_free(np.nanmedian, np.abs(apart)) / 2**0.5,
        _over_free(np.nanmedian, np.abs(left_alone - centre)),
    )
    noise = np.where(enough | paired, MAD_TO_SD * far, _find_noise(trajectories))
    least = max(LEAST_SHARE_OF_NOISE * float(np.median(sd)), 1e-8)
    unit = np.maximum(np.maximum(centre - floor, sd), least)
    noise = np.maximum(noise, LEAST_SHARE_OF_NOISE * sd)
    noise = np.maximum(noise, max(LEAST_SHARE_OF_USUAL_NOISE * float(np.median(noise)), 1e-8))
    reach = np.where(held.any(0), np.maximum(centre - floor, sd), sd)
    height = np.maximum(centre - floor, least)
    steps = [np.diff(t.times) for t in trajectories]
    of_cells = bool(steps) and np.median([np.median(t.cells) for t in trajectories]) > 1
    lineages = sorted({t.lineage for t in trajectories}) if of_cells else [""]
    of_rest = {s.donor for s in experiments.steady} - {""}
    donors = sorted({t.donor for t in trajectories} | of_rest)
    return Measured(
        Rest(
            _tensor(rest),
            _tensor(_left([s.intervention for s in done], n)),
            torch.as_tensor(held),
            tuple(s.name for s in done),
            _find_donors(done, donors),
        ),
        _tensor(_stack(seen, n)),
        _find_donors(seen, donors),
        _pad(trajectories, n, lineages, donors),
        tuple(lineages),
        tuple(donors),
        float(np.median(np.concatenate(steps))) if steps else 1.0,
        _tensor(centre),
        _tensor(unit),
        _tensor(floor),
        _tensor(noise),
        _tensor(np.maximum(spread, least)),
        _tensor(reach),
        float(np.median(noise**2 / height)),
        LEAST_SHARE_OF_HEIGHT * float(np.median(height)),
        experiments.scale == NORMALISED,
    )


def _over_free(statistic: Callable[..., FloatArray], free: FloatArray) -> FloatArray:
    """A statistic of each gene over the rows that leave it alone; 0 where none does."""
    if not len(free):
        return np.zeros(free.shape[1])
    return statistic(np.where(np.isnan(free).all(0), 0, free), axis=0)


def _pair_replicates(interventions: Sequence[Intervention], free: FloatArray) -> FloatArray:
    """Differences between rows of one intervention, (pair, gene); NaN where it is held.

    Of many replicates the distance to their median, which says the same, as long as a difference.
    """
    groups: dict[Intervention, list[int]] = {}
    for row, done in enumerate(interventions):
        groups.setdefault(done, []).append(row)
    apart = [np.zeros((0, free.shape[1]))]
    for rows in groups.values():
        y = free[rows]
        a, b = np.triu_indices(len(rows), 1)
        few = len(rows) <= MOST_PAIRED
        apart.append(y[a] - y[b] if few else 2**0.5 * (y - np.median(y, axis=0)))
    return np.vstack(apart)


def _find_usual(points: FloatArray, held: NDArray[np.bool_]) -> FloatArray:
    """Median of each gene over all that was measured while nobody held it, if ever."""
    free = points.copy()
    free[: len(held)][held] = np.nan
    return np.nanmedian(np.where(np.isnan(free).all(0), points, free), axis=0)


def _find_noise(trajectories: Sequence[Trajectory]) -> FloatArray | float:
    """Standard deviation of a point beside the line between its neighbours; 0 if none has two."""
    squares: list[FloatArray] = []
    for t in trajectories:
        if len(t.times) < 3:
            continue
        h = np.diff(t.times)
        share = (h[:-1] / (h[:-1] + h[1:]))[:, None]
        beside = t.mean[1:-1] - (1 - share) * t.mean[:-2] - share * t.mean[2:]
        squares.append(beside**2 / (1 + share**2 + (1 - share) ** 2))
    return np.sqrt(np.concatenate(squares).mean(0)) if squares else 0.0


def _stack(states: Sequence[SteadyState], n: int) -> FloatArray:
    return np.stack([s.expression for s in states]) if states else np.zeros((0, n))


def _find_donors(states: Sequence[SteadyState], donors: Sequence[str]) -> Tensor:
    return torch.tensor([donors.index(s.donor) if s.donor else NOBODY for s in states]).long()


def _mark(interventions: Sequence[Intervention], n: int) -> NDArray[np.bool_]:
    held = np.zeros((len(interventions), n), dtype=bool)
    for row, done in enumerate(interventions):
        held[row, list(done.genes)] = True
    return held


def _left(interventions: Sequence[Intervention], n: int) -> FloatArray:
    """Nominal share of production that interventions leave, (row, gene)."""
    left = np.ones((len(interventions), n))
    for row, done in enumerate(interventions):
        left[row, list(done.genes)] = LEFT.get(done.kind, 1.0)
    return left


def _pad(
    trajectories: Sequence[Trajectory], n: int, lineages: Sequence[str], donors: Sequence[str]
) -> Series:
    longest = max((len(t.times) for t in trajectories), default=1)
    count = len(trajectories)
    y, times = np.zeros((count, longest, n)), np.zeros((count, longest))
    known, upset = np.zeros((count, longest)), np.zeros((count, longest, 1))
    for row, t in enumerate(trajectories):
        m = len(t.times)
        y[row, :m], y[row, m:] = t.mean, t.mean[-1]
        since = t.times - t.times[0]
        times[row, :m], times[row, m:] = since, since[-1]
        known[row, :m] = 1
        if t.perturbed:
            upset[row, :, 0] = times[row] < since[-1] / 2
    of_lineage = [lineages.index(t.lineage) if len(lineages) > 1 else 0 for t in trajectories]
    return Series(
        _tensor(y),
        _tensor(times),
        _tensor(known),
        _tensor(_left([t.intervention for t in trajectories], n))[:, None],
        torch.tensor(of_lineage, dtype=torch.long),
        torch.tensor([donors.index(t.donor) for t in trajectories], dtype=torch.long),
        _tensor(upset),
    )


def _tensor(values: FloatArray) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)
