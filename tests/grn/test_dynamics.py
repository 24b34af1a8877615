"""Equations in time against scipy, and their steady states against long times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from invatlas.errors import TrainingError
from invatlas.grn.dynamics import PROTEIN_LIFE, Dynamics
from invatlas.grn.production import FAMILIES

FloatArray = NDArray[np.float64]

GENES = 3
GATES = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 1.0], [0.7, 0.0, 0.0]], dtype=torch.float64)
START = torch.tensor([[2.0, 0.2, 1.0], [0.3, 1.0, 4.0]], dtype=torch.float64)
LEFT = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
SHIFT = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)


def make_dynamics(proteins: bool) -> Dynamics:
    """Three genes of different heights and decays; the second may be negative."""
    generator = torch.Generator().manual_seed(5)
    centre = torch.tensor([1.0, 0.5, 3.0])
    floor = torch.tensor([0.0, -0.5, 0.0])
    dynamics = Dynamics(
        FAMILIES["sigmoid"](centre, torch.tensor([1.0, 1.0, 3.0]), floor, generator),
        2,
        1.0,
        proteins,
    ).double()
    with torch.no_grad():
        dynamics.production.weight.normal_(generator=generator).mul_(0.5)
        dynamics.log_decay.copy_(torch.tensor([0.0, 0.7, -0.5]))
    return dynamics.requires_grad_(False)


@pytest.fixture(params=[False, True], ids=["transcripts", "proteins"])
def dynamics(request: pytest.FixtureRequest) -> Dynamics:
    return make_dynamics(request.param)


def solve_by_scipy(dynamics: Dynamics, times: FloatArray) -> FloatArray:
    """Both rows of the constants above, (series, time, gene), written from the equations."""
    d = dynamics.log_decay.exp().numpy()
    floor = dynamics.production.floor.numpy()
    paths = []
    for start, left in zip(START.numpy(), LEFT.numpy(), strict=True):

        def field(_: float, state: FloatArray, left: FloatArray = left) -> FloatArray:
            y, p = state[:GENES], state[GENES:]
            heard = torch.as_tensor(p if dynamics.proteins else y)
            f = dynamics.production(heard, GATES, SHIFT).numpy()
            dy = d * (floor + left * (f - floor) - y)
            return np.concatenate([dy, d / PROTEIN_LIFE * (y - p)])

        both = np.concatenate([start, start])
        solved = solve_ivp(field, times[[0, -1]], both, t_eval=times, rtol=1e-9, atol=1e-10)
        paths.append(solved.y[:GENES].T)
    return np.stack(paths)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(("method", "points"), [("dopri5", 7), ("rk4", 121)])
def test_solutions_are_those_of_scipy(
    dynamics: Dynamics, method: str, points: int, adjoint: bool
) -> None:
    times = np.linspace(1.0, 7.0, points)
    found = dynamics.solve(START, torch.as_tensor(times), GATES, LEFT, SHIFT, method, adjoint)
    assert np.abs(found.numpy() - solve_by_scipy(dynamics, times)).max() < 1e-3


def test_short_steps_converge_to_the_solution(dynamics: Dynamics) -> None:
    truth = solve_by_scipy(dynamics, np.linspace(0.0, 6.0, 7))
    errors = []
    for finer in (2, 8, 32):
        times = torch.linspace(0, 6, 6 * finer + 1, dtype=torch.float64).expand(2, -1)
        path = dynamics.run(START, times, GATES, LEFT, SHIFT)[:, ::finer]
        errors.append(np.abs(path.numpy() - truth).max())
    assert errors[2] < 0.01 and errors[2] < errors[1] / 3 < errors[0] / 9


def test_adjoint_gradients_are_those_of_the_solver(dynamics: Dynamics) -> None:
    """Of the equations, and of gates, interventions and shifts that are no part of a module."""
    times = torch.linspace(0, 3, 4, dtype=torch.float64)
    gradients = []
    for adjoint in (False, True):
        given = [t.clone().requires_grad_() for t in (GATES, LEFT, SHIFT)]
        dynamics.log_decay.requires_grad_()
        path = dynamics.solve(START, times, *given, adjoint=adjoint)
        gradients.append(torch.autograd.grad(path.sum(), [*given, dynamics.log_decay]))
    for plain, adjoint_one in zip(*gradients, strict=True):
        assert torch.allclose(plain, adjoint_one, rtol=1e-2, atol=1e-3)
        assert plain.abs().max() > 0.01


def test_proteins_follow_a_broken_line_exactly() -> None:
    """Times of different lengths, one of them at a standstill where a shorter series ended."""
    dynamics = make_dynamics(True)
    times = torch.tensor([[0.0, 0.4, 2.0, 9.0], [1.0, 1.5, 1.5, 1.5]], dtype=torch.float64)
    y = torch.rand(2, 4, GENES, generator=torch.Generator().manual_seed(0)).double()
    y[1, 2:] = y[1, 1]
    p = dynamics.follow_proteins(y, times)
    k = dynamics.log_turnover.exp().numpy()

    def field(t: float, p: FloatArray) -> FloatArray:
        return k * (np.array([np.interp(t, times[0], y[0, :, j]) for j in range(GENES)]) - p)

    solved = solve_ivp(field, (0, 9), y[0, 0], t_eval=times[0], rtol=1e-9, atol=1e-10, max_step=0.1)
    assert np.abs(p[0].numpy() - solved.y.T).max() < 1e-6
    assert torch.equal(p[1, 1], p[1, 2]) and torch.equal(p[1, 1], p[1, 3])
    assert torch.equal(make_dynamics(False).follow_proteins(y, times), y)


def test_a_step_is_exact_where_production_is_constant(dynamics: Dynamics) -> None:
    shut, times = torch.zeros_like(GATES), torch.tensor([[0.0, 0.1, 5.0]]).double().expand(2, -1)
    y = torch.rand(2, 3, GENES, generator=torch.Generator().manual_seed(0)).double()
    d, floor = dynamics.log_decay.exp(), dynamics.production.floor
    f = floor + LEFT * (dynamics.production(y[:, 0], shut, SHIFT) - floor)
    later = dynamics.step(y, times, shut, LEFT[:, None], SHIFT)
    for a, h in enumerate((0.1, 4.9)):
        assert torch.allclose(later[:, a], f + (y[:, a] - f) * torch.exp(-d * h))


def test_a_step_of_a_solution_is_that_solution(dynamics: Dynamics) -> None:
    times = np.linspace(0, 3, 31)
    path = torch.as_tensor(solve_by_scipy(dynamics, times))
    at = torch.as_tensor(times).expand(2, -1)
    later = dynamics.step(path, at, GATES, LEFT[:, None], SHIFT)
    assert float((later - path[:, 1:]).abs().max()) < 2e-3


def test_rest_is_a_fixed_point_and_the_end_of_time(dynamics: Dynamics) -> None:
    rest = dynamics.solve_rest(LEFT, GATES, SHIFT, iterations=200)
    floor = dynamics.production.floor
    assert torch.allclose(
        floor + LEFT * (dynamics.production(rest, GATES, SHIFT) - floor), rest, atol=1e-6
    )
    end = dynamics.solve(START, torch.tensor([0.0, 200.0]).double(), GATES, LEFT, SHIFT)[:, -1]
    assert torch.allclose(end, rest, atol=1e-3)
    assert torch.allclose(dynamics.settle(LEFT, GATES, SHIFT), rest, atol=1e-5)
    assert rest[1, 0] == floor[0]  # a knockout


def test_what_is_left_of_counts_is_a_share_of_counts_not_of_their_logarithm() -> None:
    """In each of the four places where interventions act; nothing done changes no bit."""
    centre, flat = torch.tensor([1.0, 3.0, 5.5]).double(), torch.zeros(3).double()
    production = FAMILIES["sigmoid"](centre, centre, flat, torch.Generator()).double()
    with torch.no_grad():
        production.weight.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.5)
    dynamics = Dynamics(production, 1, 1.0, True, logarithmic=True).double().requires_grad_(False)
    left = torch.tensor([[1.0, 0.5, 2.0], [0.0, 3.0, 1.0]]).double()
    rest = dynamics.settle(left, GATES, SHIFT)
    f = production(rest, GATES, SHIFT)
    assert torch.allclose(rest.expm1(), left * f.expm1())
    assert float(rest[1, 0]) < 1e-12
    times = torch.linspace(0, 300, 61).double()
    apart = rest.expand(2, -1) + 0.5
    solved = dynamics.solve(apart, times, GATES, left, SHIFT)[:, -1]
    run = dynamics.run(apart, times.expand(2, -1), GATES, left, SHIFT)[:, -1]
    still = rest[:, None].expand(-1, 61, -1)
    step = dynamics.step(still, times.expand(2, -1), GATES, left[:, None], SHIFT)[:, -1]
    for end in (solved, run, step):
        assert torch.allclose(end, rest, atol=1e-3)
    p = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    nothing, gates, low = torch.ones(5000, 3), GATES.float(), -1.0
    single = dynamics.float()
    assert torch.equal(single.produce(p, gates, nothing, low), single.production(p, gates, low))


def make_feedback(decay: float = 1.0) -> Dynamics:
    """The first gene raises the second, which lowers the first, both twice as steeply as usual."""
    one = torch.ones(2)
    production = FAMILIES["sigmoid"](one, one, torch.zeros(2), torch.Generator())
    dynamics = Dynamics(production, 1, 1 / decay, False)
    with torch.no_grad():
        production.weight.copy_(torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))
        production.offset.copy_(torch.tensor([0.3, 0.0]))
    return dynamics.requires_grad_(False)


def test_strong_feedback_settles_where_time_does() -> None:
    """Whole strides of production would throw it to and fro between 0 and 2."""
    feedback, gates, left = make_feedback(), 1 - torch.eye(2), torch.ones(1, 2)
    end = feedback.solve(left, torch.tensor([0.0, 60.0]), gates, left)[:, -1]
    assert torch.allclose(feedback.settle(left, gates), end, atol=1e-3)


def test_what_cannot_be_solved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gates, left = 1 - torch.eye(2), torch.ones(1, 2)
    start = torch.tensor([[0.2, 1.5]])
    stiff, times = make_feedback(decay=1e4), torch.linspace(0, 10, 20)
    with pytest.raises(TrainingError, match="ran away"):
        stiff.solve(start, times, gates, left, method="rk4")
    monkeypatch.setattr("invatlas.grn.dynamics.MOST_SOLVER_STEPS", 100)
    with pytest.raises(TrainingError, match=r"dopri5 gave up within 10 of time \(max_num"):
        stiff.solve(start, times, gates, left)
    with pytest.raises(TrainingError, match="gave up"):
        make_feedback().solve(start * torch.nan, times, gates, left)


def test_lineages_start_without_an_offset() -> None:
    offset: Tensor = make_dynamics(True).lineage_offset
    assert offset.shape == (2, GENES) and not offset.any()
