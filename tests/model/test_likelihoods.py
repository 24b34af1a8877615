"""Every likelihood keeps one contract, and each equals its textbook distribution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import Normal
from torch.distributions import Poisson as TorchPoisson

from invatlas.data.minibatch import SparseCounts
from invatlas.model.likelihoods import LIKELIHOODS, Gaussian, NegativeBinomial, Poisson
from invatlas.settings import LIKELIHOOD_NAMES

MEDIAN = 40.0


def draw_counts(cells: int = 12, genes: int = 7) -> np.ndarray:
    x = np.random.default_rng(0).poisson(1.3, (cells, genes)).astype(float)
    x[3], x[:, 2] = 0, 0
    return x


def lay_out(x: np.ndarray, dtype: torch.dtype = torch.float64) -> SparseCounts:
    return SparseCounts.from_csr(sp.csr_matrix(x), dtype)


def draw_logits(x: np.ndarray) -> torch.Tensor:
    return torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def library_size(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.maximum(x.sum(1), 1.0))


def test_every_name_of_the_settings_is_a_likelihood() -> None:
    assert set(LIKELIHOODS) == set(LIKELIHOOD_NAMES)


@pytest.fixture(params=sorted(LIKELIHOODS))
def likelihood(request: pytest.FixtureRequest) -> torch.nn.Module:
    made = LIKELIHOODS[request.param](7, MEDIAN).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.linspace(-1, 1, len(parameter)))
    return made


def test_log_prob_is_one_finite_number_a_cell(likelihood: torch.nn.Module) -> None:
    x = draw_counts()
    log_prob = likelihood(draw_logits(x), library_size(x)).log_prob(lay_out(x))
    assert log_prob.shape == (12,)
    assert torch.isfinite(log_prob).all()


def test_log_prob_of_a_cell_does_not_depend_on_its_neighbours(likelihood: torch.nn.Module) -> None:
    x = draw_counts()
    logits = draw_logits(x)
    together = likelihood(logits, library_size(x)).log_prob(lay_out(x))
    alone = [
        likelihood(logits[i : i + 1], library_size(x)[i : i + 1]).log_prob(lay_out(x[i : i + 1]))
        for i in range(len(x))
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_log_prob_of_no_nonzero(likelihood: torch.nn.Module) -> None:
    x = np.zeros((3, 7))
    log_prob = likelihood(draw_logits(x), library_size(x)).log_prob(lay_out(x))
    assert log_prob.shape == (3,) and torch.isfinite(log_prob).all()


def test_log_prob_has_a_gradient_for_logits_and_parameters(likelihood: torch.nn.Module) -> None:
    x = draw_counts()
    logits = draw_logits(x).requires_grad_()
    likelihood(logits, library_size(x)).log_prob(lay_out(x)).sum().backward()
    for tensor in (logits, *likelihood.parameters()):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0


def test_log_prob_passes_gradcheck(likelihood: torch.nn.Module) -> None:
    x = draw_counts(4)
    counts, size = lay_out(x), library_size(x)
    logits = draw_logits(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: likelihood(a, size).log_prob(counts), (logits,))


def test_draws_have_the_mean(likelihood: torch.nn.Module) -> None:
    torch.manual_seed(0)
    size = torch.full((4000,), 30.0, dtype=torch.float64)
    logits = draw_logits(np.zeros((1, 7))).expand(4000, 7)
    distribution = likelihood(logits, size)
    drawn = distribution.sample()
    assert drawn.shape == distribution.mean.shape == (4000, 7)
    error = (drawn.mean(0) - distribution.mean[0]) / (drawn.std(0) / 4000**0.5)
    assert error.abs().max() < 4.5


@pytest.mark.parametrize("name", ["negative_binomial", "poisson"])
def test_counts_are_drawn_and_the_mean_sums_to_the_library_size(name: str) -> None:
    x = draw_counts()
    distribution = LIKELIHOODS[name](7, MEDIAN).double()(draw_logits(x), library_size(x))
    torch.testing.assert_close(distribution.mean.sum(1), library_size(x))
    drawn = distribution.sample()
    assert (drawn >= 0).all() and (drawn == drawn.floor()).all()


@pytest.mark.parametrize("name", ["negative_binomial", "poisson"])
def test_probabilities_of_all_counts_sum_to_one(name: str) -> None:
    x = np.arange(400.0)[:, None]
    size = torch.full((400,), 9.0, dtype=torch.float64)
    made = LIKELIHOODS[name](1, MEDIAN).double()
    log_prob = made(torch.zeros(400, 1, dtype=torch.float64), size).log_prob(lay_out(x))
    assert float(log_prob.detach().exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_poisson_equals_torch_distributions() -> None:
    x = draw_counts()
    logits = draw_logits(x)
    mu = torch.softmax(logits, 1) * library_size(x)[:, None]
    expected = TorchPoisson(mu).log_prob(torch.from_numpy(x)).sum(1)
    found = Poisson(logits, library_size(x)).log_prob(lay_out(x))
    torch.testing.assert_close(found, expected)


def test_gaussian_equals_torch_distributions() -> None:
    x = draw_counts()
    logits, log_sigma = draw_logits(x), torch.linspace(-1, 1.7, 7, dtype=torch.float64)
    size, median = library_size(x), torch.tensor(MEDIAN, dtype=torch.float64)
    y = torch.log1p(median * torch.from_numpy(x) / size[:, None])
    expected = Normal(logits, log_sigma.exp()).log_prob(y).sum(1)
    found = Gaussian(logits, size, median, log_sigma).log_prob(lay_out(x))
    torch.testing.assert_close(found, expected)


def test_negative_binomial_variance_is_that_of_its_inverse_dispersion() -> None:
    torch.manual_seed(0)
    size = torch.full((60_000,), 8.0)
    log_theta = torch.tensor([0.0, 1.5])
    drawn = NegativeBinomial(torch.zeros(60_000, 2), size, log_theta).sample()
    expected = 4 + 16 / log_theta.exp()
    torch.testing.assert_close(drawn.var(0), expected, rtol=0.06, atol=0)


def test_the_fitted_inverse_dispersion_is_the_one_that_made_the_counts() -> None:
    torch.manual_seed(0)
    size = torch.full((4000,), 60.0)
    logits, truth = torch.zeros(4000, 6), torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0])
    x = NegativeBinomial(logits, size, truth).sample()
    counts = SparseCounts.from_csr(sp.csr_matrix(x.numpy()))
    made = LIKELIHOODS["negative_binomial"](6, MEDIAN)
    optimiser = torch.optim.LBFGS(made.parameters(), max_iter=50)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = -made(logits, size).log_prob(counts).mean()
        loss.backward()
        return loss

    optimiser.step(step)
    torch.testing.assert_close(made.log_theta.detach(), truth, rtol=0, atol=0.15)
