"""Scales, noise and total effects: by hand, and on simulated noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.typing import NDArray

from invatlas.grn.evidence import UNKNOWN, prefer, total_effects
from invatlas.grn.experiments import read_experiments
from invatlas.grn.measured import Measured, measure
from invatlas.grn.objective import variance

GENES = ["A", "B", "C"]


def measure_rows(
    y: NDArray[np.float64],
    target: list[str],
    kind: list[str | None] | None = None,
    time: list[float] | None = None,
    series: list[str] | None = None,
) -> Measured:
    """Rows of one screen; times and series where some were measured in time."""
    obs = pd.DataFrame({"target": target}, index=[f"row{i}" for i in range(len(y))])
    obs["kind"] = kind if kind is not None else None
    obs["time"] = time if time is not None else np.nan
    obs["series"] = series if series is not None else "one"
    genes = pd.DataFrame(index=GENES if y.shape[1] == 3 else [f"g{j}" for j in range(y.shape[1])])
    timed = {"time": "time", "lineage": "series"} if time is not None else {}
    return measure(
        read_experiments(
            AnnData(y + 0.0, obs=obs, var=genes),
            interventions="target",
            experiment="kind" if kind is not None else None,
            **timed,
        )
    )


# centre 2, 4, 6; A raises B, and lowers C by way of nobody's business here
SCREEN = np.array(
    [[0, 2, 7.0], [1, 3, 6.5], [4, 8, 4], [2, 0, 6], [2, 4, 0.5], [0, 0.0, 6], [2, 4, 6]]
)
TARGETS = ["A", "A", "A", "B", "C", "A+B", "C"]
KINDS: list[str | None] = [
    *("knockout", "knockdown", "overexpression", "knockout", "knockout", "knockout", "knockdown")
]


def test_total_effects_are_those_by_hand() -> None:
    """Doses of A are 1, 1/2 and -1; the pair says nothing of either alone."""
    m = measure_rows(SCREEN, TARGETS, KINDS)
    assert m.centre.tolist() == [2, 4, 6]
    z = total_effects(m)
    assert z is not None
    spread_b, spread_c = np.std([2, 3, 8, 4, 4]), np.std([7, 6.5, 4, 6, 6])
    norm = np.sqrt(1 + 0.25 + 1)
    raised = -(1 * (2 - 4) + 0.5 * (3 - 4) - 1 * (8 - 4)) / norm / spread_b
    lowered = -(1 * (7 - 6) + 0.5 * (6.5 - 6) - 1 * (4 - 6)) / norm / spread_c
    assert z[0, 1].item() == pytest.approx(raised) and raised > 0
    assert z[0, 2].item() == pytest.approx(lowered) and lowered < 0
    assert not z[1, [0, 2]].any() and not z[2, :2].any()


def test_a_gene_that_most_knockouts_move_has_the_level_of_the_wild_types() -> None:
    """Six knockouts of A and C stop B; five wild types know better, and agree on C."""
    rng = np.random.default_rng(3)
    y = rng.normal(1, 0.02, size=(11, 3))
    y[:6, 1] = 0.05
    y[:3, 0], y[3:6, 2] = 0, 0
    m = measure_rows(y, ["A"] * 3 + ["C"] * 3 + ["none"] * 5)
    assert np.allclose(m.centre, 1, atol=0.03)
    assert m.centre[2] == pytest.approx(np.median(np.delete(y[:, 2], [3, 4, 5])))


def test_time_series_of_dream4_are_upset_in_their_first_half() -> None:
    y = np.random.default_rng(0).random((12, 3))
    time = [float(t) for t in [0, 1, 2, 3, 4, 5] * 2]
    series = ["a"] * 6 + ["b"] * 6
    kind: list[str | None] = ["timeseries"] * 6 + [None] * 6
    m = measure_rows(y, ["none"] * 12, kind, time, series)
    assert m.series.upset[:, :, 0].tolist() == [[1.0, 1, 1, 0, 0, 0], [0.0] * 6]


def test_genes_nobody_intervened_on_have_no_total_effects() -> None:
    m = measure_rows(SCREEN[:3], ["A", "A", "B+C"])
    z = total_effects(m)
    assert z is not None and torch.isfinite(z[0]).all() and z[1:].isnan().all()
    assert total_effects(measure_rows(SCREEN[:3], ["A+B", "B+C", "none"])) is None


def test_preference_grows_with_effects_and_is_full_for_prior_edges() -> None:
    z = torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]])
    prior = torch.tensor([[0.0, 0.0], [-0.1, 0.0]])
    assert torch.equal(prefer(None, None, 2), torch.full((2, 2), UNKNOWN))
    found = prefer(z, None, 2)
    assert torch.allclose(found, torch.tensor([[0, 1 - np.exp(-1)], [UNKNOWN, UNKNOWN]]).float())
    assert torch.equal(prefer(z, prior, 2)[1], torch.tensor([1.0, UNKNOWN]))
    assert torch.equal(prefer(-z, None, 2), found)


def test_wild_types_tell_the_usual_level_where_few_genes_were_knocked_out() -> None:
    """A lowers B in half of the rows; the knockouts of C must not seem to raise B."""
    rng = np.random.default_rng(7)
    y = rng.normal(1, 0.05, size=(18, 3))
    y[:6, 1] -= 0.6
    y[:6, 0], y[6:12, 2] = 0, 0
    m = measure_rows(y, ["A"] * 6 + ["C"] * 6 + ["none"] * 6)
    assert np.allclose(m.centre, 1, atol=0.05)
    assert np.allclose(m.noise, 0.05, rtol=0.4)
    z = total_effects(m)
    assert z is not None
    assert z[0, 1] > 3 and z[2, 1].abs() < 1


def test_noise_at_rest_is_found_beside_large_effects() -> None:
    """One row in eight moved far away does not raise it; every gene is held once in a kind."""
    rng = np.random.default_rng(0)
    sd = np.tile([0.1, 0.5, 0.3], 30)
    y = 5 + rng.normal(size=(90, 90)) * sd
    y[:11] -= 4
    m = measure_rows(y, [f"g{j}" for j in range(90)])
    assert np.allclose(m.noise.reshape(30, 3).median(0).values, sd[:3], rtol=0.25)
    assert np.allclose(m.centre, 5, atol=0.4)


@pytest.mark.parametrize("kinds", [4, 20])
def test_noise_of_replicates_is_found_where_every_experiment_moves_every_gene(kinds: int) -> None:
    """Even though one row in twenty is an outlier."""
    rng = np.random.default_rng(6)
    sd = np.array([0.1, 0.5, 0.3])
    sd, place = np.tile(sd, 7), np.arange(200) % kinds
    y = rng.normal(5, 3, size=(kinds, 21))[place] + rng.normal(size=(200, 21)) * sd
    y[::27] += 3
    noise = measure_rows(y, [f"g{k}" for k in place]).noise
    assert np.allclose(noise.reshape(7, 3).mean(0), sd[:3], rtol=0.2)


def test_noise_in_time_is_found_beside_a_trend_at_uneven_times() -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.random(80))
    trend = np.stack([6 * times, 2 + np.sin(3 * times), np.full(80, 1.0)], 1)
    sd = np.array([0.05, 0.2, 0.1])
    y = trend + rng.normal(size=trend.shape) * sd
    obs = pd.DataFrame({"time": times}, index=[f"row{i}" for i in range(80)])
    adata = AnnData(y, obs=obs, var=pd.DataFrame(index=GENES))
    assert np.allclose(measure(read_experiments(adata, time="time", bins=0)).noise, sd, rtol=0.25)


def test_variance_is_half_the_genes_and_half_that_of_its_height() -> None:
    """Also where expression is negative: heights are above the floor."""
    rng = np.random.default_rng(2)
    y = rng.normal(np.array([0, 5, -5]), size=(40, 3))
    m = measure_rows(y, ["A", "B", "C", "A+B"] * 10)
    assert np.allclose(m.floor, y.min(0).clip(max=0), atol=1e-6) and m.floor[1] == 0
    told = torch.tensor([[-100.0, 2.0, -4.0]])
    height = [m.least_height, 2.0, -4.0 - m.floor[2].item()]
    expected = [(m.noise[j].item() ** 2 + m.noise_slope * height[j]) / 2 for j in range(3)]
    assert variance(told, m)[0].tolist() == pytest.approx(expected)


def test_a_gene_held_in_every_experiment_has_its_level_from_the_others() -> None:
    rng = np.random.default_rng(3)
    y = rng.gamma(50, 0.02, size=(9, 3))
    y[:6, 0] = 0
    m = measure_rows(y, ["A"] * 6 + ["none"] * 3)
    assert m.centre[0].item() == pytest.approx(np.median(y[6:, 0]))
    m = measure_rows(y[:6], ["A"] * 6)
    assert m.centre[0] == 0
    for scale in (m.centre, m.unit, m.noise, m.spread, m.reach):
        assert torch.isfinite(scale).all()
    assert (m.noise > 0).all() and (m.unit > 0).all() and (m.spread > 0).all()


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_genes_have_finite_scales(constant: float) -> None:
    y = np.random.default_rng(4).random((8, 3)) + 1
    y[:, :2] = constant
    m = measure_rows(y, ["A", "B", "C", "none"] * 2)
    for scale in (m.unit, m.noise, m.spread):
        assert torch.isfinite(scale).all() and (scale > 0).all()
    z = total_effects(m)
    assert z is not None and torch.isfinite(z).all()


def test_order_of_rows_and_genes_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    y = rng.gamma(2, size=(20, 3))
    targets = rng.choice(["A", "B", "C", "none"], 20)
    times = np.where(np.arange(20) < 8, np.arange(20) % 4, np.nan)
    targets[:8] = "none"
    series = np.where(np.arange(20) < 4, "one", "two")

    def scales(rows: NDArray[np.intp], genes: list[int]) -> list[torch.Tensor]:
        name = dict(zip([GENES[j] for j in genes], GENES, strict=True)) | {"none": "none"}
        m = measure_rows(
            y[rows][:, genes],
            [name[t] for t in targets[rows]],
            time=list(times[rows]),
            series=list(series[rows]),
        )
        z = total_effects(m)
        assert z is not None
        back = np.argsort(genes)
        of_genes = (m.centre, m.unit, m.floor, m.noise, m.spread, m.reach)
        return [*(scale[back] for scale in of_genes), z[back][:, back]]

    here = scales(np.arange(20), [0, 1, 2])
    for there in (scales(rng.permutation(20), [0, 1, 2]), scales(np.arange(20), [2, 0, 1])):
        for one, other in zip(here, there, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_series_are_padded_with_their_last_point() -> None:
    y = np.arange(33.0).reshape(11, 3) + 0.5
    times = [0.0, 1, 2, 3, 0, 1, 3, 0, 1, 2, 3]
    m = measure_rows(y, ["none"] * 11, time=times, series=[*"aaaabbbcccc"])
    s = m.series
    assert s.known.sum(1).tolist() == [4, 3, 4] and s.times[1].tolist() == [0, 1, 3, 3]
    assert torch.equal(s.y[1, 3], s.y[1, 2]) and m.time_unit == 1
    assert len(m.points) == 11 and m.lineages == ("",)
