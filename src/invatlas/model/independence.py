"""How far z_I depends on the laboratory e given the biology d, and z_S on d given e.

Told for z_I; for z_S the two exchange their places.

In each class d, the cells of one laboratory e are compared with those of all others by the
energy distance (Szekely and Rizzo 2013, J. Statistical Planning and Inference 143)

    2 E|X - Y| - E|X - X'| - E|Y - Y'|  >=  0,  and 0 only where X and Y are alike,

X the latents of d in e, Y those of d elsewhere. A cell of the first kind contributes

    (mean_Y |z - y| - mean_X |z - x|) / s

whose means over both sides add up to the distance. s, the mean distance of two cells of one
class, makes it a share of the spread inside a class: shrinking the latents gains nothing,
and a small residual in a tight class counts as much as a large one in a wide class.

One minibatch holds too few cells of a class and a laboratory to compare. X and Y are
therefore the cells met lately, whose latents are remembered and held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

COMPARED_CELLS = 256
REMEMBERED_CELLS = 2048
FEWEST = 2


@dataclass(frozen=True)
class RecentCells:
    """Cells met lately: latents, class, and the codes they should not tell; oldest first."""

    z: Float[Tensor, "recent latent"]
    d: Int[Tensor, " recent"]
    e: Int[Tensor, "recent covariate"]

    def joined(
        self,
        z: Float[Tensor, "compared latent"],
        d: Int[Tensor, " cell"],
        e: Int[Tensor, "cell covariate"],
    ) -> RecentCells:
        """Remember some cells, and forget the oldest beyond what is kept."""
        some = slice(COMPARED_CELLS)
        return RecentCells(
            torch.cat([self.z, z[some].detach()])[-REMEMBERED_CELLS:],
            torch.cat([self.d, d[some]])[-REMEMBERED_CELLS:],
            torch.cat([self.e, e[some]])[-REMEMBERED_CELLS:],
        )


def nobody(n_latents: int, n_covariates: int) -> RecentCells:
    """The memory before the first minibatch."""
    return RecentCells(
        torch.zeros(0, n_latents),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, n_covariates, dtype=torch.int64),
    )


def dependence(
    z: Float[Tensor, "compared latent"],
    d: Int[Tensor, " cell"],
    e: Int[Tensor, "cell covariate"],
    recent: RecentCells,
) -> Float[Tensor, ""]:
    """Mean contribution of a cell, summed over the covariates of e.

    Only the first 256 cells of a minibatch are compared. Cells whose class has fewer than
    two remembered cells on either side, or whose value of e is missing, contribute 0.
    """
    some = slice(COMPARED_CELLS)
    z, d, e = z[some], d[some], e[some]
    total = z.new_zeros(())
    if not len(recent.z):
        return total
    distance = torch.cdist(z, recent.z)
    same_class = d[:, None] == recent.d
    spread = (distance.detach() * same_class).sum() / same_class.sum().clamp_min(1)
    for c in range(e.shape[1]):
        here = same_class & (e[:, c, None] == recent.e[:, c])
        elsewhere = same_class & ~here & (recent.e[:, c] >= 0)
        n_here, n_elsewhere = here.sum(1), elsewhere.sum(1)
        enough = (n_here >= FEWEST) & (n_elsewhere >= FEWEST) & (e[:, c] >= 0)
        contrast = (
            elsewhere / n_elsewhere.clamp_min(1)[:, None] - here / n_here.clamp_min(1)[:, None]
        )
        contribution = (distance * contrast).sum(1)
        total = total + (contribution * enough).sum() / (len(z) * spread.clamp_min(1e-12))
    return total
