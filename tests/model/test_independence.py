"""The penalty answers to the laboratory given the biology, and to nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invatlas.model.independence import (
    COMPARED_CELLS,
    FEWEST,
    dependence,
    draw_partners,
    nobody,
)

CELLS = 2 * COMPARED_CELLS  # half of them were met before
DRAWN = 200  # penalties are means over so many draws of partners
NOISE = 0.02  # what is left of the noise of drawing then


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(values: int, seed: int) -> torch.Tensor:
    return torch.randint(values, (CELLS,), generator=torch.Generator().manual_seed(seed))


def penalise(z: torch.Tensor, d: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Penalty of the later half of the cells, the earlier half being remembered."""
    e = e[:, None] if e.ndim == 1 else e
    half = len(z) // 2
    rows = torch.arange(half)
    recent = nobody(z.shape[1], e.shape[1]).joined(rows, z[:half], d[:half], e[:half])
    return dependence(z[half:], d[half:], e[half:], recent)


def penalty(z: torch.Tensor, d: torch.Tensor, e: torch.Tensor) -> float:
    """Its mean over many draws of the cells to compare with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(torch.stack([penalise(z, d, e).detach() for _ in range(DRAWN)]).mean())


def exact_penalty(z: torch.Tensor, d: torch.Tensor, e: torch.Tensor) -> float:
    """Every remembered cell compared with, written from the definition."""
    half = len(z) // 2
    contrast, distances, n = 0.0, [], 0
    for i in range(half, len(z)):
        here = [j for j in range(half) if d[j] == d[i] and e[j] == e[i]]
        elsewhere = [j for j in range(half) if d[j] == d[i] and e[j] != e[i] and e[j] >= 0]
        if min(len(here), len(elsewhere)) < FEWEST or e[i] < 0:
            continue
        near, far = (float((z[i] - z[k]).norm(dim=1).mean()) for k in (here, elsewhere))
        contrast, distances, n = contrast + far - near, [*distances, near, far], n + 1
    return contrast / half / (sum(distances) / (2 * n))


@pytest.mark.parametrize("laboratories", [2, 3, 7])
def test_draws_estimate_the_energy_distance_without_bias(laboratories: int) -> None:
    z, d, e = draw(CELLS, 3), labels(3, 1), labels(laboratories, 2)
    e[::9] = -1
    z = z + 0.3 * e[:, None] + d[:, None]
    assert penalty(z, d, e) == pytest.approx(exact_penalty(z, d, e), rel=0.02)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_partners_are_of_the_class_and_first_of_the_laboratory_then_of_others(
    classes: int, laboratories: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    d = torch.randint(classes, (260,), generator=generator)
    e = torch.randint(-1, laboratories, (260,), generator=generator)
    drawn, enough = draw_partners(d[:20], e[:20], d[20:], e[20:])
    for i in range(20):
        same = d[20:] == d[i]
        n_here = int((same & (e[20:] == e[i])).sum())
        n_elsewhere = int((same & (e[20:] != e[i]) & (e[20:] >= 0)).sum())
        assert bool(enough[i]) == (n_here >= FEWEST and n_elsewhere >= FEWEST and int(e[i]) >= 0)
        if not enough[i]:
            continue
        here, elsewhere = (20 + half for half in drawn[i].chunk(2))
        assert (d[drawn[i] + 20] == d[i]).all()
        assert (e[here] == e[i]).all()
        assert (e[elsewhere] != e[i]).all() and (e[elsewhere] >= 0).all()


def test_a_shift_between_laboratories_is_penalised_the_more_the_larger_it_is() -> None:
    z, d, e = draw(CELLS, 4), labels(2, 1), labels(2, 2)
    found = [penalty(z + shift * e[:, None], d, e) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]


def test_biology_that_goes_with_the_laboratory_is_not_penalised() -> None:
    """Disease and laboratory are correlated: a marginal penalty would fight the biology."""
    d = labels(2, 1)
    e = torch.where(torch.rand(CELLS, generator=torch.Generator().manual_seed(3)) < 0.9, d, 1 - d)
    z = draw(CELLS, 4)
    biology = penalty(z + 4 * d[:, None], d, e)
    marginal = penalty(z + 4 * d[:, None], torch.zeros_like(d), e)
    laboratory = penalty(z + 4 * d[:, None] + 2 * e[:, None], d, e)
    assert biology < 0.2 * laboratory and biology < 0.2 * marginal
    assert marginal > 0, "pooling the classes shows the dependence"


def test_a_difference_in_spread_alone_is_seen() -> None:
    z, d, e = draw(CELLS, 3), labels(2, 1), labels(2, 2)
    stretched = z * torch.where(e == 1, 4.0, 0.5)[:, None]
    assert penalty(stretched, d, e) > 2 * penalty(z, d, e)


def test_units_of_the_latents_do_not_matter() -> None:
    z, d, e = draw(CELLS, 3), labels(2, 1), labels(2, 2)
    z = z + e[:, None]
    assert penalty(100 * z, d, e) == pytest.approx(penalty(z, d, e), rel=1e-4)


def test_names_of_laboratories_and_classes_and_order_of_cells_do_not_matter() -> None:
    z, d, e = draw(CELLS, 3), labels(3, 1), labels(3, 2)
    z = z + e[:, None]
    expected = penalty(z, d, e)
    renamed = torch.tensor([2, 0, 1])
    half = torch.randperm(CELLS // 2, generator=torch.Generator().manual_seed(0))
    order = torch.cat([half, CELLS // 2 + half])
    assert penalty(z, d, renamed[e]) == pytest.approx(expected, rel=NOISE)
    assert penalty(z, renamed[d], e) == pytest.approx(expected, rel=NOISE)
    assert penalty(z[order], d[order], e[order]) == pytest.approx(expected, rel=NOISE)


def test_nothing_technical_or_everything_missing_costs_nothing() -> None:
    z, d = draw(CELLS, 3), labels(2, 1)
    assert penalty(z, d, torch.zeros(CELLS, 0, dtype=torch.int64)) == 0.0
    assert penalty(z, d, torch.full((CELLS, 1), -1)) == pytest.approx(0.0, abs=1e-6)


def test_each_technical_covariate_counts() -> None:
    z, d, e, other = draw(CELLS, 3), labels(2, 1), labels(2, 2), labels(3, 4)
    z = z + 2 * other[:, None]
    both = penalty(z, d, torch.stack([e, other], 1))
    assert both == pytest.approx(penalty(z, d, e) + penalty(z, d, other), rel=NOISE)
    assert penalty(z, d, other) > 5 * abs(penalty(z, d, e))


def test_a_cell_without_a_laboratory_does_not_count() -> None:
    z, d, e = draw(CELLS, 3), labels(2, 1), labels(2, 2)
    known = torch.rand(CELLS, generator=torch.Generator().manual_seed(7)) < 0.8
    code = torch.where(known, e, -1)
    expected = penalty(z + e[:, None], d, code)
    moved = torch.where(known[:, None], z + e[:, None], z + e[:, None] + 0.3)
    assert penalty(moved, d, code) == pytest.approx(expected, rel=0.2)
    assert penalty(z + 9 * (~known)[:, None], d, code) < 0.2 * expected, "missing is no value"


def test_the_gradient_is_finite_also_for_equal_cells_and_pulls_laboratories_together() -> None:
    e = torch.arange(CELLS) % 2
    z = torch.zeros(CELLS, 2) + e[:, None]
    z.requires_grad_()
    penalise(z, torch.zeros(CELLS, dtype=torch.int64), e).backward()
    assert torch.isfinite(z.grad).all()
    met, now = z.grad[: CELLS // 2], z.grad[CELLS // 2 :]
    assert not met.any(), "what is remembered is held fixed"
    assert (now[e[CELLS // 2 :] == 1] > 0).all() and (now[e[CELLS // 2 :] == 0] < 0).all()


def test_cells_of_a_class_or_laboratory_never_met_cost_nothing() -> None:
    z, d, e = draw(CELLS, 3), labels(2, 1), labels(2, 2)
    half = CELLS // 2
    recent = nobody(3, 1).joined(torch.arange(half), z[:half], d[:half], e[:half, None])
    strange = dependence(z[half:], d[half:] + 5, e[half:, None], recent)
    nothing = dependence(z[half:], d[half:], e[half:, None], nobody(3, 1))
    assert float(strange) == 0.0 and float(nothing) == 0.0


def test_memory_keeps_the_latest_cells_and_no_gradient() -> None:
    recent = nobody(2, 1)
    for step in range(80):
        z = torch.full((128, 2), float(step), requires_grad=True)
        code = torch.full((128,), step)
        rows = torch.arange(128 * step, 128 * (step + 1))
        recent = recent.joined(rows, z, code, code[:, None])
    assert len(recent.rows) == len(recent.z) == len(recent.d) == len(recent.e) < 80 * 128
    assert float(recent.z[-1, 0]) == 79.0 and int(recent.d[-1]) == 79
    assert not recent.z.requires_grad


def test_what_cells_were_themselves_can_be_left_out() -> None:
    z, code = draw(6, 2), torch.arange(6)
    recent = nobody(2, 1).joined(10 + code, z, code, code[:, None])
    others = recent.at(recent.find_others(torch.tensor([15, 11, 3])))
    assert others.rows.tolist() == [10, 12, 13, 14]
    assert others.d.tolist() == others.e[:, 0].tolist() == [0, 2, 3, 4]
    assert torch.equal(others.z, z[[0, 2, 3, 4]])
