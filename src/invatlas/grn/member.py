"""One member of the ensemble: what it weighs, and how its unknowns are found.

A member weighs donors, series and rows by draws of Exp(1), the Bayesian bootstrap (Rubin 1981,
Ann Stat 9:130); the first weighs all alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invatlas.errors import TrainingError
from invatlas.grn.evidence import prefer, total_effects
from invatlas.grn.measured import NOBODY, Measured
from invatlas.grn.objective import Objective, Unknowns, Weights
from invatlas.grn.settings import NetworkSettings

WARM_UP, RISE = 20, 0.3
LAST_RATE = 0.05
MOST_REFINED, REFINE_STEPS = 64, 150

Report = Callable[[int, float], None]


def fit_member(
    measured: Measured,
    allowed: Tensor,
    prior: Tensor | None,
    settings: NetworkSettings,
    member: int,
    report: Report,
) -> Unknowns:
    """Fit one member of the ensemble.

    Parameters
    ----------
    measured
        The measurements.
    allowed
        Which edges may be, bool (regulator, target).
    prior
        Prior network (regulator, target), 0 where it holds no edge.
    settings
        Of the fit.
    member
        Number of the member; 0 has equal weights.
    report
        Called with the step and the loss.

    Raises
    ------
    TrainingError
        If the loss is no finite number.
    """
    unknowns = Unknowns(measured, allowed, settings, member)
    weights = draw_weights(measured, member, settings.seed)
    preference = prefer(total_effects(measured), prior, len(measured.centre))
    objective = Objective(
        measured,
        unknowns,
        settings.edge_cost * (1 + settings.evidence * (1 - preference)),
        weights,
        settings,
        torch.Generator().manual_seed(1000 * settings.seed + member),
    )

    def loss(step: int) -> Tensor:
        gates = unknowns.gates.sample(objective.generator)
        return objective(gates, min(1.0, step / (settings.steps * RISE)))

    descend(loss, unknowns.groups(settings.learning_rate), settings.steps, report)
    if steps := choose_refinement(measured, settings, member):
        unknowns.gates.requires_grad_(False)

        def refined(step: int) -> Tensor:
            gates = unknowns.open_gates()
            paths = objective.series_weight * objective.score_paths(gates)
            return objective(gates, 1.0) + paths

        groups = unknowns.groups(settings.learning_rate / 4)
        descend(refined, groups, steps, lambda step, value: report(settings.steps + step, value))
    return unknowns


def draw_weights(measured: Measured, member: int, seed: int) -> Weights:
    """Weights of one member: 1 in the first, else Exp(1) for donors, or for series and rows.

    Donors are drawn where there are several of them; rows at rest whose donor nobody knows are
    drawn one by one.
    """
    sizes = len(measured.rest.y), len(measured.seen), len(measured.series.y)
    if member == 0:
        return Weights(*map(torch.ones, sizes))
    generator = torch.Generator().manual_seed(1000 * seed + member)

    def draw(n: int) -> Tensor:
        weights = torch.empty(n).exponential_(generator=generator)
        return weights * n / weights.sum().clamp_min(1e-8)

    rest, seen = draw(sizes[0]), draw(sizes[1])
    of_donor, of_series = draw(len(measured.donors)), draw(sizes[2])
    if len(measured.donors) < 2:
        return Weights(rest, seen, of_series)

    def by_donor(donor: Tensor, alone: Tensor) -> Tensor:
        return torch.where(donor == NOBODY, alone, of_donor[donor])

    return Weights(
        by_donor(measured.rest.donor, rest),
        by_donor(measured.seen_donor, seen),
        of_donor[measured.series.donor],
    )


def choose_refinement(measured: Measured, settings: NetworkSettings, member: int) -> int:
    """Steps on whole trajectories: none for single cells, and for members that find edges only."""
    several = 2 <= len(measured.series.y) <= MOST_REFINED and not bool(measured.series.upset.any())
    usual = REFINE_STEPS if several else 0
    return 0 if member else usual if settings.refine_steps is None else settings.refine_steps


def descend(
    loss: Callable[[int], Tensor], groups: list[dict[str, object]], steps: int, report: Report
) -> None:
    """Adam with a warm-up and a cosine down to a twentieth of the rate.

    Raises
    ------
    TrainingError
        If the loss is no finite number.
    """
    optimizer = torch.optim.Adam(groups)

    def rate(step: int) -> float:
        fall = (1 + math.cos(math.pi * step / steps)) / 2
        return min(1.0, (step + 1) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * fall)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(steps):
        value = loss(step)
        if not torch.isfinite(value):
            raise TrainingError(
                f"The loss is {float(value.detach())} at step {step}; a smaller learning_rate may "
                "help, or expression on a smaller scale."
            )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        report(step, float(value.detach()))
