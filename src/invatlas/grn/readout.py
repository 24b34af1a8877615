"""Edges read from fitted members.

    direct_ij  = mean over rows |df_j/dp_i| g_ij  x reach_i / spread_j      sign: that of the slope
    score_ij   = |direct_ij| / usual(direct) + share |z_ij| / usual(z)       z: evidence
    usual(s)   = rms of s over the edges that may be (of z over those it speaks of), 0.1 at least
    weight     = mean of the scores of all members, with the sign of their mean
    probability= mean of score^2 / (score^2 + c^2) over members
    stability  = share of members with P(g_ij > 0) > 1/2 and direct_ij of the sign of the weight

z are the total effects of interventions (evidence.py), with a share of 1; for a regulator nobody
intervened on the direct effect counts twice. Edges are ranked by |weight|, as benchmarks rank
them. That is not the order of probability: a score that one member alone has can make a weight
large, and is bounded in the probability. Without interventions z is a sparse linear reading of
the same data (baselines.py, lasso), with a share of 0.6: two readings that err differently rank
better than either (Marbach et al. 2012, Nat Methods 9:796). Both are in standard deviations, so
that 0.1 of one is next to nothing: without a least value the few chance hits of a large network
of pure noise would stand far above their own root mean square. c is 4; docs/networks.md says how
many edges above 1/2 were true. What the evidence alone found has a stability of 0: no equation
holds it, and no knockout is predicted to act through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from invatlas.grn.measured import Measured
from invatlas.grn.objective import Unknowns

HALF = 4.0
LEAST_USUAL = 0.1
MOST_ROWS = 1000


@dataclass(frozen=True, eq=False)
class Edges:
    """Every possible edge, each array (regulator, target); see the head of the file."""

    weight: NDArray[np.float32]
    probability: NDArray[np.float32]
    stability: NDArray[np.float32]


def read_edges(
    measured: Measured,
    allowed: Tensor,
    members: Sequence[Unknowns],
    z: Tensor,
    share: float,
) -> Edges:
    """Read edges from the members of an ensemble and the evidence z (regulator, target)."""
    direct = torch.stack([read_slopes(measured, unknowns) for unknowns in members])
    scores = torch.stack([score_edges(slopes, z, allowed, share) for slopes in direct])
    size, sign = scores.abs(), scores.mean(0).sign()
    probability = size.square() / (size.square() + HALF**2)
    gates = torch.stack([unknowns.gates.probability().detach() for unknowns in members])
    held = (gates > 0.5) & (direct.sign() == sign)
    return Edges(
        (size.mean(0) * sign).numpy(), probability.mean(0).numpy(), held.float().mean(0).numpy()
    )


def read_slopes(measured: Measured, unknowns: Unknowns) -> Tensor:
    """Direct effects in one member, in standard deviations, (regulator, target)."""
    slope: Tensor = unknowns.dynamics.production.slope(
        stack_regulators(measured, unknowns), unknowns.open_gates()
    )
    return slope * measured.reach[:, None] / measured.spread


def score_edges(direct: Tensor, z: Tensor, allowed: Tensor, share: float) -> Tensor:
    """Signed score of every edge in one member, (regulator, target)."""
    direct = _scale(direct, allowed)
    total = torch.where(z.isnan(), direct, share * _scale(z.nan_to_num(), allowed & ~z.isnan()))
    return (direct.abs() + total.abs()) * (direct + total).sign()


def stack_regulators(measured: Measured, unknowns: Unknowns) -> Tensor:
    """What regulates at up to 1,000 measurements: proteins in series, expression at rest."""
    s = measured.series
    p = measured.points[:0]
    if len(s.y):
        p = unknowns.dynamics.follow_proteins(s.y, s.times)[s.known > 0]
    rows = torch.cat([measured.rest.y, measured.seen, p]).detach()
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
    return rows[chosen]


def tabulate_edges(edges: Edges, genes: pd.Index, regulators: NDArray[np.bool_]) -> pd.DataFrame:
    """One row an edge, the largest weight first whatever its sign; see the head of the file.

    Returns
    -------
    DataFrame
        ``regulator``, ``target``, ``sign`` (+1 raises, -1 lowers, 0 not told), ``weight`` (score,
        signed), ``probability`` and ``stability`` (both 0 to 1).
    """
    allowed = regulators[:, None] & ~np.eye(len(genes), dtype=bool)
    source, target = np.nonzero(allowed)
    weight = edges.weight[source, target]
    table = pd.DataFrame(
        {
            "regulator": genes.to_numpy()[source],
            "target": genes.to_numpy()[target],
            "sign": np.sign(weight).astype(int),
            "weight": weight,
            "probability": edges.probability[source, target],
            "stability": edges.stability[source, target],
        }
    )
    order = np.argsort(-np.abs(weight), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def _scale(effects: Tensor, allowed: Tensor) -> Tensor:
    """Effects over their usual size; 0 where no edge may be."""
    effects = effects * allowed
    square = effects.square().sum() / allowed.sum().clamp_min(1)
    return effects / square.sqrt().clamp_min(LEAST_USUAL)
