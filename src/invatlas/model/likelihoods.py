"""What the decoder's output says of the counts of a cell.

    negative binomial   x ~ NB(mu, theta)         mu = l softmax(a)
    Poisson             x ~ Poisson(mu)           mu = l softmax(a)
    Gaussian            y ~ N(a, sigma^2)         y = log1p(m x / l), m the median l

Each log-probability is a dense part that needs no counts and a correction at the
nonzeros. Poisson: sum_gene mu = l, so no dense part is left at all. Gaussian:
(y - a)^2 = a^2 + (y^2 - 2 a y), and y = 0 wherever x = 0.

Had a cell been another one, of mean mu', it would have kept what is its own. A negative binomial
is a Poisson of mean mu g, g ~ Gamma(theta, theta), and E[g | x] = (theta + x) / (theta + mu).
Seen as events of a Poisson process, a share mu' / mu of its counts stay where mu' < mu, and where
mu' > mu they are joined by others (Poisson: g = 1). A Gaussian keeps its residual:

    E[x' | x] = x min(1, mu' / mu) + E[g | x] max(0, mu' - mu)          y' = y + a' - a
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invatlas.data.minibatch import SparseCounts
from invatlas.model.kernels import negative_binomial_nll


class CountDistribution(ABC):
    """Distribution of the counts of some cells."""

    @abstractmethod
    def log_prob(self, counts: SparseCounts) -> Float[Tensor, " cell"]:
        """Log-probability of each cell, summed over genes, in nats."""

    @property
    @abstractmethod
    def mean(self) -> Float[Tensor, "cell gene"]:
        """Expected counts (Gaussian: expected log-normalised expression)."""

    @abstractmethod
    def sample(self) -> Float[Tensor, "cell gene"]:
        """One draw for each cell."""

    @property
    def expected_counts(self) -> Float[Tensor, "cell gene"]:
        """Expected counts of each cell at its own library size."""
        return self.mean

    @abstractmethod
    def carry(
        self, counts: Float[Tensor, "cell gene"], other: CountDistribution
    ) -> Float[Tensor, "cell gene"]:
        """Expected counts had cells with these counts been of ``other``, all else equal."""


def keep_own(
    counts: Tensor, mean: Tensor, other_mean: Tensor, frailty: Tensor | float = 1.0
) -> Tensor:
    """Counts thinned where the mean falls, and joined by new ones where it rises."""
    kept = counts * (other_mean / mean).clamp_max(1.0)
    return kept + frailty * (other_mean - mean).clamp_min(0.0)


@dataclass(frozen=True)
class NegativeBinomial(CountDistribution):
    """NB(mu, theta) with variance mu + mu^2 / theta."""

    logits: Float[Tensor, "cell gene"]
    library_size: Float[Tensor, " cell"]
    log_theta: Float[Tensor, " gene"]

    def log_prob(self, counts: SparseCounts) -> Float[Tensor, " cell"]:  # noqa: D102
        return -negative_binomial_nll(self.logits, self.library_size, self.log_theta, counts)

    @property
    def mean(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        return torch.softmax(self.logits, 1) * self.library_size[:, None]

    def sample(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        theta = self.log_theta.exp().expand_as(self.logits)
        return torch.poisson(torch.distributions.Gamma(theta, theta / self.mean).sample())

    def carry(self, counts: Tensor, other: CountDistribution) -> Tensor:  # noqa: D102
        theta, mean = self.log_theta.exp(), self.mean
        return keep_own(counts, mean, other.mean, (theta + counts) / (theta + mean))


@dataclass(frozen=True)
class Poisson(CountDistribution):
    """Poisson(mu)."""

    logits: Float[Tensor, "cell gene"]
    library_size: Float[Tensor, " cell"]

    def log_prob(self, counts: SparseCounts) -> Float[Tensor, " cell"]:  # noqa: D102
        x, cells = counts.values, counts.cells
        log_scale = self.library_size.log() - torch.logsumexp(self.logits, 1)
        log_mu = self.logits[cells, counts.genes] + log_scale[cells]
        constant = -self.library_size - counts.log_factorials
        return constant.index_add(0, cells, x * log_mu)

    @property
    def mean(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        return torch.softmax(self.logits, 1) * self.library_size[:, None]

    def sample(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        return torch.poisson(self.mean)

    def carry(self, counts: Tensor, other: CountDistribution) -> Tensor:  # noqa: D102
        return keep_own(counts, self.mean, other.mean)


@dataclass(frozen=True)
class Gaussian(CountDistribution):
    """N(a, sigma^2) on log-normalised expression."""

    logits: Float[Tensor, "cell gene"]
    library_size: Float[Tensor, " cell"]
    median_library_size: Float[Tensor, ""]
    log_sigma: Float[Tensor, " gene"]

    def log_prob(self, counts: SparseCounts) -> Float[Tensor, " cell"]:  # noqa: D102
        a, cells, genes = self.logits, counts.cells, counts.genes
        precision = torch.exp(-2 * self.log_sigma)
        scale = self.median_library_size / self.library_size
        y = torch.log1p(counts.values * scale[cells])
        dense = a.square() @ precision
        squares = dense.index_add(0, cells, precision[genes] * (y * y - 2 * y * a[cells, genes]))
        return -0.5 * squares - self.log_sigma.sum() - 0.5 * a.shape[1] * math.log(2 * math.pi)

    @property
    def mean(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        return self.logits

    def sample(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        return torch.normal(self.logits, self.log_sigma.exp().expand_as(self.logits))

    @property
    def expected_counts(self) -> Float[Tensor, "cell gene"]:  # noqa: D102
        return self._as_counts(self.logits)

    def carry(self, counts: Tensor, other: CountDistribution) -> Tensor:  # noqa: D102
        scale = self.median_library_size / self.library_size[:, None]
        return self._as_counts(torch.log1p(scale * counts) + other.mean - self.mean)

    def _as_counts(self, y: Tensor) -> Tensor:
        scale = self.median_library_size / self.library_size[:, None]
        return torch.expm1(y.clamp_min(0.0)) / scale


class Likelihood(nn.Module, ABC):
    """Turns what the decoder says into a distribution over counts."""

    @abstractmethod
    def forward(
        self, logits: Float[Tensor, "cell gene"], library_size: Float[Tensor, " cell"]
    ) -> CountDistribution:
        """Distribution of the counts of each cell."""


class NegativeBinomialLikelihood(Likelihood):
    """One inverse dispersion for each gene."""

    def __init__(self, n_genes: int, median_library_size: float) -> None:
        super().__init__()
        self.log_theta = nn.Parameter(torch.zeros(n_genes))

    def forward(self, logits: Tensor, library_size: Tensor) -> CountDistribution:  # noqa: D102
        # bounds keep theta within what float32 resolves in mu + mu^2 / theta
        return NegativeBinomial(logits, library_size, self.log_theta.clamp(-7.0, 12.0))


class PoissonLikelihood(Likelihood):
    """No parameter of its own."""

    def __init__(self, n_genes: int, median_library_size: float) -> None:
        super().__init__()

    def forward(self, logits: Tensor, library_size: Tensor) -> CountDistribution:  # noqa: D102
        return Poisson(logits, library_size)


class GaussianLikelihood(Likelihood):
    """One standard deviation for each gene."""

    median_library_size: Tensor

    def __init__(self, n_genes: int, median_library_size: float) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.zeros(n_genes))
        self.register_buffer("median_library_size", torch.tensor(median_library_size))

    def forward(self, logits: Tensor, library_size: Tensor) -> CountDistribution:  # noqa: D102
        log_sigma = self.log_sigma.clamp(-4.0, 4.0)
        return Gaussian(logits, library_size, self.median_library_size, log_sigma)


LIKELIHOODS: dict[str, type[NegativeBinomialLikelihood | PoissonLikelihood | GaussianLikelihood]]
LIKELIHOODS = {
    "negative_binomial": NegativeBinomialLikelihood,
    "poisson": PoissonLikelihood,
    "gaussian": GaussianLikelihood,
}
