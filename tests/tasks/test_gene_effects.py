"""Effects on many genes from few donors: against scipy, closed forms and known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from invatlas.tasks.gene_effects import expected_false_discoveries, moderate, shrink


@pytest.mark.parametrize("d_0", [3.0, 10.0, 50.0])
def test_prior_of_the_variances_is_recovered(generator: np.random.Generator, d_0: float) -> None:
    genes, d, s_0 = 20_000, 6, 0.3
    sigma2 = d_0 * s_0 / generator.chisquare(d_0, genes)
    s2 = sigma2 * generator.chisquare(d, genes) / d
    moderated = moderate(s2, d)
    expected = (d * s2 + d_0 * s_0) / (d + d_0)
    np.testing.assert_allclose(moderated, expected, rtol=0.1)
    assert np.mean((moderated - sigma2) ** 2) < np.mean((s2 - sigma2) ** 2)


def test_equal_variances_become_one(generator: np.random.Generator) -> None:
    moderated = moderate(0.2 * generator.chisquare(8, 3000) / 8, 8)
    np.testing.assert_allclose(moderated, 0.2, rtol=0.05)


def test_posterior_is_that_of_two_normals(generator: np.random.Generator) -> None:
    """All effects from one normal, known errors: the closed form of two normals."""
    tau, error = 1.0, 0.5
    b = generator.normal(0, tau, 4000)
    y = b + generator.normal(0, error, 4000)
    found = shrink(y, np.full(4000, error), 1e6, 0.4)
    shrunk, sd = y * tau**2 / (tau**2 + error**2), np.sqrt(1 / (1 / tau**2 + 1 / error**2))
    np.testing.assert_allclose(found.mean, shrunk, atol=0.25)
    assert np.sqrt(np.mean((found.mean - shrunk) ** 2)) < 0.06
    np.testing.assert_allclose(found.sd, sd, atol=0.06)
    beyond = stats.norm.sf(0.4, shrunk, sd) + stats.norm.cdf(-0.4, shrunk, sd)
    np.testing.assert_allclose(found.probability, beyond, atol=0.06)


@pytest.mark.parametrize("changed", [0.0, 0.05, 0.5])
def test_expected_false_discoveries_are_those_that_happen(
    generator: np.random.Generator, changed: float
) -> None:
    genes, d, threshold = 6000, 6, 0.25
    b = np.where(generator.random(genes) < changed, generator.normal(0, 1, genes), 0)
    sigma2 = 4 * 0.1 / generator.chisquare(4, genes)
    y = b + generator.normal(0, np.sqrt(sigma2 / 2))
    variance = moderate(sigma2 * generator.chisquare(d, genes) / d, d)
    found = shrink(y, np.sqrt(variance / 2), d + 4, threshold)  # genes are independent here
    listed = expected_false_discoveries(found.probability) <= 0.1
    true = np.abs(b) > threshold
    assert (listed & ~true).sum() <= 0.12 * max(listed.sum(), 10)
    if changed:
        assert listed.sum() > 0.2 * true.sum(), "what is clear is found"


def test_false_discoveries_are_means_of_what_is_left(generator: np.random.Generator) -> None:
    rate = expected_false_discoveries(np.array([0.5, 0.9, 1.0]))
    np.testing.assert_allclose(rate, [0.2, 0.05, 0.0])
