"""What a network predicts: of counts, in each lineage, at rest and in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.errors import CovariateError, SettingsError
from invatlas.grn.dynamics import Dynamics
from invatlas.grn.network import Member
from invatlas.grn.predict import predict_path, predict_rest
from invatlas.grn.production import FAMILIES

QUICK = ia.grn.NetworkSettings(steps=60, members=2, refine_steps=0)
SERIES = {"time": "time", "lineage": "series"}


@pytest.fixture(scope="module")
def counted() -> ia.grn.Network:
    """Two lineages of cells, counted: A and B move one way in one, and later the other way."""
    rng = np.random.default_rng(0)
    t, right = rng.random(300), rng.random(300) < 0.5
    up = np.where(right, 1 - t, t)
    rates = np.stack([10 + 50 * up, 60 - 50 * up, np.full(300, 20), np.full(300, 900)], 1)
    obs = pd.DataFrame(
        {"pseudotime": t + 5 * right, "lineage": np.where(right, "right", "left")},
        index=[f"cell{i}" for i in range(300)],
    )
    cells = AnnData(rng.poisson(rates).astype("f4"), obs=obs, var=pd.DataFrame(index=list("ABCD")))
    return ia.grn.fit(cells, time="pseudotime", lineage="lineage", settings=QUICK)


def at_rest(predicted: AnnData) -> np.ndarray:
    """Steady states without and with the intervention, (state, gene)."""
    return np.asarray(predicted[predicted.obs["time"].isna()].X)


@pytest.mark.parametrize(("kind", "share"), [("knockdown", 0.5), ("overexpression", 2.0)])
def test_interventions_leave_a_share_of_counts(
    counted: ia.grn.Network, kind: str, share: float
) -> None:
    """Of the counts per 10,000: C stands at 200 of them, and nothing hears it."""
    rest = np.expm1(at_rest(ia.grn.intervene(counted, "C", kind=kind))[:, 2])
    assert 100 < rest[0] < 400
    assert rest[1] == pytest.approx(share * rest[0], rel=0.1)


def test_a_network_of_counts_knows_that_it_is_one_when_it_comes_back(
    counted: ia.grn.Network, tmp_path: Path
) -> None:
    ia.grn.save(counted, tmp_path / "grn")
    back = ia.grn.load(tmp_path / "grn")
    assert back.times == counted.times
    found, expected = (ia.grn.intervene(n, "C", left=0.3, lineage="right") for n in (back, counted))
    assert np.array_equal(found.X, expected.X)


def test_a_lineage_is_followed_from_its_own_start_and_time(counted: ia.grn.Network) -> None:
    (first, last), (later, latest) = counted.times
    assert 0 < first < last < 1 and 5 < later < latest < 6
    found = {name: ia.grn.intervene(counted, "D", lineage=name) for name in ("left", "right")}
    assert np.array_equal(ia.grn.intervene(counted, "D").X, found["left"].X)
    for k, predicted in enumerate(found.values()):
        assert np.allclose(predicted.X[0], counted.starts[k], atol=1e-6)
        assert predicted.obs["time"].iloc[[0, 40]].tolist() == list(counted.times[k])
    with pytest.raises(SettingsError, match=r"none below 5\.\d+, where the measurements start"):
        ia.grn.intervene(counted, "D", lineage="right", times=[0.0, 6.0])


def test_a_lineage_has_its_own_offset(counted: ia.grn.Network) -> None:
    """At rest, where starts are forgotten; and on the way, from the same start."""
    left, right = (at_rest(ia.grn.intervene(counted, "D", lineage=k)) for k in ("left", "right"))
    offsets = [m.dynamics.lineage_offset.numpy() for m in counted.members]
    lifted = np.mean([o[0] - o[1] for o in offsets], axis=0)[:2]
    assert (np.sign((left - right)[0, :2]) == np.sign(lifted)).all()
    assert np.abs((left - right)[0, :2]).min() > 0.1
    times = np.linspace(0, 20, 41)
    ends = [predict_path(counted, k, counted.usual, times)[-1] for k in ("left", "right")]
    assert np.abs(ends[0] - ends[1])[:2].min() > 0.1
    shut = ia.grn.intervene(replace(counted, starts=counted.starts[[0, 0]]), "D", lineage="right")
    assert np.abs(shut.X[40] - ia.grn.intervene(counted, "D").X[40])[:2].min() > 0.01


def test_what_is_told_is_the_mean_over_members_and_their_spread(counted: ia.grn.Network) -> None:
    alone = [
        ia.grn.intervene(replace(counted, members=(member,)), "A").X for member in counted.members
    ]
    both = ia.grn.intervene(counted, "A")
    assert np.allclose(both.X, np.mean(alone, axis=0))
    assert np.allclose(both.layers["sd"], np.std(alone, axis=0)) and both.layers["sd"].max() > 0.01


def test_a_lineage_of_a_network_without_lineages_is_refused(network: ia.grn.Network) -> None:
    """Each series has a name, and all share one set of equations."""
    assert network.lineages == ("",)
    message = r"no lineage 'one': the network has one set of equations.*name no lineage"
    with pytest.raises(CovariateError, match=message):
        ia.grn.intervene(network, "A", lineage="one")
    with pytest.raises(CovariateError, match=message):
        predict_path(network, "one", network.usual, np.arange(3.0))
    path = predict_path(network, "", network.usual, np.arange(3.0))
    assert np.array_equal(path[0], network.usual.astype("f4"))


def test_without_series_there_is_no_time(frozen_expression: AnnData) -> None:
    rest = frozen_expression[16:].copy()
    asked = {"interventions": "target", "experiment": "experiment"}
    network = ia.grn.fit(rest, **asked, settings=QUICK)
    assert network.times == ()
    found = ia.grn.intervene(network, "A")
    assert found.obs["time"].isna().all()
    assert found.obs["state"].tolist() == ["untouched", "intervened"]
    left = np.ones((2, 5))
    left[1, 0] = 0
    assert np.allclose(found.X, predict_rest(network, left), atol=1e-6)
    with pytest.raises(SettingsError, match=r"times are \[0, 1\]; the network was fitted without"):
        ia.grn.intervene(network, "A", times=[0, 1])


def test_what_is_untouched_starts_where_series_nobody_intervened_on_do(
    frozen_expression: AnnData,
) -> None:
    series = frozen_expression[:16].copy()
    series.obs["target"] = ["none"] * 8 + ["A"] * 8
    network = ia.grn.fit(series, **SERIES, interventions="target", settings=QUICK)
    assert np.allclose(ia.grn.intervene(network, "B").X[0], series.X[0], atol=1e-6)
    series.obs["target"] = ["A"] * 8 + ["B"] * 8
    both = ia.grn.fit(series, **SERIES, interventions="target", settings=QUICK)
    assert np.allclose(both.starts[0], (series.X[0] + series.X[8]) / 2, atol=1e-6)


def test_times_far_from_zero_are_told_apart(network: ia.grn.Network) -> None:
    """Seconds since 1970: a float of single precision takes steps of two minutes there."""
    late = replace(network, times=((1.7e9, 1.7e9 + 7),))
    asked, expected = (ia.grn.intervene(n, "A") for n in (late, network))
    assert np.allclose(asked.X, expected.X, atol=1e-6)
    assert np.allclose(asked.obs["time"] - 1.7e9, expected.obs["time"], equal_nan=True, atol=1e-5)
    some = ia.grn.intervene(late, "A", times=[1.7e9 + 1, 1.7e9 + 2])
    assert np.allclose(some.X[:2], ia.grn.intervene(network, "A", times=[1, 2]).X[:2])
    times = np.arange(3.0)
    paths = [predict_path(network, "", network.usual, times + late) for late in (0, 1.7e9)]
    assert np.array_equal(*paths)


def test_what_swings_for_ever_has_no_steady_state(network: ia.grn.Network) -> None:
    """Three genes that lower each other in a ring, and two that stand apart."""
    one, n = torch.ones(5), 5
    production = FAMILIES["sigmoid"](one, one, torch.zeros(n), torch.Generator())
    dynamics = Dynamics(production, 1, 1.0, False)
    gates = torch.zeros(n, n)
    gates[[0, 1, 2], [1, 2, 0]] = 1
    with torch.no_grad():
        production.weight.copy_(-20 * gates)
        production.offset[:3] = 0.5
    member = Member(dynamics.requires_grad_(False), gates)
    ring = replace(network, members=(member, network.members[0]))
    with pytest.warns(UserWarning, match=r"for 3 of 5 genes \(A, B, C\).*is missing") as told:
        rest = at_rest(ia.grn.intervene(ring, "E", times=[0.0, 1.0]))
    assert len(told) == 1
    assert np.isnan(rest[:, :3]).all() and np.isfinite(rest[:, 3:]).all()
    assert np.isfinite(predict_rest(ring, np.ones((1, n)))).all()
