"""What the cells of each combination are once a model is fitted, and what nobody measured.

    m_d        mean and log-variance of z_I under the posteriors of the n_d cells of d
    m_d        = H_d beta + r_d       least squares, weights w_d = n_d / (n_d + K)
    m(P)       = sum_d P_d (H_d beta + w_d r_d)          c(P) = sum_d P_d w_d

P weighs combinations; its sum may be 1 over combinations none of which has cells. What a target Q
has of its own is then not known, and it keeps the source's: m(P, Q) = m(Q) + (1 - c(Q)) r(P). How
far that may be off the others say: a draw moves it by sqrt(2 (1 - c(Q)) / f) sum_d xi_d sqrt(w_d)
r_d, xi_d from N(0, 1), f their degrees of freedom, once for the target and once for the source,
and by the standard error of m(P, Q) - m(P), which is a weighted sum of the m_d.

The mean of posteriors is what a prior should be (Tomczak and Welling 2018, arXiv 1705.07120). The
priors themselves also have to tell classes apart, which moves them, those of combinations without
a cell most: they are nobody's, and every cell says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invatlas.model.priors import ConditionalGaussians, DiagonalGaussian

K = 10.0  # cells that weigh as much as what all combinations have in common


class Measured(nn.Module):
    """Moments of the combinations of a prior's table, zero cells until some are counted."""

    cells: Tensor
    mean: Tensor
    log_variance: Tensor
    hidden: Tensor  # mean of what each layer of z_I's encoder normalises (combination, layer, unit)

    def __init__(self, n_combinations: int, n_latents: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("cells", torch.zeros(n_combinations))
        self.register_buffer("mean", torch.zeros(n_combinations, n_latents))
        self.register_buffer("log_variance", torch.zeros(n_combinations, n_latents))
        self.register_buffer("hidden", torch.zeros(n_combinations, layers, hidden))

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
        h, weight = has_value.double(), self.cells.double() / (self.cells + K)
        root = weight.sqrt()
        values = torch.linalg.pinv(root[:, None] * h) * root
        rest = torch.eye(len(h), dtype=h.dtype) - h @ values
        freedom = int((self.cells > 0).sum()) - int(torch.linalg.matrix_rank(root[:, None] * h))
        departures = root[:, None] * (rest @ self.mean.double()) / max(freedom, 1) ** 0.5
        parts = values, weight[:, None] * rest, weight[:, None], departures
        return Additive(*(part.float() for part in parts))

    def at(self, weights: Float[Tensor, "kind combination"]) -> ConditionalGaussians:
        """Gaussians whose means and log-variances are weighted sums."""
        moments = weights @ self.mean, weights @ self.log_variance
        return ConditionalGaussians(*moments, weights.new_zeros(len(weights)))

    def error(self, weights: Float[Tensor, "kind combination"]) -> Float[Tensor, "kind latent"]:
        """Standard error of a weighted sum of the means, the cells being few."""
        squared = self.log_variance.exp() / self.cells.clamp_min(1)[:, None]
        return (weights.square() @ squared).sqrt()


@dataclass(frozen=True)
class Additive:
    """How the moments of the combinations make those of any other.

    Attributes
    ----------
    values
        What each combination says of the effect of each value, beta = values m.
    own
        What it says of each combination's own, w_d r_d = own m.
    weight
        w_d.
    departures
        sqrt(w_d / f) r_d, of the means.
    """

    values: Float[Tensor, "value combination"]
    own: Float[Tensor, "combination combination"]
    weight: Float[Tensor, "combination 1"]
    departures: Float[Tensor, "combination latent"]

    def weights(
        self, values: Float[Tensor, "kind value"], combinations: Float[Tensor, "kind combination"]
    ) -> Float[Tensor, "kind combination"]:
        """Weights of the measured moments in m(P), given what P makes of the values."""
        return values @ self.values + combinations @ self.own

    def coverage(self, combinations: Float[Tensor, "kind combination"]) -> Float[Tensor, "kind 1"]:
        """c(P), 0 to 1."""
        return (combinations @ self.weight).clamp(0, 1)
