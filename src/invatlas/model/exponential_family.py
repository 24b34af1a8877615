"""Conditional priors of a general exponential family, its layer fitted by score matching.

    p(z | d) = N(z; m_d, diag v_d) exp(a_d . f(z)) / Z_d        f(z) = erf(B z + b)
    a_d      = a + sum_c A_c[d_c]                               m_d and v_d as in priors.py

The sufficient statistics are z, z^2 and f, a layer that is learnt (Lu et al. 2021, arXiv
2102.12353, after Khemakhem et al. 2020): latents depend on each other, and a combination may
have several modes. f is bounded, so that every a_d gives a density.

The divergence fits N as if it were alone; a, A, B and b make of it what the cells of d are, by
score matching (Hyvarinen 2005, JMLR 6), which needs no Z_d. With draws z from their posteriors,

    J = E sum_i v_di [d^2 log p / dz_i^2 + (d log p / dz_i)^2 / 2]    less the same of N

is the trace of the Hessian and half the squared gradient, in standard deviations of N. Calls
teach the encoders alone. With t = a_d . f, and for any N(m, diag v),

    E_N f               = erf((B m + b) / sqrt(1 + 2 B^2 v))
    log Z_d             = E_N t + log E_N [exp(t - E_N t) - (t - E_N t)]
    E_q log p(z | d)    = E_q log N(z; m_d, v_d) + a_d . E_q f - log Z_d
    log E_q p(z | d)    = log E_q N(z; m_d, v_d) + log E_r exp(t) - log Z_d
    log E_r exp(t)      ~ E_r t + sum_i v_ri (E_r dt/dz_i)^2 / 2

where r is the Gaussian proportional to q(z) N(z; m_d, v_d), and the last line is of second order
in its width. The second expectation of log Z_d is a mean over fixed quasi-random draws, good where
p is near N. No gradient reaches N through it: N would move to where the draws miss what exp(t)
makes large. Nor do calls move N, which would leave the cells that it is to cover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invatlas.model.kernels import gaussian_evidence
from invatlas.model.priors import (
    ConditionalGaussians,
    CovariateTable,
    DiagonalGaussian,
    FactorisedPrior,
)

FEATURES = 32
DRAWS = 4096  # for Z_d
TRAINING_DRAWS = 512  # of these while training
CANDIDATES = 128  # of which a sample takes one
SLOPE = 2 / math.sqrt(math.pi)  # of erf at 0


@dataclass(frozen=True)
class Layer:
    """f(z) = erf(B z + b)."""

    weight: Float[Tensor, "feature latent"]
    bias: Float[Tensor, " feature"]

    def __call__(self, z: Float[Tensor, "*_ latent"]) -> Float[Tensor, "*_ feature"]:
        """Value at z."""
        return torch.erf(z @ self.weight.T + self.bias)

    def expected(
        self, mean: Float[Tensor, "*_ latent"], variance: Float[Tensor, "*_ latent"]
    ) -> Float[Tensor, "*_ feature"]:
        """E f under N(mean, diag variance)."""
        return torch.erf(self._smoothed(mean, variance)[0])

    def log_mean_exp(self, a: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """Log E exp(a . f) under N(m, diag v) to second order, over the last axis."""
        h, scale = self._smoothed(m, v)
        slope = (a * scale * SLOPE * (-h.square()).exp()) @ self.weight
        return (a * torch.erf(h)).sum(-1) + 0.5 * (v * slope.square()).sum(-1)

    def _smoothed(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        scale = (1 + 2 * variance @ self.weight.T.square()).rsqrt()
        return (mean @ self.weight.T + self.bias) * scale, scale


@dataclass(frozen=True)
class Tilt:
    """a_d . f(z) - log Z_d for every combination d."""

    mean: Float[Tensor, "combination latent"]
    variance: Float[Tensor, "combination latent"]
    coefficients: Float[Tensor, "combination feature"]
    layer: Layer
    noise: Float[Tensor, "draw latent"]

    def at(self, z: Float[Tensor, "cell latent"]) -> Float[Tensor, "cell combination"]:
        """Value at z."""
        return self.layer(z) @ self.coefficients.T - self.log_normaliser

    def expected(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """Mean under each q."""
        features = self.layer.expected(q.mean, q.variance)
        return features @ self.coefficients.T - self.log_normaliser

    def evidence(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """Log-mean of its exponential under each r, to second order."""
        share = self.variance / (self.variance + q.variance[:, None])  # of q in the mean of r
        mean = self.mean + share * (q.mean[:, None] - self.mean)
        r = mean, share * q.variance[:, None]
        return self.layer.log_mean_exp(self.coefficients, *r) - self.log_normaliser

    @cached_property
    def log_normaliser(self) -> Float[Tensor, " combination"]:
        """Log Z_d in nats."""
        centre = (self.coefficients * self.layer.expected(self.mean, self.variance)).sum(1)
        each = zip(self.mean, self.variance.sqrt(), self.coefficients, centre, strict=True)
        rest = []
        for m, deviation, a, at_centre in each:  # one at a time: there may be thousands
            t = (self.layer(m + deviation * self.noise) @ a - at_centre).double()
            rest.append((t.exp() - t).mean().log())
        return centre + torch.stack(rest).to(centre.dtype)


@dataclass(frozen=True)
class TiltedGaussians(ConditionalGaussians):
    """p(z | d) and p(d) for every combination d; ``mean`` and ``log_variance`` are those of N."""

    coefficients: Float[Tensor, "combination feature"]
    layer: Layer
    noise: Float[Tensor, "draw latent"]

    @cached_property
    def tilt(self) -> Tilt:
        """What N is multiplied by; no gradient reaches a parameter through it."""
        layer = Layer(self.layer.weight.detach(), self.layer.bias.detach())
        moments = self.mean.detach(), self.log_variance.detach().exp()
        return Tilt(*moments, self.coefficients.detach(), layer, self.noise)

    def log_prob(self, z: Float[Tensor, "cell latent"]) -> Float[Tensor, "cell combination"]:
        """Log-density p(z | d) in nats."""
        return super().log_prob(z) + self.tilt.at(z)

    def expected_log_prob(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """E_q log p(z | d) in nats."""
        return super().expected_log_prob(q) + self.tilt.expected(q)

    def log_evidence(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """Log E_q p(z | d) in nats, to second order."""
        m, v = self.tilt.mean, self.tilt.variance
        return gaussian_evidence(q.mean, q.variance, m, v) + self.tilt.evidence(q)

    def mismatch(
        self, z: Float[Tensor, "cell latent"], combination: Int[Tensor, " cell"]
    ) -> Float[Tensor, " cell"]:
        """J of each cell, for a, A, B and b alone."""
        tilt, weight = self.tilt, self.layer.weight
        z, m, v = z.detach(), tilt.mean[combination], tilt.variance[combination]
        h = z @ weight.T + self.layer.bias
        slopes = self.coefficients[combination] * SLOPE * (-h.square()).exp()
        gradient = slopes @ weight
        hessian_diagonal = (-2 * h * slopes) @ weight.square()
        return (v * (hessian_diagonal + 0.5 * gradient.square()) - (z - m) * gradient).sum(1)

    def sample(self, combination: Int[Tensor, " cell"]) -> Float[Tensor, "cell latent"]:
        """One draw of z for each wanted combination: of candidates from N, one by its weight."""
        candidates = super().sample(combination.repeat_interleave(CANDIDATES))
        candidates = candidates.view(len(combination), CANDIDATES, self.mean.shape[1])
        t = torch.einsum(
            "nsf,nf->ns", self.tilt.layer(candidates), self.tilt.coefficients[combination]
        )
        chosen = torch.multinomial(t.softmax(1), 1)[:, 0]
        return candidates[torch.arange(len(combination)), chosen]


class ExponentialFamilyPrior(FactorisedPrior):
    """Gaussians with additive means and shrunk interaction, times what a layer says of z.

    N keeps up with its cells, which the encoders move, by larger steps than other priors take.
    """

    noise: Tensor
    pace = 5.0

    def __init__(self, table: CovariateTable, n_latents: int, rank: int = 4) -> None:
        super().__init__(table, n_latents, rank)
        self.base_coefficients = nn.Parameter(torch.zeros(FEATURES))
        self.coefficient_effects = nn.Parameter(torch.zeros(sum(table.sizes), FEATURES))
        self.weight = nn.Parameter(torch.randn(FEATURES, n_latents) / math.sqrt(n_latents or 1))
        self.bias = nn.Parameter(torch.randn(FEATURES))
        self.register_buffer("noise", _draw_normal(n_latents))

    def forward(self) -> ConditionalGaussians:  # noqa: D102
        given = super().forward()
        return TiltedGaussians(
            given.mean,
            given.log_variance,
            given.log_weight,
            self.base_coefficients + self.has_value @ self.coefficient_effects,
            Layer(self.weight, self.bias),
            self.noise[:TRAINING_DRAWS] if self.training else self.noise,
        )

    def shrinkage(self) -> Float[Tensor, ""]:  # noqa: D102
        return super().shrinkage() + self.coefficient_effects.square().sum()


def _draw_normal(n_latents: int) -> Float[Tensor, "draw latent"]:
    """Standard normal draws that fill space evenly, the same at every call."""
    if not n_latents:
        return torch.zeros(DRAWS, 0)
    sobol = torch.quasirandom.SobolEngine(n_latents, scramble=True, seed=0)
    uniform = sobol.draw(DRAWS, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    normal: Tensor = torch.special.ndtri(uniform)
    return normal.float()
