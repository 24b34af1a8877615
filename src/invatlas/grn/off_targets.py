"""Interventions that moved more than their target.

    gain_re = (y_re - y*_re)^2 / 2v - cost       of freeing gene e in experiment r, in nats

An experiment may shift the activation of a gene that it was not meant for. A shift is allowed
where the misfit of the solved steady state, and that of the gene's own equation at the measured
expression of its regulators, are both above the cost: what only lies downstream of an off-target
fails the second. So must be the distance to replicates of the same intervention, where there are
any: what they share is a fault of the equations, or an edge. Shifts are then fitted with all else
kept: a mean-shift model of outliers with a penalty on their number (She and Owen 2011, J Am Stat
Assoc 106:626).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from invatlas.grn.measured import Measured
from invatlas.grn.objective import Unknowns, descend, variance
from invatlas.grn.settings import NetworkSettings

STEPS, RATE = 150, 0.1
COLUMNS = ("experiment", "target", "off_target", "shift", "change", "gain")


def misfits(measured: Measured, unknowns: Unknowns, shift: Tensor | float = 0.0) -> Tensor:
    """How badly each gene of each experiment is told, in nats: the least of all misfits."""
    rest, gates = measured.rest, unknowns.open_gates()
    left, floor = unknowns.strengths(measured), measured.floor
    solved = unknowns.dynamics.solve_rest(left, gates, shift)
    own = floor + left * (unknowns.dynamics.production(rest.y, gates, shift) - floor)
    told = torch.stack([solved, own, _median_replicates(measured)])
    wrong = (rest.y - told).square() / variance(told, measured) / 2
    return wrong.nan_to_num(torch.inf).amin(0).masked_fill(rest.held, 0)


def _median_replicates(measured: Measured) -> Tensor:
    """Median of all rows of the same intervention, (row, gene); NaN where there is no other."""
    rest = measured.rest
    done = torch.cat([rest.left, rest.held], 1)
    _, place, count = torch.unique(done, dim=0, return_inverse=True, return_counts=True)
    told = torch.stack([rest.y[place == k].quantile(0.5, dim=0) for k in range(len(count))])
    return told.masked_fill(count[:, None] == 1, torch.nan)[place]


def find_off_targets(
    measured: Measured, unknowns: Unknowns, settings: NetworkSettings, genes: pd.Index
) -> pd.DataFrame:
    """Name the genes that experiments moved without meaning to.

    Returns
    -------
    DataFrame
        One row each, the surest first: ``experiment`` (name of the row), ``target`` (intended),
        ``off_target``, ``shift`` (of the activation), ``change`` (measured less what is expected
        without it, in units of expression), ``gain`` (nats above the cost).
    """
    if not len(measured.rest.y) or not settings.off_targets:
        return pd.DataFrame(columns=list(COLUMNS))
    with torch.no_grad():
        before = misfits(measured, unknowns)
        expected = unknowns.dynamics.solve_rest(unknowns.strengths(measured), unknowns.open_gates())
    rows, places = torch.nonzero(before > settings.off_target_cost, as_tuple=True)
    if not len(rows):
        return pd.DataFrame(columns=list(COLUMNS))
    shifts = torch.zeros(len(rows), requires_grad=True)

    def spread() -> Tensor:
        return torch.zeros_like(measured.rest.y).index_put((rows, places), shifts)

    def loss(step: int) -> Tensor:
        left, gates = unknowns.strengths(measured).detach(), unknowns.open_gates().detach()
        told = unknowns.dynamics.solve_rest(left, gates, spread())
        wrong = (measured.rest.y - told).square() / variance(told.detach(), measured) / 2
        return wrong.masked_fill(measured.rest.held, 0).sum() + shifts.square().sum() / 8

    descend(loss, [{"params": [shifts], "lr": RATE}], STEPS, lambda step, value: None)
    with torch.no_grad():
        after = misfits(measured, unknowns, spread())[rows, places]
    gain = (before[rows, places] - after - settings.off_target_cost).numpy()
    change = (measured.rest.y - expected)[rows, places].numpy()
    held = measured.rest.held.numpy()
    table = pd.DataFrame(
        {
            "experiment": [measured.rest.names[row] for row in rows],
            "target": ["+".join(genes[np.flatnonzero(held[row])]) for row in rows],
            "off_target": genes[places.numpy()],
            "shift": shifts.detach().numpy(),
            "change": change,
            "gain": gain,
        }
    )
    table = table[table["gain"] > 0].sort_values("gain", ascending=False, kind="stable")
    return table.reset_index(drop=True)


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
