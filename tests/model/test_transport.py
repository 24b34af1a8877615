"""Transport against the moments it promises, and moments against cells."""

from __future__ import annotations

import torch
from torch import Tensor

from invatlas.model.low_rank import LowRankGaussians
from invatlas.model.measured import K, Measured
from invatlas.model.priors import ConditionalGaussians, DiagonalGaussian, one_hot
from invatlas.model.transport import Transport


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def diagonal(seed: int) -> ConditionalGaussians:
    return ConditionalGaussians(draw(3, 4, seed=seed), draw(3, 4, seed=seed + 1), torch.zeros(3))


def dependent(seed: int) -> LowRankGaussians:
    given = diagonal(seed)
    return LowRankGaussians(
        given.mean, given.log_variance, given.log_weight, draw(3, 4, 2, seed=seed + 2)
    )


def test_of_diagonal_covariances_each_latent_moves_alone() -> None:
    source, target = diagonal(0), diagonal(10)
    z, move = draw(5, 4, seed=20), torch.tensor([2, 0, 1, -1, 2])
    moved = Transport.between(source, target)(z, move)
    ratio = (0.5 * (target.log_variance - source.log_variance)[move]).exp()
    expected = target.mean[move] + ratio * (z - source.mean[move])
    torch.testing.assert_close(moved[move >= 0], expected[move >= 0])
    assert torch.equal(moved[3], z[3])


def test_covariances_are_carried_onto_each_other_by_a_gradient() -> None:
    source, target = dependent(0), dependent(10)
    slope = Transport.between(source, target).slope
    carried = slope @ source.covariance() @ slope.mT
    torch.testing.assert_close(carried, target.covariance())
    torch.testing.assert_close(slope, slope.mT)
    assert (torch.linalg.eigvalsh(slope) > 0).all()


def test_transport_costs_the_squared_wasserstein_distance() -> None:
    source, target = dependent(0), dependent(10)
    away = torch.linalg.eigvals(source.covariance() @ target.covariance()).real.sqrt().sum(1)
    traces = (source.covariance() + target.covariance()).diagonal(dim1=1, dim2=2).sum(1)
    slope = Transport.between(source, target).slope
    step = slope - torch.eye(4, dtype=slope.dtype)
    cost = (step @ source.covariance() @ step.mT).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(cost, traces - 2 * away)


def measured(own: float = 0.0) -> tuple[Measured, Tensor, Tensor]:
    """Three types under three conditions; the last combination has no cell."""
    table = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    means = draw(3, 2, seed=1)[table[:, 0]] + draw(3, 2, seed=2)[table[:, 1]]
    means = (means + own * draw(9, 2, seed=3)).float()
    combination = torch.arange(8).repeat_interleave(500)
    q = DiagonalGaussian(means[combination], torch.zeros(4000, 2))
    found = Measured(9, 2, 1, 4)
    found.count(q, combination)
    return found, one_hot(table, [3, 3]), means


def test_moments_of_combinations() -> None:
    found, _, means = measured()
    torch.testing.assert_close(found.mean[:8], means[:8])
    torch.testing.assert_close(found.log_variance, torch.zeros(9, 2), atol=1e-5, rtol=0)
    assert found.cells.tolist() == [500.0] * 8 + [0.0]


def test_a_combination_nobody_measured_is_the_sum_of_its_values() -> None:
    found, has_value, means = measured()
    added = found.additive(has_value)
    one = torch.eye(9)
    weights = added.weights(has_value, one)
    torch.testing.assert_close(found.at(weights).mean, means, atol=1e-4, rtol=0)
    error = (weights.square().sum(1) / 500).sqrt()
    torch.testing.assert_close(found.error(weights)[:, 0], error, rtol=1e-3, atol=0)
    covered = added.coverage(one).flatten()
    torch.testing.assert_close(covered, torch.tensor([500 / (500 + K)] * 8 + [0.0]))
    assert added.departures.abs().max() < 1e-4


def test_what_combinations_have_of_their_own_says_how_far_others_may_be_off() -> None:
    found, has_value, _ = measured(own=1.0)
    assert found.additive(has_value).departures.norm() > 0.3
