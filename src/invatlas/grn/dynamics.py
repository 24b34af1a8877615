"""Dynamics of a network.

    dy_j/dt = d_j (m_j f_j(p) - y_j)         expression; at rest y = m f(y)
    dp_j/dt = k_j (y_j - p_j)                protein, if there are any; else p = y
    m f  ->  log(1 + m (e^f - 1))            where y is a logarithm, log(1 + counts)

f is the production (production.py), d_j the decay, k_j = d_j / 5 the turnover of a protein: half-
lives of 46 and 9 hours are the medians of proteins and transcripts (Schwanhäusser et al. 2011,
Nature 473:337). m_j is 1, or what an intervention leaves of the production, in linear units
whatever the scale: do(g) is an m_g. Over a step in which regulators move little both equations
have exact solutions, which make the loss:

    y(t + h) = y(t) e^(-d h) + (1 - e^(-d h)) (f(t) + f(t + h)) / 2
    p(t + h) = p(t) e^(-k h) + k int_0^h e^(-k (h - s)) y(t + s) ds,  y between its points a line
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from invatlas.errors import TrainingError
from invatlas.grn.production import Production

ITERATIONS = 12
STRIDES, STRIDE = 200, 0.2
RESTLESSNESS = 0.01  # of a gene's height: the most that production and decay differ at rest
PROTEIN_LIFE = 5.0  # half-life of proteins beside that of their transcripts
SUBSTEPS = 2
MOST_EXPRESSION = 1e6  # in usual levels, or starts; beyond it a solution has run away
MOST_SOLVER_STEPS = 1000  # between two times; stiff equations need ever more
MOST_LOG = 50.0  # its exponential is still a number, and no count


class Dynamics(nn.Module):
    """Production, decay and proteins of every gene, for several lineages.

    Parameters
    ----------
    production
        How regulators make production.
    lineages
        How many lineages; each has an offset of its own beside the shared edges.
    time_unit
        Typical time between two measurements: decay starts at 1 over it.
    proteins
        Whether genes act through proteins.
    logarithmic
        Whether expression is log(1 + counts per 10,000): what is left of production is a share of
        the counts, not of their logarithm.
    """

    production: Production
    proteins: bool
    logarithmic: bool

    def __init__(
        self,
        production: Production,
        lineages: int,
        time_unit: float,
        proteins: bool,
        logarithmic: bool = False,
    ) -> None:
        super().__init__()
        n = len(production.floor)
        self.production = production
        self.proteins = proteins
        self.logarithmic = logarithmic
        self.lineage_offset = nn.Parameter(torch.zeros(lineages, n))
        self.log_decay = nn.Parameter(torch.full((n,), -math.log(time_unit)))

    @property
    def log_turnover(self) -> Tensor:
        """Logarithm of the turnover of proteins, (gene,)."""
        return self.log_decay - math.log(PROTEIN_LIFE)

    def produce(
        self,
        p: Float[Tensor, "*row gene"],
        gates: Tensor,
        left: Tensor,
        shift: Tensor | float = 0.0,
    ) -> Float[Tensor, "*row gene"]:
        """Production of every gene under an intervention, m f.

        Parameters
        ----------
        p
            Proteins, or expression where there are none.
        gates, left, shift
            Of edges; what interventions leave, m; of activations.
        """
        f: Tensor = self.production(p, gates, shift)
        if not self.logarithmic:
            floor = self.production.floor
            return floor + left * (f - floor)
        return torch.where(left == 1, f, torch.log1p(left * torch.expm1(f.clamp_max(MOST_LOG))))

    def solve_rest(
        self,
        left: Float[Tensor, "row gene"],
        gates: Tensor,
        shift: Tensor | float = 0.0,
        iterations: int = ITERATIONS,
        stride: float = 1.0,
    ) -> Float[Tensor, "row gene"]:
        """Steady states by iterating y = m f(y), from the usual levels.

        Whole strides arrive soonest where regulation goes down a cascade; a strong feedback that
        is at rest in time may throw them to and fro for ever: :meth:`settle`.

        Parameters
        ----------
        left
            What interventions leave of each gene's production, m.
        gates, shift
            Of edges, and of activations.
        iterations
            How many.
        stride
            Share of the way that each of them goes.
        """
        y = self.production.centre.expand(left.shape)
        for _ in range(iterations):
            y = y.lerp(self.produce(y, gates, left, shift), stride)
        return y

    def settle(
        self, left: Float[Tensor, "row gene"], gates: Tensor, shift: Tensor | float = 0.0
    ) -> Float[Tensor, "row gene"]:
        """Steady states by short strides, which come to rest wherever strong feedback does."""
        return self.solve_rest(left, gates, shift, STRIDES, STRIDE)

    def is_at_rest(
        self,
        y: Float[Tensor, "row gene"],
        gates: Tensor,
        left: Tensor,
        shift: Tensor | float = 0.0,
    ) -> Bool[Tensor, "row gene"]:
        """Where m f(y) = y, to a hundredth of a gene's height."""
        change = (self.produce(y, gates, left, shift) - y).abs()
        return change <= RESTLESSNESS * self.production.level

    def follow_proteins(
        self, y: Float[Tensor, "series time gene"], times: Float[Tensor, "series time"]
    ) -> Float[Tensor, "series time gene"]:
        """Proteins along measured expression, from rest at the first time."""
        if not self.proteins:
            return y
        k, p = self.log_turnover.exp(), [y[:, 0]]
        for a in range(1, y.shape[1]):
            h = (times[:, a] - times[:, a - 1]).unsqueeze(-1)
            lost = -torch.expm1(-k * h)
            slope = (y[:, a] - y[:, a - 1]) / h.clamp_min(1e-12)
            lagged = y[:, a - 1] * lost + slope * (h - lost / k)
            p.append(torch.where(h > 0, p[-1] * (1 - lost) + lagged, p[-1]))
        return torch.stack(p, 1)

    def step(
        self,
        y: Float[Tensor, "series time gene"],
        times: Float[Tensor, "series time"],
        gates: Tensor,
        left: Tensor,
        shift: Tensor | float = 0.0,
    ) -> Float[Tensor, "series later gene"]:
        """Expression at each time but the first, from what was measured before and around it."""
        f = self.produce(self.follow_proteins(y, times), gates, left, shift)
        kept = torch.exp(-self.log_decay.exp() * times.diff(dim=1).unsqueeze(-1))
        later: Tensor = y[:, :-1] * kept + (1 - kept) * (f[:, 1:] + f[:, :-1]) / 2
        return later

    def run(
        self,
        start: Float[Tensor, "series gene"],
        times: Float[Tensor, "series time"],
        gates: Tensor,
        left: Tensor,
        shift: Tensor | float = 0.0,
    ) -> Float[Tensor, "series time gene"]:
        """Trajectories on times of their own, by exponential steps that no decay can upset.

        y(t + h) = y e^(-d h) + (1 - e^(-d h)) f(p), and so for p: first order, two steps between
        measurements; :meth:`solve` is the one to trust for what was not measured.
        """
        y = p = start
        path = [start]
        for h in (times.diff(dim=1) / SUBSTEPS).unbind(1):
            kept, old = (torch.exp(-rate.exp() * h[:, None]) for rate in self._rates())
            for _ in range(SUBSTEPS):
                f = self.produce(p, gates, left, shift)
                p = p * old + (1 - old) * y if self.proteins else y
                y = y * kept + (1 - kept) * f
            path.append(y)
        return torch.stack(path, 1)

    def _rates(self) -> tuple[Tensor, Tensor]:
        return self.log_decay, self.log_turnover

    def solve(
        self,
        start: Float[Tensor, "series gene"],
        times: Float[Tensor, " time"],
        gates: Tensor,
        left: Tensor,
        shift: Tensor | float = 0.0,
        method: str = "dopri5",
        adjoint: bool = False,
    ) -> Float[Tensor, "series time gene"]:
        """Trajectories from a start, by torchdiffeq.

        Parameters
        ----------
        start
            Expression at the first time; proteins start at rest with it.
        times
            Rising.
        gates, left, shift
            Of edges; of interventions; of activations.
        method
            ``dopri5`` (adaptive) or ``rk4`` (a step between two times).
        adjoint
            Whether gradients come from the adjoint equation: memory does not grow with the span.

        Raises
        ------
        TrainingError
            If the solver fails, or expression runs away.
        """
        from torchdiffeq import odeint, odeint_adjoint

        field = _Field(self, gates, left, shift)
        state = torch.cat([start, start], -1) if self.proteins else start
        height = float(self.production.level.mean())
        choices: dict[str, object] = {"method": method}
        if method == "dopri5":
            most = {"max_num_steps": MOST_SOLVER_STEPS}
            choices |= {"rtol": 1e-4, "atol": 1e-5 * height, "options": most}
        if adjoint:  # it sees the parameters of a module, and no tensor beside them
            choices["adjoint_params"] = field.learned()
        solver: Callable[..., Tensor] = odeint_adjoint if adjoint else odeint
        try:
            path = solver(field, state, times, **choices)
        except (AssertionError, RuntimeError) as error:
            raise TrainingError(
                f"The solver {method} gave up within {float(times[-1] - times[0]):g} of time "
                f"({error}); the dynamics are too stiff for it. Fixed steps (method='rk4') or a "
                "unit of time in which changes are slower may help."
            ) from error
        y = path[..., : start.shape[-1]].movedim(0, 1)
        if not (y.abs() <= MOST_EXPRESSION * (height + start.abs().max())).all():
            raise TrainingError(
                "Expression ran away while the dynamics were solved; they are too stiff, or a "
                f"span of {float(times[-1] - times[0]):g} is too long."
            )
        return y


class _Field(nn.Module):
    """Right-hand side of the equations, for a solver."""

    def __init__(
        self, dynamics: Dynamics, gates: Tensor, left: Tensor, shift: Tensor | float
    ) -> None:
        super().__init__()
        self.dynamics, self.gates, self.left, self.shift = dynamics, gates, left, shift

    def learned(self) -> tuple[Tensor, ...]:
        """All that a gradient may reach: parameters, and what was handed over beside them."""
        given = (self.gates, self.left, self.shift)
        tensors = (*self.parameters(), *(g for g in given if isinstance(g, Tensor)))
        return tuple(t for t in tensors if t.requires_grad)

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        d = self.dynamics
        n = len(d.log_decay)
        y = state[..., :n]
        p = state[..., n:] if d.proteins else y
        dy = d.log_decay.exp() * (d.produce(p, self.gates, self.left, self.shift) - y)
        return torch.cat([dy, d.log_turnover.exp() * (y - p)], -1) if d.proteins else dy
