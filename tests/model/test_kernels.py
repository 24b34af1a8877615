"""The kernels against dense torch, torch.distributions, scipy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special
import scipy.stats
import torch
from torch.distributions import NegativeBinomial

from invatlas.data.minibatch import SparseCounts
from invatlas.model.kernels import (
    energy_contrast,
    expected_log_density,
    gaussian_evidence,
    negative_binomial_nll,
    rising_sums,
    sparse_linear,
)


def ordinary() -> np.ndarray:
    x = np.random.default_rng(0).poisson(0.8, (6, 5)).astype(float)
    x[2] = 0
    x[:, 3] = 0
    return x


def huge() -> np.ndarray:
    x = ordinary()
    x[0, 0], x[1, 4] = 1e6, 12345
    return x


CASES = {
    "ordinary with an empty cell and an empty gene": ordinary(),
    "without any nonzero": np.zeros((4, 3)),
    "one cell, one gene": np.array([[7.0]]),
    "first and last cell empty": np.array([[0.0, 0], [3, 0], [1, 2], [0, 0]]),
    "first and last gene empty": np.array([[0.0, 1, 2, 0], [0, 3, 0, 0]]),
    "every count positive": np.arange(1.0, 13).reshape(3, 4),
    "huge counts": huge(),
}
LOG_THETAS = {"tiny": -6.0, "ordinary": 0.3, "large": 9.0}
counts_of_every_kind = pytest.mark.parametrize("x", CASES.values(), ids=CASES)


def lay_out(x: np.ndarray) -> SparseCounts:
    return SparseCounts.from_csr(sp.csr_matrix(x), torch.float64)


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def library_size(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.maximum(x.sum(1), 1.0))


def dense_nll(
    logits: torch.Tensor, size: torch.Tensor, log_theta: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Written from the definition: every entry of the matrix, zeros included."""
    mu, theta = torch.softmax(logits, 1) * size[:, None], log_theta.exp()
    log_prob = (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        + theta * (theta.log() - (theta + mu).log())
        + x * (mu.log() - (theta + mu).log())
    )
    return -log_prob.sum(1)


@counts_of_every_kind
@pytest.mark.parametrize("level", LOG_THETAS.values(), ids=LOG_THETAS)
def test_negative_binomial_equals_scipy(x: np.ndarray, level: float) -> None:
    logits, log_theta = draw(*x.shape), level + 0.3 * draw(x.shape[1], seed=2)
    found = negative_binomial_nll(logits, library_size(x), log_theta, lay_out(x))
    theta = log_theta.exp().numpy()
    mu = (torch.softmax(logits, 1) * library_size(x)[:, None]).numpy()
    expected = -scipy.stats.nbinom(theta, theta / (theta + mu)).logpmf(x).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@counts_of_every_kind
def test_negative_binomial_equals_torch_distributions(x: np.ndarray) -> None:
    logits, log_theta = draw(*x.shape), draw(x.shape[1], seed=2)
    log_mu = torch.log_softmax(logits, 1) + library_size(x).log()[:, None]
    oracle = NegativeBinomial(log_theta.exp(), logits=log_mu - log_theta)
    expected = -oracle.log_prob(torch.from_numpy(x)).sum(1)
    found = negative_binomial_nll(logits, library_size(x), log_theta, lay_out(x))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@counts_of_every_kind
@pytest.mark.parametrize("level", LOG_THETAS.values(), ids=LOG_THETAS)
def test_negative_binomial_gradients_equal_those_of_the_dense_formula(
    x: np.ndarray, level: float
) -> None:
    leaves = [draw(*x.shape), level + 0.3 * draw(x.shape[1], seed=2)]
    weight = draw(x.shape[0], seed=3)  # cells count differently, so a mix-up of cells shows
    gradients = []
    for nll, counts in ((negative_binomial_nll, lay_out(x)), (dense_nll, torch.from_numpy(x))):
        logits, log_theta = (leaf.clone().requires_grad_() for leaf in leaves)
        value = nll(logits, library_size(x), log_theta, counts)
        gradients.append(torch.autograd.grad(value @ weight, (logits, log_theta)))
    for found, expected in zip(*gradients, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * max(scale, 1.0))


@pytest.mark.parametrize("name", [name for name in CASES if name != "huge counts"])
def test_negative_binomial_passes_gradcheck(name: str) -> None:
    x = CASES[name]
    logits, log_theta = draw(*x.shape).requires_grad_(), draw(x.shape[1], seed=2).requires_grad_()
    counts, size = lay_out(x), library_size(x)
    assert torch.autograd.gradcheck(
        lambda a, t: negative_binomial_nll(a, size, t, counts), (logits, log_theta)
    )


def test_negative_binomial_gradient_of_one_input_does_not_need_the_other() -> None:
    x = CASES["ordinary with an empty cell and an empty gene"]
    values = []
    for wanted in ("both", "logits", "log_theta"):
        logits, log_theta = draw(*x.shape), draw(x.shape[1], seed=2)
        logits.requires_grad_(wanted != "log_theta")
        log_theta.requires_grad_(wanted != "logits")
        negative_binomial_nll(logits, library_size(x), log_theta, lay_out(x)).sum().backward()
        values.append((logits.grad, log_theta.grad))
    torch.testing.assert_close(values[1][0], values[0][0])
    torch.testing.assert_close(values[2][1], values[0][1])
    assert values[1][1] is None and values[2][0] is None


def test_negative_binomial_with_large_theta_is_poisson() -> None:
    x = CASES["ordinary with an empty cell and an empty gene"]
    logits = draw(*x.shape)
    mu = torch.softmax(logits, 1) * library_size(x)[:, None]
    log_theta = torch.full((x.shape[1],), 16.0, dtype=torch.float64)
    found = negative_binomial_nll(logits, library_size(x), log_theta, lay_out(x))
    expected = -scipy.stats.poisson(mu.numpy()).logpmf(x).sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_negative_binomial_stays_finite_where_a_counted_gene_is_thought_impossible() -> None:
    x = np.array([[5.0, 0.0, 2.0]])
    logits = torch.tensor([[-200.0, 0.0, 0.0]], requires_grad=True)
    log_theta = torch.zeros(3, requires_grad=True)
    counts = SparseCounts.from_csr(sp.csr_matrix(x))
    nll = negative_binomial_nll(logits, torch.tensor([7.0]), log_theta, counts)
    nll.sum().backward()
    assert torch.isfinite(nll).all()
    assert torch.isfinite(logits.grad).all() and torch.isfinite(log_theta.grad).all()
    assert logits.grad[0, 0] < 0, "the impossible gene is pulled up"


@pytest.mark.parametrize("level", [-6.0, 0.0, 6.0])
def test_negative_binomial_in_single_precision_stays_near_double(level: float) -> None:
    generator = np.random.default_rng(3)
    x = generator.poisson(generator.gamma(0.3, 4, (20, 60))).astype(float)
    logits, log_theta = draw(*x.shape), torch.full((60,), level, dtype=torch.float64)
    double = negative_binomial_nll(logits, library_size(x), log_theta, lay_out(x))
    single = negative_binomial_nll(
        logits.float(),
        library_size(x).float(),
        log_theta.float(),
        SparseCounts.from_csr(sp.csr_matrix(x)),
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-2)


@counts_of_every_kind
def test_sparse_linear_equals_a_dense_product(x: np.ndarray) -> None:
    counts, weight = lay_out(x), draw(x.shape[1], 4).requires_grad_()
    dense = torch.log1p(torch.from_numpy(x))
    found = sparse_linear(torch.log1p(counts.values), weight, counts)
    torch.testing.assert_close(found, dense @ weight)
    upstream = draw(x.shape[0], 4, seed=5)
    (gradient,) = torch.autograd.grad(found, weight, upstream)
    torch.testing.assert_close(gradient, dense.T @ upstream)


@counts_of_every_kind
def test_sparse_linear_passes_gradcheck(x: np.ndarray) -> None:
    counts, weight = lay_out(x), draw(x.shape[1], 3).requires_grad_()
    values = torch.log1p(counts.values)
    assert torch.autograd.gradcheck(lambda w: sparse_linear(values, w, counts), (weight,))


def test_sparse_linear_takes_a_gradient_that_is_not_contiguous() -> None:
    x = CASES["every count positive"]
    counts, weight = lay_out(x), draw(x.shape[1], 3).requires_grad_()
    product = sparse_linear(counts.values, weight, counts)
    product.sum(1).sum().backward()  # expands one number, stride 0
    expected = torch.from_numpy(x).T @ torch.ones(x.shape[0], 3, dtype=torch.float64)
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("level", [-7.0, 0.0, 12.0])
def test_looked_up_sums_are_differences_of_scipys_functions(level: float) -> None:
    x = np.array([[1.0, 2, 11, 12, 13, 14, 500]]).T + np.zeros(3)
    log_theta = level + 0.3 * draw(3, seed=2)
    theta, counts = log_theta.exp(), lay_out(x)
    functions = scipy.special.gammaln, scipy.special.digamma
    for found, function in zip(rising_sums(theta, counts), functions, strict=True):
        expected = function(x + theta.numpy()) - function(theta.numpy())
        np.testing.assert_allclose(found.view(x.shape), expected, rtol=1e-8, atol=1e-9)


def test_gaussian_evidence_is_the_density_of_the_sum() -> None:
    m_q, v_q = draw(5, 3), draw(5, 3, seed=2).exp()
    m_d, v_d = draw(4, 3, seed=3), draw(4, 3, seed=4).exp()
    evidence = gaussian_evidence(m_q, v_q, m_d, v_d)
    for i in range(5):
        for j in range(4):
            density = scipy.stats.norm(m_d[j], (v_q[i] + v_d[j]).sqrt())
            assert evidence[i, j].item() == pytest.approx(density.logpdf(m_q[i]).sum(), rel=1e-12)


def test_gradient_of_the_gaussian_evidence_is_exact() -> None:
    means = [draw(5, 3).requires_grad_(), draw(4, 3, seed=3).requires_grad_()]
    variances = [draw(5, 3, seed=2).exp(), draw(4, 3, seed=4).exp()]
    v_q, v_d = (v.detach().requires_grad_() for v in variances)
    assert torch.autograd.gradcheck(gaussian_evidence, (means[0], v_q, means[1], v_d))


def test_energy_contrast_is_its_definition_and_its_gradient_holds_the_spread() -> None:
    z, partners = draw(5, 3).requires_grad_(), draw(5, 8, 3, seed=2)
    enough = torch.tensor([True, True, False, True, False])
    distance = (z[:, None] - partners).norm(dim=2)[enough]
    here, elsewhere = distance.chunk(2, 1)
    expected = (elsewhere - here).sum() / (5 * 4 * distance.mean().detach())
    found = energy_contrast(z, partners, enough)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][~enough].any()


def test_energy_contrast_of_equal_cells_has_a_finite_gradient() -> None:
    z = torch.zeros(3, 2, requires_grad=True)
    energy_contrast(z, torch.zeros(3, 4, 2), torch.ones(3, dtype=torch.bool)).backward()
    assert torch.equal(z.grad, torch.zeros(3, 2))


def test_expected_log_density_is_that_of_torch_distributions() -> None:
    m, v, m_d, log_v_d = (
        draw(5, 3),
        draw(5, 3, seed=2).exp(),
        draw(4, 3, seed=3),
        draw(4, 3, seed=4),
    )
    found = expected_log_density(m * m + v, m, m_d, log_v_d)
    normal = torch.distributions.Normal(m_d, (log_v_d / 2).exp())
    at_mean = normal.log_prob(m[:, None]).sum(2)
    torch.testing.assert_close(found, at_mean - 0.5 * v @ (-log_v_d).exp().T)


def test_gradient_of_the_expected_log_density_is_exact() -> None:
    leaves = [draw(5, 3).square(), draw(5, 3, seed=2), draw(4, 3, seed=3), draw(4, 3, seed=4)]
    assert torch.autograd.gradcheck(expected_log_density, [x.requires_grad_() for x in leaves])
