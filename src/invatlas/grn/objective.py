"""How well dynamics, gates and the strength of interventions tell what was measured.

loss = sum over rest     (y - y*(do))^2 / 2v       y* solved under each intervention
+ sum over seen     (y - f(y))^2 / 2v         at rest, nobody intervened
+ sum over series   (y(t + h) - step)^2 / 2v  one step ahead
+ sum_ij cost_ij P(g_ij > 0) + 10 |W_ij| g_ij  edges, in nats
+ (left - nominal)^2 / (2 0.15^2)             what interventions left
+ small ridges on sizes, lineage offsets and upset series

Series, and rest that was only seen, are divided by the mean square of their own misfit where it
is above what noise makes: a gene that cannot be told must not outweigh the cost of edges.

v_j = (noise_j^2 + noise_slope (y_j - o_j)) / 2       noise that grows with expression
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invatlas.grn.dynamics import Dynamics
from invatlas.grn.measured import Measured
from invatlas.grn.production import FAMILIES
from invatlas.grn.settings import NetworkSettings
from invatlas.grn.structure import Gates

WEIGHT_COST = 10.0
GATE_RATE, TIME_RATE = 2.5, 0.5
STRENGTH_SD, SIZE_SD, LINEAGE_SD, UPSET_COST = 0.15, 0.5, 0.5, 2.0
SERIES_BESIDE_INTERVENTIONS = 0.2
MOST_GENES_OF_NETWORKS = 40
ROWS_OF_A_SERIES = 4  # as which it counts in a minibatch


class Unknowns(nn.Module):
    """All that is learned: equations, gates, strengths, shifts.

    Parameters
    ----------
    measured
        The measurements.
    allowed
        Which edges may be, bool (regulator, target).
    settings
        Of the fit.
    member
        Number of the member.
    """

    def __init__(
        self, measured: Measured, allowed: Tensor, settings: NetworkSettings, member: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(settings.seed)
        family = FAMILIES[settings.production or choose_production(measured, member)]
        production = family(measured.centre, measured.unit, measured.floor, generator)
        timed = len(measured.series.y) > 0
        proteins = timed if settings.proteins is None else settings.proteins
        known = (len(measured.lineages), measured.time_unit, proteins, measured.logarithmic)
        self.dynamics = Dynamics(production, *known)
        self.gates = Gates(allowed)
        self.left = nn.Parameter(measured.rest.left[measured.rest.held] + 0.01)
        self.upset = nn.Parameter(torch.zeros(len(measured.series.y), 1, len(measured.centre)))

    def groups(self, rate: float) -> list[dict[str, object]]:
        """Parameters with their learning rates."""
        times = {"dynamics.log_decay"}
        rates = [
            (p, TIME_RATE if name in times else GATE_RATE if name == "gates.log_odds" else 1.0)
            for name, p in self.named_parameters()
        ]
        return [{"params": [p], "lr": rate * share} for p, share in rates]

    def strengths(self, measured: Measured) -> Tensor:
        """What interventions leave of production, (row, gene)."""
        return measured.rest.left.masked_scatter(measured.rest.held, self.left.clamp_min(0))

    def open_gates(self) -> Tensor:
        """Gates without noise, each times the chance that it is open, (regulator, target)."""
        return self.gates.middle() * self.gates.probability()


@dataclass(frozen=True, eq=False)
class Weights:
    """How much each steady state and each series counts in a member."""

    rest: Tensor
    seen: Tensor
    series: Tensor


class Objective:
    """The loss of one member at gates that were drawn; opens the file."""

    def __init__(
        self,
        measured: Measured,
        unknowns: Unknowns,
        cost: Tensor,
        weights: Weights,
        settings: NetworkSettings,
        generator: torch.Generator,
    ) -> None:
        self.measured, self.unknowns, self.cost = measured, unknowns, cost
        self.weights, self.size, self.generator = weights, settings.minibatch_size, generator
        beside = SERIES_BESIDE_INTERVENTIONS if len(measured.rest.y) else 1.0
        self.excess: dict[str, Tensor] = {}
        self.series_weight = beside if settings.series_weight is None else settings.series_weight

    def __call__(self, gates: Tensor, rise: float) -> Tensor:
        """Loss, with the cost of edges at a share of its height."""
        told = self.score_rest(gates) + self.score_seen(gates)
        told = told + self.series_weight * self.score_series(gates)
        edges = (self.cost * self.unknowns.gates.probability()).sum()
        edges = edges + WEIGHT_COST * self.unknowns.dynamics.production.weigh(gates)
        return told + rise * edges + self.score_unknowns()

    def score_rest(self, gates: Tensor) -> Tensor:
        """Misfit of steady states under interventions."""
        rest = self.measured.rest
        rows, scale = self._pick(len(rest.y))
        if not len(rows):
            return torch.zeros(())
        left = self.unknowns.strengths(self.measured)[rows]
        y = self.unknowns.dynamics.solve_rest(left, gates)
        return scale * misfit(rest.y[rows], y, self.measured, self.weights.rest[rows, None])

    def score_seen(self, gates: Tensor) -> Tensor:
        """Misfit of other steady states: each gene from the others as they were measured."""
        seen = self.measured.seen
        if len(seen) < 2:  # one row is the usual level itself
            return torch.zeros(())
        rows, scale = self._pick(len(seen))
        told = self.unknowns.dynamics.production(seen[rows], gates)
        wrong = (seen[rows] - told).square() / variance(told.detach(), self.measured)
        return scale * self._temper("seen", wrong, self.weights.seen[rows, None])

    def score_series(self, gates: Tensor) -> Tensor:
        """Misfit of series one step ahead."""
        s = self.measured.series
        rows, scale = self._pick(len(s.y), ROWS_OF_A_SERIES)
        if not len(rows):
            return torch.zeros(())
        shift = self._shift(rows)
        told = self.unknowns.dynamics.step(s.y[rows], s.times[rows], gates, s.left[rows], shift)
        wrong = (s.y[rows, 1:] - told).square() / variance(told.detach(), self.measured)
        return scale * self._temper("series", wrong, self._counts(rows))

    def score_paths(self, gates: Tensor) -> Tensor:
        """Misfit of series solved from their first time."""
        s = self.measured.series
        rows, scale = self._pick(len(s.y), ROWS_OF_A_SERIES)
        lineage = self.unknowns.dynamics.lineage_offset[s.lineage[rows]]
        y = self.unknowns.dynamics.run(s.y[rows, 0], s.times[rows], gates, s.left[rows, 0], lineage)
        return scale * misfit(s.y[rows, 1:], y[:, 1:], self.measured, self._counts(rows))

    def score_unknowns(self) -> Tensor:
        """What strengths, sizes and offsets cost away from their usual values."""
        u, nominal = self.unknowns, self.measured.rest.left[self.measured.rest.held]
        far = ((u.left - nominal) / STRENGTH_SD).square().sum()
        far = far + (u.dynamics.production.log_size / SIZE_SD).square().sum()
        far = far + (u.dynamics.lineage_offset / LINEAGE_SD).square().sum()
        smooth = (u.upset.square() + 1e-4).sqrt().sum() - 1e-2 * u.upset.numel()
        return far / 2 + UPSET_COST * smooth

    def _temper(self, kind: str, wrong: Tensor, counts: Tensor) -> Tensor:
        """Half the sum of squares, each gene's over their running mean where that is above 1."""
        every = tuple(range(wrong.ndim - 1))
        usual = (wrong.detach() * counts).sum(every) / counts.sum(every).clamp_min(1e-8)
        self.excess[kind] = 0.9 * self.excess.get(kind, usual) + 0.1 * usual
        return (wrong * counts / self.excess[kind].clamp_min(1)).sum() / 2

    def _shift(self, rows: Tensor) -> Tensor:
        s, u = self.measured.series, self.unknowns
        return u.dynamics.lineage_offset[s.lineage[rows], None] + u.upset[rows] * s.upset[rows]

    def _counts(self, rows: Tensor) -> Tensor:
        known = self.measured.series.known[rows, 1:]
        return (known * self.weights.series[rows, None]).unsqueeze(-1)

    def _pick(self, n: int, each: int = 1) -> tuple[Tensor, float]:
        """Places of a minibatch, each of so many rows, and how often it stands for itself."""
        size = max(1, self.size // each)
        if n <= size:
            return torch.arange(n), 1.0
        return torch.randperm(n, generator=self.generator)[:size], n / size


def misfit(y: Tensor, told: Tensor, measured: Measured, counts: Tensor) -> Tensor:
    """Sum of (y - told)^2 / 2v, weighted."""
    return ((y - told).square() / variance(told.detach(), measured) * counts).sum() / 2


def variance(told: Tensor, measured: Measured) -> Tensor:
    """Noise of measurements: half that of the gene, half that of any gene at such a height."""
    height = (told - measured.floor).clamp_min(measured.least_height)
    return (measured.noise.square() + measured.noise_slope * height) / 2


def choose_production(measured: Measured, member: int) -> str:
    """Family of a member: sums and small networks by turns for a few genes in time, else sums."""
    few = len(measured.centre) <= MOST_GENES_OF_NETWORKS and not len(measured.rest.y)
    return "network" if few and member % 2 else "sigmoid"
