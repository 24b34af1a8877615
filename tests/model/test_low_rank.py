"""Dependent latents against torch.distributions, and against independent ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from invatlas.model.low_rank import LowRankGaussians, LowRankPrior
from invatlas.model.priors import ConditionalGaussians, CovariateTable, DiagonalGaussian


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prior() -> LowRankGaussians:
    weight = torch.softmax(draw(5, seed=3), 0)
    moments = draw(5, 4, seed=1), 0.5 * draw(5, 4, seed=2)
    return LowRankGaussians(*moments, weight.log(), draw(5, 4, 2, seed=7))


@pytest.fixture
def posterior() -> DiagonalGaussian:
    return DiagonalGaussian(draw(6, 4, seed=4), draw(6, 4, seed=5) - 0.5)


def dense(prior: LowRankGaussians) -> list[MultivariateNormal]:
    covariance = prior.loadings @ prior.loadings.mT + prior.log_variance.exp().diag_embed()
    return [MultivariateNormal(*pair) for pair in zip(prior.mean, covariance, strict=True)]


def test_densities_equal_torch_distributions(
    prior: LowRankGaussians, posterior: DiagonalGaussian
) -> None:
    q = MultivariateNormal(posterior.mean, posterior.variance.diag_embed())
    full = dense(prior)
    log_prob = torch.stack([p.log_prob(posterior.mean) for p in full], 1)
    torch.testing.assert_close(prior.log_prob(posterior.mean), log_prob)
    divergence = torch.stack([kl_divergence(q, p) for p in full], 1)
    torch.testing.assert_close(prior.divergence(posterior), divergence)
    wide = [p.covariance_matrix + posterior.variance.diag_embed() for p in full]
    evidence = torch.stack(
        [
            MultivariateNormal(p.loc, w).log_prob(posterior.mean)
            for p, w in zip(full, wide, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(prior.log_evidence(posterior), evidence)


def test_without_loadings_latents_are_independent(
    prior: LowRankGaussians, posterior: DiagonalGaussian
) -> None:
    bare = LowRankGaussians(
        prior.mean, prior.log_variance, prior.log_weight, torch.zeros_like(prior.loadings)
    )
    plain = ConditionalGaussians(prior.mean, prior.log_variance, prior.log_weight)
    for ask in ("divergence", "log_evidence"):
        torch.testing.assert_close(getattr(bare, ask)(posterior), getattr(plain, ask)(posterior))


def test_samples_have_the_covariance(prior: LowRankGaussians) -> None:
    torch.manual_seed(0)
    z = prior.sample(torch.full((200_000,), 2))
    torch.testing.assert_close(z.mean(0), prior.mean[2], atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), dense(prior)[2].covariance_matrix, atol=0.1, rtol=0.03)


def test_dependence_is_learnt() -> None:
    torch.manual_seed(0)
    table = CovariateTable([2], torch.arange(2)[:, None], torch.full((2,), 0.5))
    made = LowRankPrior(table, 3, 1)
    truth = [torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[1.0], [-1.0], [0.0]])]
    covariance = [w @ w.T + 0.2 * torch.eye(3) for w in truth]
    z = torch.stack([MultivariateNormal(torch.zeros(3), c).sample((2000,)) for c in covariance])
    optimiser = torch.optim.Adam(made.parameters(), lr=0.03)
    for _ in range(400):
        given = made()
        loss = -sum(given.log_prob(z[d])[:, d].mean() for d in (0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    given = made()
    assert isinstance(given, LowRankGaussians)
    found = given.loadings @ given.loadings.mT + given.log_variance.exp().diag_embed()
    torch.testing.assert_close(found.detach(), torch.stack(covariance), atol=0.15, rtol=0)
