"""How far z_I depends on the laboratory e given the biology d, and z_S on d given e.

Told for z_I; for z_S the two exchange their places.

In each class d, the cells of one laboratory e are compared with those of all others by the
energy distance (Szekely and Rizzo 2013, J. Statistical Planning and Inference 143)

    2 E|X - Y| - E|X - X'| - E|Y - Y'|  >=  0,  and 0 only where X and Y are alike,

X the latents of d in e, Y those of d elsewhere. A cell of the first kind contributes

    (E|z - Y| - E|z - X|) / s

whose means over both sides add up to the distance. s, the mean distance of two cells of one
class, makes it a share of the spread inside a class: shrinking the latents gains nothing,
and a small residual in a tight class counts as much as a large one in a wide class.

One minibatch holds too few cells of a class and a laboratory to compare. X and Y are
therefore drawn, a few of each, from the cells met lately, whose latents are remembered and
held fixed: the estimate is unbiased, and its cost does not grow with what is remembered.
No cell is compared with what it was itself: the distance to that is short, its gradient as
long as any other's, and it would push the cell on the way it is going.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invatlas.model.kernels import energy_contrast

COMPARED_CELLS = 256
REMEMBERED_CELLS = 8192
DRAWS = 32
FEWEST = 3  # of remembered cells on each side


@dataclass(frozen=True)
class RecentCells:
    """Cells met lately: which they are, latents, class, and codes they should not tell.

    Each cell is there once, the oldest first.
    """

    rows: Int[Tensor, " recent"]
    z: Float[Tensor, "recent latent"]
    d: Int[Tensor, " recent"]
    e: Int[Tensor, "recent covariate"]

    def find_others(self, rows: Int[Tensor, " cell"]) -> Int[Tensor, " kept"]:
        """Positions of those that are none of some cells."""
        ordered = rows.sort().values  # faster than torch.isin
        place = torch.searchsorted(ordered, self.rows).clamp_max(len(ordered) - 1)
        return (ordered[place] != self.rows).nonzero()[:, 0]

    def at(self, positions: Int[Tensor, " kept"]) -> RecentCells:
        """Those at some positions."""
        parts = (part.index_select(0, positions) for part in (self.rows, self.z, self.d, self.e))
        return RecentCells(*parts)

    def joined(
        self,
        rows: Int[Tensor, " cell"],
        z: Float[Tensor, "compared latent"],
        d: Int[Tensor, " cell"],
        e: Int[Tensor, "cell covariate"],
    ) -> RecentCells:
        """Remember some other cells, and forget the oldest beyond what is kept."""
        some = slice(COMPARED_CELLS)
        return RecentCells(
            torch.cat([self.rows, rows[some]])[-REMEMBERED_CELLS:],
            torch.cat([self.z, z[some].detach()])[-REMEMBERED_CELLS:],
            torch.cat([self.d, d[some]])[-REMEMBERED_CELLS:],
            torch.cat([self.e, e[some]])[-REMEMBERED_CELLS:],
        )


def nobody(n_latents: int, n_covariates: int) -> RecentCells:
    """The memory before the first minibatch."""
    return RecentCells(
        torch.zeros(0, dtype=torch.int64),
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
    three remembered cells on either side, or whose value of e is missing, contribute 0.
    """
    some = slice(COMPARED_CELLS)
    z, d, e = z[some], d[some], e[some]
    total = z.new_zeros(())
    if not len(recent.z):
        return total
    for c in range(e.shape[1]):
        drawn, enough = draw_partners(d, e[:, c], recent.d, recent.e[:, c])
        partners = recent.z.index_select(0, drawn.view(-1)).view(*drawn.shape, -1)
        total = total + energy_contrast(z, partners, enough)
    return total


def draw_partners(
    d: Int[Tensor, " compared"],
    e: Int[Tensor, " compared"],
    recent_d: Int[Tensor, " recent"],
    recent_e: Int[Tensor, " recent"],
) -> tuple[Int[Tensor, "compared drawn"], Bool[Tensor, " compared"]]:
    """Positions of remembered cells of the same class, and for which cells there are enough.

    The first half of each row is drawn from the same value of e, the second from the others.
    """
    width = int(torch.maximum(e.max(), recent_e.max())) + 2  # a missing value is the first
    keys, order = (recent_d * width + recent_e + 1).sort()
    low = d * width
    own = low + e + 1
    bounds = torch.stack([low + 1, own, own + 1, low + width])
    class_start, start, end, class_end = torch.searchsorted(keys, bounds)
    n = torch.stack([end - start, class_end - class_start - (end - start)])
    enough = (n >= FEWEST).all(0) & (e >= 0)
    first = torch.stack([start, class_start])
    here, elsewhere = first[:, :, None] + (torch.rand(2, len(d), DRAWS) * n[:, :, None]).long()
    elsewhere += n[0, :, None] * (elsewhere >= start[:, None])
    drawn = torch.cat([here, elsewhere], 1).clamp_max(len(keys) - 1)
    return order[drawn], enough
