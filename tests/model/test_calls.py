"""Calls against Bayes' rule by hand, and label frequencies against the truth they were drawn by."""

from __future__ import annotations

import pytest
import torch

from invatlas.model.calls import (
    call_log_probabilities,
    call_parts,
    estimate_frequencies,
    reweigh,
    sharpen,
)
from invatlas.model.priors import ConditionalGaussians, DiagonalGaussian

WEIGHT = torch.tensor([0.6, 0.3, 0.1])
MEANS = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])


@pytest.fixture
def prior() -> ConditionalGaussians:
    return ConditionalGaussians(MEANS, torch.zeros(3, 2), WEIGHT.log())


def cells(n: int, shares: torch.Tensor) -> tuple[DiagonalGaussian, torch.Tensor]:
    """Cells of known combinations in known shares, with posteriors as wide as 0.1."""
    generator = torch.Generator().manual_seed(0)
    d = torch.multinomial(shares, n, replacement=True, generator=generator)
    z = MEANS[d] + torch.randn(n, 2, generator=generator)
    return DiagonalGaussian(z, torch.full((n, 2), -4.6)), d


def test_a_temperature_flattens_calls_and_one_leaves_them(prior: ConditionalGaussians) -> None:
    q, _ = cells(50, WEIGHT)
    plain = call_log_probabilities(q, prior)
    bayes = prior.log_evidence(q).exp() * WEIGHT
    torch.testing.assert_close(plain.exp(), bayes / bayes.sum(1, keepdim=True))
    flat = call_log_probabilities(q, prior, 3.0)
    torch.testing.assert_close(flat, torch.log_softmax(plain / 3, 1))
    assert (flat.argmax(1) == plain.argmax(1)).all()
    assert (flat.max(1).values <= plain.max(1).values + 1e-6).all()


def test_parts_of_a_call_add_up_and_equal_exponents_are_a_temperature() -> None:
    combinations = torch.tensor([[0, 0], [0, 1], [1, 0]])  # one pair was never met
    log_p = torch.log_softmax(3 * torch.randn(20, 3), 1)
    log_p[0] = torch.log_softmax(torch.tensor([900.0, 0.0, -900.0]), 0)
    parts = call_parts(log_p, combinations)
    torch.testing.assert_close(parts.sum(0).float(), log_p)
    torch.testing.assert_close(parts[1, 1:, 0].exp().float(), log_p[1:, :2].exp().sum(1))
    torch.testing.assert_close(parts[2, 1:, 1].exp().float(), log_p[1:, 1].exp())
    same = sharpen(log_p, combinations, torch.full((3,), 0.4))
    torch.testing.assert_close(same, torch.log_softmax(log_p / 2.5, 1))


def test_other_frequencies_are_bayes_rule_with_another_prior(prior: ConditionalGaussians) -> None:
    q, _ = cells(50, WEIGHT)
    uniform = torch.full((3,), 1 / 3).log()
    found = reweigh(call_log_probabilities(q, prior), prior.log_weight, uniform)
    evidence = prior.log_evidence(q)
    torch.testing.assert_close(found, torch.log_softmax(evidence, 1))


def test_a_forbidden_combination_is_never_called(prior: ConditionalGaussians) -> None:
    q, _ = cells(50, WEIGHT)
    allowed = torch.tensor([False, True, True])
    weight = prior.log_weight.masked_fill(~allowed, -torch.inf)
    found = reweigh(call_log_probabilities(q, prior), prior.log_weight, weight).exp()
    assert not found[:, 0].any()
    torch.testing.assert_close(found.sum(1), torch.ones(50))


@pytest.mark.parametrize("shares", [[0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]])
def test_frequencies_of_a_query_are_found_without_its_labels(
    prior: ConditionalGaussians, shares: list[float]
) -> None:
    q, d = cells(5000, torch.tensor(shares))
    log_p = call_log_probabilities(q, prior)
    found = estimate_frequencies(log_p, prior.log_weight, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))
    assert (found.exp() - torch.tensor(shares)).abs().max() < 0.05
    shifted = reweigh(log_p, prior.log_weight, found).argmax(1)
    assert (shifted == d).float().mean() >= (log_p.argmax(1) == d).float().mean()


def test_frequencies_keep_to_what_is_allowed(prior: ConditionalGaussians) -> None:
    q, _ = cells(200, WEIGHT)
    allowed = torch.tensor([True, False, True])
    found = estimate_frequencies(call_log_probabilities(q, prior), prior.log_weight, allowed).exp()
    assert found[1] == 0 and found.sum() == pytest.approx(1, abs=1e-5)
