"""Learned conditional priors: one Gaussian for every combination d of covariate values.

    p(z | d) = N(m_d, diag v_d)
    m_d      = sum_c M_c[d_c]     + (prod_c A_c[d_c]) R        c runs over the covariates
    log v_d  = b + sum_c S_c[d_c]

A continuous covariate has one row of M_c and S_c a knot; they make a linear spline whose squared
second differences are penalised too (P-splines, Eilers and Marx 1996, Statistical Science 11).

The product over covariates of the rows A_c[d_c] (rank) times R (rank, latent) is the
low-rank interaction; its squares are penalised, so a combination nobody measured gets the
sum of its parts. Values that are draws from a population (random_effects.py) do not interact.
Additive natural parts follow the conditional priors of iVAE (Khemakhem et
al. 2020, arXiv 1907.04809) and inVAE (Aliee et al. 2023, arXiv 2307.00558).

A value that is missing is summed out, and so are the values that a coarse label such as "T cell"
stands for. With A the combinations a cell may have,

    -log sum_{d in A} p(d) exp(-KL(q || p(z | d)))  >=  KL(q || sum_{d in A} p(d) p(z | d))

bounds the divergence from above (Hershey and Olsen 2007) and equals KL - log p(d) where
one combination is left.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from invatlas.model.kernels import expected_log_density, gaussian_evidence
from invatlas.model.random_effects import RandomEffects

ROUGHNESS = 10.0  # of a scale's second differences, against the squared interaction


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag exp(log_variance)) for each cell."""

    mean: Float[Tensor, "cell latent"]
    log_variance: Float[Tensor, "cell latent"]

    @property
    def variance(self) -> Float[Tensor, "cell latent"]:
        """Variance of each latent."""
        return self.log_variance.exp()

    def sample(self) -> Float[Tensor, "cell latent"]:
        """One reparameterised draw for each cell."""
        noise = torch.randn_like(self.mean)
        return torch.addcmul(self.mean, noise, (0.5 * self.log_variance).exp())

    def split(self, n_cells: int) -> list[DiagonalGaussian]:
        """Parts of some cells each, in order."""
        parts = zip(self.mean.split(n_cells), self.log_variance.split(n_cells), strict=True)
        return [DiagonalGaussian(mean, log_variance) for mean, log_variance in parts]


@dataclass(frozen=True)
class ConditionalGaussians:
    """p(z | d) and p(d) for every combination d."""

    mean: Float[Tensor, "combination latent"]
    log_variance: Float[Tensor, "combination latent"]
    log_weight: Float[Tensor, " combination"]

    def log_prob(self, z: Float[Tensor, "cell latent"]) -> Float[Tensor, "cell combination"]:
        """Log-density p(z | d) in nats."""
        return expected_log_density(z.square(), z, self.mean, self.log_variance)

    def divergence(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """KL(q || p(z | d)) in nats."""
        entropy = 0.5 * (q.log_variance + math.log(2 * math.pi * math.e)).sum(1, keepdim=True)
        return -entropy - self.expected_log_prob(q)

    def expected_log_prob(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """E_q log p(z | d) in nats."""
        second_moment = q.mean.square() + q.variance
        return expected_log_density(second_moment, q.mean, self.mean, self.log_variance)

    def log_evidence(self, q: DiagonalGaussian) -> Float[Tensor, "cell combination"]:
        """Log E_q p(z | d): the Gaussian N(q.mean; m_d, v_d + v_q), in nats."""
        return gaussian_evidence(q.mean, q.variance, self.mean, self.log_variance.exp())

    def mismatch(
        self, z: Float[Tensor, "cell latent"], combination: Int[Tensor, " cell"]
    ) -> Float[Tensor, " cell"]:
        """What score matching makes small; nothing where likelihood fits all there is."""
        return z.new_zeros(len(z))

    def sample(self, combination: Int[Tensor, " cell"]) -> Float[Tensor, "cell latent"]:
        """One draw of z for each wanted combination."""
        return DiagonalGaussian(self.mean[combination], self.log_variance[combination]).sample()

    def covariance(self) -> Float[Tensor, "combination latent latent"]:
        """Covariance of z given each combination."""
        return torch.diag_embed(self.log_variance.exp())

    def blend(self, weights: Float[Tensor, "blend combination"]) -> ConditionalGaussians:
        """Gaussians between these or beyond: means and log-variances are weighted sums."""
        log_weight = weights.new_zeros(len(weights))
        return ConditionalGaussians(weights @ self.mean, weights @ self.log_variance, log_weight)


def summed_out(
    log_terms: Float[Tensor, "cell combination"], allowed: Bool[Tensor, "cell combination"]
) -> Float[Tensor, " cell"]:
    """Log sum_{d allowed} exp(log_terms_d)."""
    return torch.logsumexp(log_terms.masked_fill(~allowed, -torch.inf), 1)


@dataclass(frozen=True)
class CovariateTable:
    """What a prior conditions on.

    Attributes
    ----------
    sizes
        Number of categories of each covariate.
    combinations
        Codes of the combinations the prior speaks of, shape (combination, covariate).
    weights
        p(d) of each combination up to a common factor, positive, shape (combination,).
    groups
        For each covariate, the categories every coarse value stands for, shape (group, category);
        none by default.
    ordered
        For each covariate, whether its categories are the knots of a scale; by default none is.
    cells
        Cells of each value, all covariates below each other, where categories are draws from a
        population (see random_effects.py); None where they are not.
    """

    sizes: list[int]
    combinations: Int[Tensor, "combination covariate"]
    weights: Float[Tensor, " combination"]
    groups: tuple[Bool[Tensor, "_ _"], ...] = ()
    ordered: tuple[bool, ...] = ()
    cells: Float[Tensor, " value"] | None = None


def list_admitted(members: Bool[Tensor, "group category"]) -> Bool[Tensor, "code category"]:
    """Categories that a code leaves possible, given those that every coarse value stands for.

    Rows are found by code: 0, 1, ... a category, ..., -3, -2 a coarse value, -1 missing.
    """
    n = members.shape[1]
    one, every = torch.eye(n).bool(), torch.ones(1, n).bool()
    return torch.cat([one, members.flip(0), every])


class Prior(nn.Module, ABC):
    """p(z | d) over a table of combinations of covariate values."""

    combinations: Tensor
    weights: Tensor
    strata: Tensor  # which combinations training takes for alike (training/strata.py)

    def __init__(self, table: CovariateTable) -> None:
        super().__init__()
        self.register_buffer("combinations", table.combinations)
        self.register_buffer("weights", table.weights)
        self.register_buffer("strata", torch.arange(len(table.combinations)), persistent=False)
        ordered = table.ordered or (False,) * len(table.sizes)
        self.categorical = [c for c, scale in enumerate(ordered) if not scale]
        groups = table.groups or [torch.zeros(0, n, dtype=torch.bool) for n in table.sizes]
        for c, members in enumerate(groups):
            self.register_buffer(f"admits_{c}", list_admitted(members))

    def allowed(self, codes: Int[Tensor, "cell covariate"]) -> Bool[Tensor, "cell combination"]:
        """Which combinations agree with a cell's values.

        A missing value (-1) agrees with every category, the coarse value k (-2 - k) with those it
        stands for. A cell whose values were never met together is allowed every combination.
        """
        allowed = torch.ones(len(codes), len(self.combinations), dtype=torch.bool)
        for c in range(codes.shape[1]):
            admits: Tensor = getattr(self, f"admits_{c}")
            allowed &= admits[codes[:, c]][:, self.combinations[:, c]]
        return allowed | ~allowed.any(1, keepdim=True)

    def joint(self) -> tuple[Int[Tensor, "joint covariate"], Int[Tensor, " combination"]]:
        """Combinations of categories alone, in order, and the one each combination belongs to."""
        categories = self.combinations[:, self.categorical]
        joint, place = torch.unique(categories, dim=0, return_inverse=True)
        return joint, place

    @abstractmethod
    def forward(self) -> ConditionalGaussians:
        """Distributions of all combinations."""

    @abstractmethod
    def shrinkage(self) -> Float[Tensor, ""]:
        """What the prior pays for departing from the sum of its parts."""

    @abstractmethod
    def departure(self, given: ConditionalGaussians) -> Float[Tensor, ""]:
        """Nats a cell that the values pay for departing from the populations they are of."""


class FactorisedPrior(Prior):
    """Diagonal Gaussians with additive means and a shrunk low-rank interaction."""

    has_value: Tensor
    pace = 1.0  # how far a step moves a mean or log-variance, against what is stored

    def __init__(self, table: CovariateTable, n_latents: int, rank: int = 4) -> None:
        super().__init__(table)
        sizes = table.sizes
        # one row a value: M_c[value] and S_c[value] side by side, all covariates below each other
        self.effects = nn.Parameter(torch.zeros(sum(sizes), 2 * n_latents))
        nn.init.normal_(self.effects.data[:, :n_latents], std=0.5 / self.pace)
        starts = accumulate(sizes, initial=0)
        blocks = [slice(start, start + n) for start, n in zip(starts, sizes, strict=False)]
        self.scales = [rows for c, rows in enumerate(blocks) if c not in self.categorical]
        for rows in self.scales:  # a straight line to begin with
            slope = torch.linspace(-1, 1, rows.stop - rows.start)[:, None]
            self.effects.data[rows, :n_latents] = (
                slope * self.effects.data[rows.stop - 1, :n_latents]
            )
        self.register_buffer("has_value", one_hot(table.combinations, sizes))
        self.base_log_variance = nn.Parameter(torch.zeros(n_latents))
        drawn = [] if table.cells is None else [blocks[c] for c in self.categorical]
        for rows in drawn:
            self.effects.data[rows] = 0.0
        cells = torch.zeros(sum(sizes)) if table.cells is None else table.cells
        self.random_effects = RandomEffects(drawn, cells, n_latents)
        interacting = sizes if len(sizes) > 1 and not drawn else []
        self.factors = nn.ParameterList(torch.randn(size, rank) for size in interacting)
        self.directions = nn.Parameter(torch.zeros(rank if interacting else 0, n_latents))

    def interaction(self) -> Float[Tensor, "combination latent"]:
        """Part of the means that is no sum over covariates."""
        product = self.directions.new_ones(len(self.combinations), len(self.directions))
        for c, factor in enumerate(self.factors):
            product = product * factor[self.combinations[:, c]]
        return self.pace * product @ self.directions

    def forward(self) -> ConditionalGaussians:  # noqa: D102
        mean, log_variance = (self.pace * self.has_value @ self.effects).chunk(2, 1)
        if len(self.directions):
            mean = mean + self.interaction()
        log_variance = (self.pace * self.base_log_variance + log_variance).clamp(-6.0, 4.0)
        return ConditionalGaussians(mean, log_variance, self.weights.log())

    def shrinkage(self) -> Float[Tensor, ""]:  # noqa: D102
        total = (
            self.interaction().square().sum()
            if len(self.directions)
            else self.weights.new_zeros(())
        )
        for rows in self.scales:
            bends = (self.pace * self.effects[rows]).diff(2, dim=0)
            total = total + ROUGHNESS * bends.square().sum()
        return total

    def departure(self, given: ConditionalGaussians) -> Float[Tensor, ""]:  # noqa: D102
        held = self.has_value * self.weights[:, None]
        precision = held.T @ (-given.log_variance.detach()).exp()
        precision = precision / held.sum(0)[:, None].clamp_min(1e-12)
        return self.random_effects.divergence(self.pace * self.effects, precision)


def one_hot(
    combinations: Int[Tensor, "combination covariate"], sizes: list[int]
) -> Float[Tensor, "combination value"]:
    """Which values each combination has, the values of all covariates side by side."""
    columns = [
        nn.functional.one_hot(combinations[:, c], size).float() for c, size in enumerate(sizes)
    ]
    return torch.cat([torch.zeros(len(combinations), 0), *columns], 1)
