"""Conditional priors whose latents depend on each other.

    p(z | d) = N(m_d, D_d + W_d W_d^T)      D_d = diag v_d, W_d (latent, rank)
    W_d      = W + sum_c L_c[d_c]           m_d and v_d as in priors.py

With A = D^-1 W C^-T and C C^T = I + W^T D^-1 W, the inverse of the covariance is D^-1 - A A^T and
the logarithm of its determinant log|D| + 2 log|C| (Woodbury), so that densities are normalised
and cost rank times as much as those of a diagonal.

    log E_q p(z | d) = log N(m_q; m_d, D_d + v_q + W_d W_d^T)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invatlas.model.priors import (
    ConditionalGaussians,
    CovariateTable,
    DiagonalGaussian,
    FactorisedPrior,
)

FIRST_LOADING = 0.1  # standard deviation; at 0 no gradient would tell where to go


@dataclass(frozen=True)
class LowRankGaussians(ConditionalGaussians):
    """p(z | d) and p(d) for every combination d, W_d in ``loadings``."""

    loadings: Float[Tensor, "combination latent rank"]

    def log_prob(self, z: Float[Tensor, "cell latent"]) -> Float[Tensor, "cell combination"]:
        """Log-density p(z | d) in nats."""
        precision = (-self.log_variance).exp()
        whitened = _whiten(precision, self.loadings)
        return _log_normal(z[:, None] - self.mean, precision, *whitened)

    def expected_log_prob(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """E_q log p(z | d) in nats."""
        precision = (-self.log_variance).exp()
        a, log_c = _whiten(precision, self.loadings)
        diagonal = precision - a.square().sum(2)  # of the inverse of the covariance
        at_mean = _log_normal(q.mean[:, None] - self.mean, precision, a, log_c)
        return at_mean - 0.5 * q.variance @ diagonal.T

    def log_evidence(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """Log E_q p(z | d) in nats."""
        precision = 1 / (self.log_variance.exp() + q.variance[:, None])
        whitened = _whiten(precision, self.loadings)
        return _log_normal(q.mean[:, None] - self.mean, precision, *whitened)

    def sample(self, combination: Int[Tensor, " cell"]) -> Float[Tensor, "cell latent"]:
        """One draw of z for each wanted combination."""
        own = super().sample(combination)
        shared = torch.randn(len(combination), self.loadings.shape[2], 1, dtype=own.dtype)
        return own + (self.loadings[combination] @ shared)[:, :, 0]

    def covariance(self) -> Float[Tensor, "combination latent latent"]:
        """Covariance of z given each combination."""
        return super().covariance() + self.loadings @ self.loadings.mT

    def blend(self, weights: Float[Tensor, "blend combination"]) -> ConditionalGaussians:
        """Gaussians between these or beyond; the loadings are weighted sums too."""
        given = super().blend(weights)
        loadings = torch.einsum("bd,dnr->bnr", weights, self.loadings)
        return LowRankGaussians(given.mean, given.log_variance, given.log_weight, loadings)


def _whiten(precision: Tensor, loadings: Tensor) -> tuple[Tensor, Tensor]:
    """A and log|C|, for D^-1 (..., latent) and W (..., latent, rank)."""
    scaled = precision[..., None] * loadings
    inner = loadings.transpose(-1, -2) @ scaled
    inner = inner + torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    c = torch.linalg.cholesky(inner)
    a = torch.linalg.solve_triangular(c, scaled.transpose(-1, -2), upper=False).transpose(-1, -2)
    return a, c.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _log_normal(difference: Tensor, precision: Tensor, a: Tensor, log_c: Tensor) -> Tensor:
    """Log N(difference; 0, D + W W^T) of the last axis, for D^-1 and what :func:`_whiten` gives."""
    shared = (difference[..., None] * a).sum(-2)
    distance = (difference.square() * precision).sum(-1) - shared.square().sum(-1)
    constant = difference.shape[-1] * math.log(2 * math.pi)
    return -0.5 * (distance - precision.log().sum(-1) + constant) - log_c


class LowRankPrior(FactorisedPrior):
    """Gaussians with additive means, shrunk interaction and dependent latents."""

    def __init__(self, table: CovariateTable, n_latents: int, rank: int = 4) -> None:
        super().__init__(table, n_latents, rank)
        shape = (n_latents, min(rank, n_latents))
        self.base_loadings = nn.Parameter(FIRST_LOADING * torch.randn(shape))
        self.loading_effects = nn.Parameter(torch.zeros(sum(table.sizes), *shape))

    def forward(self) -> ConditionalGaussians:  # noqa: D102
        given = super().forward()
        effects = torch.einsum("dv,vnr->dnr", self.has_value, self.loading_effects)
        loadings = self.base_loadings + effects
        return LowRankGaussians(given.mean, given.log_variance, given.log_weight, loadings)

    def shrinkage(self) -> Float[Tensor, ""]:  # noqa: D102
        return super().shrinkage() + self.loading_effects.square().sum()
