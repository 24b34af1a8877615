"""Tilted Gaussians against autograd, integrals and Monte Carlo, and what they learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.distributions import MultivariateNormal

from invatlas.model.exponential_family import (
    ExponentialFamilyPrior,
    Layer,
    TiltedGaussians,
)
from invatlas.model.priors import (
    ConditionalGaussians,
    CovariateTable,
    DiagonalGaussian,
    FactorisedPrior,
)

COMBINATIONS, FEATURES = 3, 6
TABLE = CovariateTable([2], torch.arange(2)[:, None], torch.full((2,), 0.5))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(latents: int) -> TiltedGaussians:
    """Three combinations, tilted by about 1.5 nats up and down."""
    weight = torch.softmax(draw(COMBINATIONS, seed=3), 0)
    return TiltedGaussians(
        draw(COMBINATIONS, latents, seed=1),
        0.5 * draw(COMBINATIONS, latents, seed=2),
        weight.log(),
        draw(COMBINATIONS, FEATURES, seed=4),
        Layer(draw(FEATURES, latents, seed=5), draw(FEATURES, seed=6)),
        ExponentialFamilyPrior(TABLE, latents).noise.double(),
    )


def alone(given: TiltedGaussians) -> ConditionalGaussians:
    return ConditionalGaussians(given.mean, given.log_variance, given.log_weight)


@pytest.fixture
def prior() -> TiltedGaussians:
    return make(2)


@pytest.fixture
def posterior() -> DiagonalGaussian:
    return DiagonalGaussian(draw(5, 2, seed=7), draw(5, 2, seed=8) - 2)


def test_mismatch_has_the_exact_trace_of_the_hessian() -> None:
    prior, z, combination = make(4), draw(7, 4, seed=9), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    expected = []
    for point, d in zip(z, combination, strict=True):
        parts = []
        for given in (prior, alone(prior)):

            def log_p(z: Tensor, given: ConditionalGaussians = given, d: Tensor = d) -> Tensor:
                return given.log_prob(z[None])[0, d]

            curvature = hessian(log_p, point).diagonal()
            slope = jacobian(log_p, point)
            parts.append(prior.log_variance[d].exp() @ (curvature + 0.5 * slope.square()))
        expected.append(parts[0] - parts[1])
    torch.testing.assert_close(prior.mismatch(z, combination), torch.stack(expected))


@pytest.mark.parametrize("latents", [1, 2])
def test_densities_integrate_to_one(latents: int) -> None:
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * latents).reshape(-1, latents)
    tilted = make(latents)
    assert tilted.tilt.log_normaliser.abs().min() > 0.05, "there is something to normalise"
    total = tilted.log_prob(grid).exp().sum(0) * float(axis[1] - axis[0]) ** latents
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0.01, atol=0)


def test_expectations_equal_monte_carlo(
    prior: TiltedGaussians, posterior: DiagonalGaussian
) -> None:
    n = 100_000
    for i, found in enumerate(prior.expected_log_prob(posterior)):
        z = posterior.mean[i] + draw(n, 2, seed=10) * posterior.variance[i].sqrt()
        log_p = prior.log_prob(z)
        assert ((log_p.mean(0) - found).abs() < 5 * log_p.std(0) / n**0.5).all()


def test_evidence_is_close(prior: TiltedGaussians, posterior: DiagonalGaussian) -> None:
    n = 200_000
    for i, found in enumerate(prior.log_evidence(posterior)):
        z = posterior.mean[i] + draw(n, 2, seed=11) * posterior.variance[i].sqrt()
        truth = prior.log_prob(z).exp().mean(0).log()
        torch.testing.assert_close(found, truth, atol=0.07, rtol=0)
    tilted = prior.log_evidence(posterior) - alone(prior).log_evidence(posterior)
    assert tilted.abs().max() > 1


def test_samples_have_the_moments_of_the_density(prior: TiltedGaussians) -> None:
    torch.manual_seed(0)
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    p = prior.log_prob(grid)[:, 1].softmax(0)
    mean = p @ grid
    covariance = (grid - mean).T @ ((grid - mean) * p[:, None])
    z = prior.sample(torch.full((20_000,), 1))
    torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.T.cov(), covariance, atol=0.05, rtol=0.05)
    assert (mean - prior.mean[1]).abs().max() > 0.3, "the tilt moves the mean"


def test_each_part_learns_from_its_own_term() -> None:
    torch.manual_seed(0)
    made, q = (
        ExponentialFamilyPrior(TABLE, 3),
        DiagonalGaussian(torch.randn(4, 3), torch.zeros(4, 3)),
    )
    with torch.no_grad():
        made.base_coefficients.normal_()
    given = made()
    layer = {"base_coefficients", "coefficient_effects", "weight", "bias"}
    gaussian = {"effects", "base_log_variance"}
    for value, learns in (
        (given.divergence(q), gaussian),
        (given.log_evidence(q), set()),
        (given.mismatch(q.mean, torch.tensor([0, 1, 0, 1])), layer),
    ):
        made.zero_grad(set_to_none=True)
        if value.requires_grad:
            value.sum().backward(retain_graph=True)
        assert {name for name, p in made.named_parameters() if p.grad is not None} == learns


def test_score_matching_finds_dependent_latents() -> None:
    """Correlation 0.8 in one combination, -0.8 in the other: independence misses 0.51 nats."""
    covariance = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[1.0, -0.8], [-0.8, 1.0]]])
    truth = MultivariateNormal(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), covariance)
    missed = []
    for kind in (FactorisedPrior, ExponentialFamilyPrior):
        torch.manual_seed(0)
        made = kind(TABLE, 2)
        optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
        d = torch.arange(2).repeat(128)
        for _ in range(600):
            given, z = made(), truth.sample((128,)).view(256, 2)
            loss = (given.mismatch(z, d) - given.log_prob(z)[torch.arange(256), d]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        z, given = truth.sample((5000,)), made.eval()()
        log_p = torch.stack([given.log_prob(z[:, k])[:, k] for k in (0, 1)], 1)
        missed.append((truth.log_prob(z) - log_p).mean(0).detach())
    assert (missed[0] > 0.45).all()
    assert (missed[1].abs() < 0.1).all()
