"""Interventions that moved more than their target.

Several experiments on one gene i (guides, doses) tell an edge from an off-target. Let Delta_re be
the change of gene e in experiment r of i, and dose_r the share of production taken away.

    edge        Delta_re = b_e dose_r in every experiment of i
    off-target  Delta_re free in one experiment, 0 in the others
    gain_re     = (misfit of the edge - misfit of the off-target) / 2v    both have one parameter

A gene that only lies downstream of an off-target gains as well. So the gene's own equation, told
the measured expression of its regulators and with the gate of i shut, must fail by as much:

    own_re      = (y_re - f_e(y_r without i))^2 / 2v

Both must be above the cost, and so high that less than one of the T genes and experiments looked
at would be by chance: half the square of a normal number is above g with probability
erfc(sqrt(g)), so T erfc(sqrt(g)) < 1. This is a mean-shift model of outliers with a penalty on
their number (She and Owen 2011, J Am Stat Assoc 106:626). An edge so steep that a smaller dose
does nothing looks the same, so the verdict is sure only where another experiment in the same
direction, of the same dose or a greater one, moved nothing. Doses are those that were learned, not
the nominal ones: a guide that cut nothing is no evidence. A gene with one experiment tells nothing.
"""

from __future__ import annotations

import pandas as pd
import torch
from scipy.special import erfcinv
from torch import Tensor

from invatlas.grn.measured import Measured
from invatlas.grn.objective import Unknowns, variance
from invatlas.grn.settings import NetworkSettings

COLUMNS = ("experiment", "target", "off_target", "change", "gain", "verdict")
SURE, UNSURE = "off-target", "off-target or steep edge"
SAME_DOSE = 0.9  # share from which on a learned dose is as strong as another


def find_off_targets(
    measured: Measured, unknowns: Unknowns, settings: NetworkSettings, genes: pd.Index
) -> pd.DataFrame:
    """Name the genes that experiments moved without meaning to.

    Returns
    -------
    DataFrame
        One row each, the surest first: ``experiment`` (name of the row), ``target`` (intended),
        ``off_target``, ``change`` (measured less the usual level, in units of expression),
        ``gain`` (nats, the lesser of the two), ``verdict`` (``off-target``, or ``off-target or
        steep edge`` where only smaller doses moved nothing).
    """
    found: list[dict[str, object]] = []
    held, left = measured.rest.held, unknowns.strengths(measured).detach()
    single = held.sum(1) == 1
    bar = max(settings.off_target_cost, chance_gain(int(single.sum()) * held.shape[1]))
    for source in torch.nonzero(held[single].any(0))[:, 0].tolist() * settings.off_targets:
        rows = torch.nonzero(single & held[:, source])[:, 0]
        if len(rows) < 2:
            continue
        dose = 1 - left[rows, source]
        gain = torch.minimum(
            compare_causes(measured, rows, dose),
            doubt_equation(measured, unknowns, rows, source),
        )
        gain[:, source] = 0
        matched = (dose * dose[:, None].sign() >= SAME_DOSE * dose[:, None].abs()).sum(1) > 1
        for k, gene in torch.nonzero(gain > bar).tolist():
            row = int(rows[k])
            change = measured.rest.y[row, gene] - measured.centre[gene]
            names = (measured.rest.names[row], genes[source], genes[gene])
            numbers = (float(change), float(gain[k, gene]))
            verdict = SURE if bool(matched[k]) else UNSURE
            found.append(dict(zip(COLUMNS, (*names, *numbers, verdict), strict=True)))
    table = pd.DataFrame(found, columns=list(COLUMNS))
    table = table.sort_values(["verdict", "gain"], ascending=[True, False], kind="stable")
    return table.reset_index(drop=True)


def chance_gain(looked_at: int) -> float:
    """Nats that one of so many genes and experiments gains by chance."""
    return float(erfcinv(1 / max(1, looked_at)) ** 2)


def compare_causes(measured: Measured, rows: Tensor, dose: Tensor) -> Tensor:
    """Nats by which an off-target of one experiment tells more than an edge, (row, gene)."""
    y, dose = measured.rest.y[rows], dose[:, None]
    square = (y - measured.centre).square()
    slope = (dose * (y - measured.centre)).sum(0) / dose.square().sum().clamp_min(1e-8)
    edge = (y - measured.centre - dose * slope).square().sum(0)
    free = square.sum(0) - square
    return (edge - free) / 2 / variance(measured.centre, measured)


def doubt_equation(measured: Measured, unknowns: Unknowns, rows: Tensor, source: int) -> Tensor:
    """Misfit of each gene's own equation without a regulator, in nats, (row, gene)."""
    gates = unknowns.open_gates().detach().clone()
    gates[source] = 0
    with torch.no_grad():
        told: Tensor = unknowns.dynamics.production(measured.rest.y[rows], gates)
        wrong: Tensor = (measured.rest.y[rows] - told).square() / variance(told, measured) / 2
    return wrong


def tabulate_strengths(measured: Measured, unknowns: Unknowns, genes: pd.Index) -> pd.DataFrame:
    """What each intervention left of its target's production: nominal, and as it was learned."""
    rows, places = torch.nonzero(measured.rest.held, as_tuple=True)
    return pd.DataFrame(
        {
            "experiment": [measured.rest.names[row] for row in rows],
            "target": genes[places.numpy()],
            "nominal": measured.rest.left[rows, places].numpy(),
            "left": unknowns.left.detach().clamp_min(0).numpy(),
        }
    )
