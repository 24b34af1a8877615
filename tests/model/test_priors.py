"""Conditional Gaussians against torch.distributions, and the contract of every prior."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from invatlas.model.invae import PRIORS
from invatlas.model.priors import (
    ConditionalGaussians,
    CovariateTable,
    DiagonalGaussian,
    Prior,
    summed_out,
)
from invatlas.settings import PRIOR_NAMES


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prior() -> ConditionalGaussians:
    weight = torch.softmax(draw(5, seed=3), 0)
    return ConditionalGaussians(draw(5, 3, seed=1), draw(5, 3, seed=2), weight.log())


@pytest.fixture
def posterior() -> DiagonalGaussian:
    return DiagonalGaussian(draw(4, 3, seed=4), draw(4, 3, seed=5) - 0.5)


def as_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> Normal:
    return Normal(mean, (0.5 * log_variance).exp())


def test_log_prob_equals_torch_distributions(prior: ConditionalGaussians) -> None:
    z = draw(4, 3, seed=6)
    expected = torch.stack(
        [
            MultivariateNormal(m, torch.diag(v.exp())).log_prob(z)
            for m, v in zip(prior.mean, prior.log_variance, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(prior.log_prob(z), expected)


def test_divergence_equals_torch_distributions(
    prior: ConditionalGaussians, posterior: DiagonalGaussian
) -> None:
    q = as_normal(posterior.mean[:, None], posterior.log_variance[:, None])
    expected = kl_divergence(q, as_normal(prior.mean, prior.log_variance)).sum(2)
    torch.testing.assert_close(prior.divergence(posterior), expected)


def test_divergence_from_itself_is_zero(prior: ConditionalGaussians) -> None:
    itself = DiagonalGaussian(prior.mean, prior.log_variance)
    found = prior.divergence(itself)
    torch.testing.assert_close(found.diagonal(), torch.zeros(5, dtype=torch.float64))
    assert (found + 10 * torch.eye(5) > 0).all()


def test_log_evidence_equals_the_gaussian_of_both_variances(
    prior: ConditionalGaussians, posterior: DiagonalGaussian
) -> None:
    spread = (prior.log_variance.exp() + posterior.variance[:, None]).sqrt()
    expected = Normal(prior.mean, spread).log_prob(posterior.mean[:, None]).sum(2)
    torch.testing.assert_close(prior.log_evidence(posterior), expected)


def test_log_evidence_equals_monte_carlo(
    prior: ConditionalGaussians, posterior: DiagonalGaussian
) -> None:
    n = 200_000
    noise = draw(n, 3, seed=8)
    for i, found in enumerate(prior.log_evidence(posterior)):
        z = posterior.mean[i] + noise * posterior.variance[i].sqrt()
        p = prior.log_prob(z).exp()
        error = p.std(0) / n**0.5
        assert ((p.mean(0) - found.exp()).abs() < 5 * error).all()


def test_draws_of_a_posterior_have_its_moments_and_gradients() -> None:
    torch.manual_seed(0)
    mean = torch.tensor([[1.0, -2.0]]).expand(50_000, 2).clone().requires_grad_()
    log_variance = torch.tensor([[0.5, -1.0]]).expand(50_000, 2).clone().requires_grad_()
    drawn = DiagonalGaussian(mean, log_variance).sample()
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), log_variance[0].exp(), rtol=0.03, atol=0)
    drawn.square().sum().backward()
    assert mean.grad.abs().sum() > 0 and log_variance.grad.abs().sum() > 0


def test_draws_of_a_combination_lie_where_it_does(prior: ConditionalGaussians) -> None:
    torch.manual_seed(0)
    wanted = torch.tensor([2]).expand(20_000)
    drawn = prior.sample(wanted)
    torch.testing.assert_close(drawn.mean(0), prior.mean[2], rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.var(0), prior.log_variance[2].exp(), rtol=0.06, atol=0)


def table(sizes: list[int], *groups: list[list[bool]]) -> CovariateTable:
    rows = list(product(*map(range, sizes)))
    codes = torch.tensor(rows, dtype=torch.int64).view(len(rows), len(sizes))
    members = tuple(
        torch.tensor(group, dtype=torch.bool).view(-1, size)
        for group, size in zip(groups, sizes, strict=False)
    )
    return CovariateTable(sizes, codes, torch.full((len(rows),), 1 / len(rows)), members)


def allowed(given: CovariateTable, codes: list[list[int]]) -> torch.Tensor:
    made = PRIORS["factorised"](given, 2)
    rows = torch.tensor(codes, dtype=torch.int64).view(len(codes), len(given.sizes))
    return made.allowed(rows)


def test_allowed_combinations_agree_with_what_is_known() -> None:
    given = table([2, 3, 2])
    codes = [list(cell) for cell in product(range(-1, 2), range(-1, 3), range(-1, 2))]
    expected = [
        [all(c in (-1, d) for c, d in zip(cell, row, strict=True)) for row in given.combinations]
        for cell in codes
    ]
    assert allowed(given, codes).tolist() == expected


def test_a_cell_without_any_value_may_be_everything() -> None:
    given = table([2, 3])
    assert allowed(given, [[-1, -1]]).all()
    assert allowed(given, [[1, 2]]).sum() == 1
    assert allowed(given, [[-1, 2]]).sum() == 2


def test_a_coarse_value_allows_what_it_stands_for() -> None:
    given = table([4], [[True, True, False, False], [False, False, True, True]])
    assert allowed(given, [[-2], [-3], [-1], [2]]).tolist() == [
        [True, True, False, False],
        [False, False, True, True],
        [True, True, True, True],
        [False, False, True, False],
    ]


def test_a_coarse_value_narrows_its_own_covariate_only() -> None:
    given = table([3, 2], [[True, False, True]], [])
    assert allowed(given, [[-2, 1], [-2, -1]]).tolist() == [
        [False, True, False, False, False, True],
        [True, True, False, False, True, True],
    ]


def test_without_covariates_there_is_one_combination_and_all_cells_may_be_it() -> None:
    found = allowed(table([]), [[], [], [], []])
    assert found.shape == (4, 1) and found.all()


def test_summed_out_equals_a_plain_sum() -> None:
    terms = draw(6, 5)
    allowed = draw(6, 5, seed=1) > 0
    allowed[:, 0] = True
    expected = [
        sum(t.exp() for t, a in zip(row, ok, strict=True) if a).log()
        for row, ok in zip(terms, allowed, strict=True)
    ]
    torch.testing.assert_close(summed_out(terms, allowed), torch.stack(expected))


def test_summed_out_does_not_overflow() -> None:
    terms = torch.tensor([[1000.0, 1000.0, -1000.0]])
    found = summed_out(terms, torch.tensor([[True, True, True]]))
    torch.testing.assert_close(found, torch.tensor([1000.0 + 2**0.5]), rtol=1e-3, atol=0)


TABLE = table([3, 2])


@pytest.fixture(params=sorted(PRIORS))
def learned(request: pytest.FixtureRequest) -> Prior:
    torch.manual_seed(0)
    return PRIORS[request.param](TABLE, 4, 2)


def test_every_name_of_the_settings_is_a_prior() -> None:
    assert set(PRIORS) == set(PRIOR_NAMES)


def test_a_prior_gives_one_normalised_distribution_a_combination(learned: Prior) -> None:
    given = learned()
    assert given.log_prob(torch.zeros(3, 4)).shape == (3, 6)
    assert given.sample(torch.tensor([0, 5])).shape == (2, 4)
    assert float(given.log_weight.exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_log_prob_of_a_prior_integrates_to_one() -> None:
    axis = torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(axis, axis)
    for name in sorted(PRIORS):
        torch.manual_seed(0)
        made = PRIORS[name](TABLE, 2, 2)
        total = made().log_prob(grid).exp().sum(0) * float(axis[1] - axis[0]) ** 2
        torch.testing.assert_close(total, torch.ones(6), rtol=1e-3, atol=0)


def test_combinations_differ_and_learn(learned: Prior) -> None:
    given = learned()
    assert len(torch.unique(given.mean.detach(), dim=0)) == 6
    given.log_prob(torch.randn(5, 4)).sum().backward()
    gradients = [p.grad for p in learned.parameters() if p.numel()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_a_new_prior_has_no_interaction_to_pay_for(learned: Prior) -> None:
    assert float(learned.shrinkage().detach()) == 0.0


def test_means_without_interaction_are_sums_of_their_parts(learned: Prior) -> None:
    mean = learned().mean.detach().reshape(3, 2, 4)
    torch.testing.assert_close(mean[0, 0] - mean[0, 1], mean[2, 0] - mean[2, 1])
    torch.testing.assert_close(mean[0, 0] - mean[1, 0], mean[0, 1] - mean[1, 1])


def test_an_interaction_bends_the_means_and_is_paid_for(learned: Prior) -> None:
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.copy_(torch.randn_like(parameter))
    mean = learned().mean.detach().reshape(3, 2, 4)
    bend = (mean[0, 0] - mean[0, 1]) - (mean[2, 0] - mean[2, 1])
    assert bend.abs().max() > 1e-3
    assert float(learned.shrinkage().detach()) > 0


@pytest.mark.parametrize("name", sorted(PRIORS))
@pytest.mark.parametrize("latents", [0, 1, 3])
def test_one_covariate_or_none_and_no_latents_are_priors_too(name: str, latents: int) -> None:
    for sizes in ([], [4]):
        made = PRIORS[name](table(sizes), latents, 2)
        assert made().log_prob(torch.zeros(5, latents)).shape == (5, sizes[0] if sizes else 1)
        assert float(made.shrinkage().detach()) == 0.0
