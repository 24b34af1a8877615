"""What the cells of each combination are once a model is fitted, and what nobody measured.

    m_d        mean and log-variance of z_I under the posteriors of the n_d cells of d
    m_d        = H_d beta + r_d       least squares, weights w_d = n_d / (n_d + K)
    m(P)       = sum_d P_d (H_d beta + w_d r_d)          c(P) = sum_d P_d w_d

P weighs combinations; its sum may be 1 over combinations none of which has cells. What a target Q
has of its own is then not known, and it keeps the source's: m(P, Q) = m(Q) + (1 - c(Q)) r(P). How
far that may be off the others say: a draw moves it by sqrt(2 (1 - c(Q)) / f) sum_d xi_d sqrt(w_d)
r_d, xi_d from N(0, 1), f their degrees of freedom, once for the target and once for the source.

The mean of posteriors is what a prior should be (Tomczak and Welling 2018, arXiv 1705.07120). The
priors themselves also have to tell classes apart, which moves them, those of combinations without
a cell most: they are nobody's, and every cell says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invatlas.model.priors import DiagonalGaussian

K = 10.0  # cells that weigh as much as what all combinations have in common


class Measured(nn.Module):
    """Moments of the combinations of a prior's table, zero cells until some are counted."""

    cells: Tensor
    mean: Tensor
    log_variance: Tensor

    def __init__(self, n_combinations: int, n_latents: int) -> None:
        super().__init__()
        self.register_buffer("cells", torch.zeros(n_combinations))
        self.register_buffer("mean", torch.zeros(n_combinations, n_latents))
        self.register_buffer("log_variance", torch.zeros(n_combinations, n_latents))

    def count(self, q: DiagonalGaussian, combination: Int[Tensor, " cell"]) -> None:
        """Take the moments of some cells, each of one combination."""
        cells = torch.bincount(combination, minlength=len(self.cells)).to(q.mean.dtype)
        divisor = cells.clamp_min(1)[:, None]
        mean = torch.zeros_like(self.mean).index_add_(0, combination, q.mean) / divisor
        spread = (q.mean - mean[combination]).square() + q.variance
        total = torch.zeros_like(self.mean).index_add_(0, combination, spread)
        pooled = total.sum(0) / cells.sum().clamp_min(1)
        variance = (total + K * pooled) / (cells[:, None] + K)
        self.cells.copy_(cells)
        self.mean.copy_(mean)
        self.log_variance.copy_(variance.clamp_min(1e-6).log())

    def additive(self, has_value: Float[Tensor, "combination value"]) -> Additive:
        """Split the moments into what each value adds and what is a combination's own."""
        weight = self.cells / (self.cells + K)
        y = torch.cat([self.mean, self.log_variance], 1).double()
        root = weight.double().sqrt()[:, None]
        weighed = root * has_value.double()
        effects = torch.linalg.pinv(weighed) @ (root * y)
        own = y - has_value.double() @ effects
        freedom = int((self.cells > 0).sum()) - int(torch.linalg.matrix_rank(weighed))
        departures = (root * own)[:, : self.mean.shape[1]] / max(freedom, 1) ** 0.5
        parts = effects, weight[:, None] * own, weight[:, None], departures
        return Additive(*(part.float() for part in parts))


@dataclass(frozen=True)
class Additive:
    """beta, w_d r_d, w_d and sqrt(w_d / f) r_d; log-variances stand right of the means."""

    effects: Float[Tensor, "value moment"]
    own: Float[Tensor, "combination moment"]
    weight: Float[Tensor, "combination 1"]
    departures: Float[Tensor, "combination latent"]

    def at(
        self, values: Float[Tensor, "kind value"], combinations: Float[Tensor, "kind combination"]
    ) -> Float[Tensor, "kind moment"]:
        """m(P), given what P makes of the values."""
        return values @ self.effects + combinations @ self.own

    def coverage(self, combinations: Float[Tensor, "kind combination"]) -> Float[Tensor, "kind 1"]:
        """c(P), 0 to 1."""
        return (combinations @ self.weight).clamp(0, 1)
