"""What interventions say of an edge before any equation: total effects.

    z_ij = - sum_r dose_r (y_rj - centre_j) / sqrt(sum_r dose_r^2) / spread_j

over the rows r in which gene i alone was intervened on; dose is the share of production taken
away (1 in a knockout, 1/2 in a knockdown, negative in an over-expression). A total effect may go
through other genes: the fitted equations tell which; here it makes an edge dearer or cheaper.

    cost_ij = edge_cost (1 + evidence (1 - preference_ij)),   preference_ij = 1 - exp(-|z_ij|)

or the preference of a prior network: 1 for an edge it holds, or 1/2 where nothing is known.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.grn.measured import Measured

UNKNOWN = 0.5


def total_effects(measured: Measured) -> Float[Tensor, "regulator target"] | None:
    """Effects of interventions z, signed as an edge is; None without interventions on one gene.

    Rows of genes nobody intervened on are NaN.
    """
    rest = measured.rest
    alone = rest.held.sum(1) == 1
    if not alone.any():
        return None
    y, source = rest.y[alone], rest.held[alone].float().argmax(1)
    dose = (1 - rest.left[alone]).gather(1, source[:, None])
    n = len(measured.centre)
    change = torch.zeros(n, n).index_add_(0, source, dose * (y - measured.centre))
    square = torch.zeros(n).index_add_(0, source, dose[:, 0].square())
    z = -change / square.sqrt()[:, None] / measured.spread
    return z.masked_fill((square == 0)[:, None], torch.nan)


def prefer(z: Tensor | None, prior: Tensor | None, n_genes: int) -> Tensor:
    """Preference for every edge, (regulator, target), between 0 and 1."""
    preference = torch.full((n_genes, n_genes), UNKNOWN)
    if z is not None:
        preference = torch.where(z.isnan(), UNKNOWN, -torch.expm1(-z.nan_to_num().abs()))
    if prior is not None:
        preference = torch.where(prior != 0, torch.ones(()), preference)
    return preference
