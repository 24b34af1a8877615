"""Every family of production keeps the promises of the abstract one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invatlas.grn.production import FAMILIES, MOST_ROWS_OF_SLOPES, Production

GENES, ROWS = 4, 40


@pytest.fixture(params=sorted(FAMILIES))
def production(request: pytest.FixtureRequest) -> Production:
    """Random weights, genes of different heights, one of them below zero, one never expressed."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.tensor([1.0, -0.5, 20.0, 0.0])
    floor = torch.tensor([0.0, -2.0, 0.0, 0.0])
    unit = torch.tensor([1.0, 1.5, 20.0, 1e-3])
    made = FAMILIES[request.param](centre, unit, floor, generator).double()
    with torch.no_grad():
        made.weight.normal_(generator=generator)
        made.offset.normal_(generator=generator).mul_(0.2)
        made.log_size.normal_(generator=generator).mul_(0.2)
    return made


@pytest.fixture
def gates() -> Tensor:
    drawn = torch.rand(GENES, GENES, generator=torch.Generator().manual_seed(1)).double()
    return drawn * (1 - torch.eye(GENES, dtype=torch.float64)) * (drawn > 0.3)


def draw_rows(production: Production) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    away = torch.randn(ROWS, GENES, generator=generator).double()
    return torch.maximum(production.centre + away * production.unit, production.floor)


def differentiate(production: Production, p: Tensor, gates: Tensor) -> Tensor:
    """Jacobians of all rows, (row, regulator, target)."""
    return torch.stack(
        [torch.func.jacrev(lambda q: production(q, gates))(row).T for row in p]
    ).detach()


def test_slopes_are_averaged_jacobians(production: Production, gates: Tensor) -> None:
    p = draw_rows(production)
    jacobians = differentiate(production, p, gates)
    expected = jacobians.abs().mean(0) * jacobians.mean(0).sign()
    assert torch.allclose(production.slope(p, gates), expected.to(p.dtype), rtol=1e-5, atol=1e-6)


def test_slopes_of_many_rows_are_means(production: Production, gates: Tensor) -> None:
    p = draw_rows(production)
    many = p.repeat(2 * MOST_ROWS_OF_SLOPES // ROWS + 1, 1)
    assert torch.allclose(production.slope(many, gates), production.slope(p, gates), rtol=1e-5)


def test_a_shut_gate_has_no_influence_at_all(production: Production, gates: Tensor) -> None:
    jacobians = differentiate(production, draw_rows(production), gates)
    assert not jacobians[:, gates == 0].any()
    assert jacobians[:, gates > 0].abs().sum() > 0
    assert not production.slope(draw_rows(production), gates)[gates == 0].any()


def test_usual_levels_give_usual_production(production: Production, gates: Tensor) -> None:
    """With no offset, in genes that are expressed at least as high as they vary."""
    with torch.no_grad():
        for name, parameter in production.named_parameters():
            if name in ("offset", "log_size", "hidden_offset"):
                parameter.zero_()
        made = production(production.centre[None], gates)[0]
    expressed = production.centre - production.floor >= production.unit
    assert expressed.sum() == 3
    assert torch.allclose(made[expressed], production.centre[expressed])


def test_production_is_finite_and_above_its_floor(production: Production, gates: Tensor) -> None:
    far = torch.tensor([-1e6, -1.0, 0.0, 1.0, 1e6]).double()[:, None].expand(-1, GENES)
    with torch.no_grad():
        made = production(far, gates)
    assert torch.isfinite(made).all() and (made >= production.floor).all()


def test_a_shift_raises_its_gene_only(production: Production, gates: Tensor) -> None:
    p = draw_rows(production)
    with torch.no_grad():
        raised = production(p, gates, torch.tensor([0.0, 0.5, 0.0, 0.0])) - production(p, gates)
    assert (raised[:, 1] > 0).any() and (raised[:, 1] >= 0).all()
    assert not raised[:, [0, 2, 3]].any()


def test_genes_in_another_order_are_the_same_genes(production: Production, gates: Tensor) -> None:
    """Each parameter of a gene moves with it."""
    order = torch.tensor([2, 0, 3, 1])
    other = type(production)(
        production.centre[order],
        production.unit[order],
        production.floor[order],
        torch.Generator(),
    ).double()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            moved = production.get_parameter(name)[order]
            parameter.copy_(moved[:, order] if name == "weight" else moved)
    p = draw_rows(production)
    there = other.slope(p[:, order], gates[order][:, order])
    here = production.slope(p, gates)[order][:, order]
    assert torch.allclose(there, here, rtol=1e-5, atol=1e-9)


def test_what_weights_cost_counts_open_gates_only(production: Production, gates: Tensor) -> None:
    production.weigh(gates).backward()
    assert production.weight.grad is not None
    assert not production.weight.grad[gates == 0].any()
    assert production.weigh(torch.zeros_like(gates)).item() == 0
