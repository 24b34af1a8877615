"""Gates: the hard concrete distribution against its formulas, and against its own draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invatlas.grn.structure import BETA, GAMMA, ZETA, Gates

DRAWS = 20_000


@pytest.fixture
def gates() -> Gates:
    allowed = ~torch.eye(3, dtype=torch.bool)
    allowed[2] = False
    gates = Gates(allowed)
    with torch.no_grad():
        gates.log_odds.copy_(torch.tensor([[9.0, -4.0, 0.0], [1.5, 9.0, -1.0], [9.0, 9.0, 9.0]]))
    return gates


def draw(gates: Gates, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([gates.sample(generator) for _ in range(n)])


def test_chance_of_an_open_gate_is_that_of_its_draws(gates: Gates) -> None:
    with torch.no_grad():
        drawn = draw(gates, DRAWS)
        assert torch.allclose((drawn > 0).float().mean(0), gates.probability(), atol=0.012)
        assert drawn.min() == 0 and drawn.max() == 1


def test_draws_have_the_distribution_of_the_paper(gates: Gates) -> None:
    """P(g <= x) = sigmoid(beta logit((x - gamma) / (zeta - gamma)) - log odds)."""
    with torch.no_grad():
        drawn = draw(gates, DRAWS)[:, 1, 0]
        for x in (0.2, 0.5, 0.9):
            s = torch.tensor((x - GAMMA) / (ZETA - GAMMA))
            below = torch.sigmoid(BETA * torch.logit(s) - gates.log_odds[1, 0])
            assert float((drawn <= x).float().mean()) == pytest.approx(float(below), abs=0.012)


def test_gates_without_noise_follow_the_paper(gates: Gates) -> None:
    s = torch.sigmoid(gates.log_odds[:2]) * (ZETA - GAMMA) + GAMMA
    assert torch.equal(gates.middle()[:2], s.clamp(0, 1) * gates.allowed[:2])


def test_edges_that_may_not_be_are_shut(gates: Gates) -> None:
    for values in (gates.middle(), gates.probability(), draw(gates, 20).amax(0)):
        assert not values[~gates.allowed].any()


def test_gradients_reach_the_odds_of_allowed_edges_only(gates: Gates) -> None:
    (draw(gates, 200).mean(0) + gates.probability()).sum().backward()
    assert gates.log_odds.grad is not None
    assert (gates.log_odds.grad[gates.allowed] > 0).all()
    assert not gates.log_odds.grad[~gates.allowed].any()
