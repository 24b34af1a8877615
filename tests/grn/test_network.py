"""Networks are recovered from screens and series, the same ones whenever they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from sklearn.metrics import average_precision_score

import invatlas as ia
from invatlas.errors import CovariateError, GeneError, SettingsError
from invatlas.grn.baselines import knockout_zscore
from invatlas.grn.experiments import read_experiments
from invatlas.grn.predict import predict_rest

if TYPE_CHECKING:
    from conftest import Truth

SCREEN = {"interventions": "target", "experiment": "experiment"}
SERIES = {"time": "time", "lineage": "series"}
BELIEVED = pd.DataFrame({"regulator": ["G0", "G1", "G6"], "target": ["G1", "G2", "G3"]})


def quick(**changes: object) -> ia.grn.NetworkSettings:
    return ia.grn.NetworkSettings(**{"steps": 400, "members": 1, "refine_steps": 0, **changes})  # type: ignore[arg-type]


def precision(truth: Truth, scores: np.ndarray) -> float:
    """Area under precision and recall over all ordered pairs."""
    pairs = truth.candidates
    return float(average_precision_score(truth.signs[pairs] != 0, np.abs(scores[pairs])))


@pytest.fixture(scope="module")
def screen(truth: Truth) -> AnnData:
    return truth.screen(kinds=("knockout", "knockdown"))


@pytest.fixture(scope="module")
def screened(screen: AnnData) -> ia.grn.Network:
    return ia.grn.fit(screen, **SCREEN, settings=quick(members=2))


@pytest.fixture(scope="module")
def series(truth: Truth) -> AnnData:
    return truth.series(n=8)


@pytest.fixture(scope="module")
def timed(series: AnnData) -> ia.grn.Network:
    return ia.grn.fit(series, **SERIES, settings=quick(members=2, refine_steps=30))


def test_a_screen_tells_its_edges_better_than_total_effects_do(
    truth: Truth, screen: AnnData, screened: ia.grn.Network
) -> None:
    """Chance is 0.17, and a feedback makes most genes of the cascade move together."""
    z = knockout_zscore(read_experiments(screen, **SCREEN))
    found = precision(truth, screened.edges.weight)
    assert found > 0.5 and found > precision(truth, z) + 0.2
    edges = truth.signs != 0
    assert (np.sign(screened.edges.weight) == truth.signs)[edges].all()


def test_series_tell_their_edges(truth: Truth, timed: ia.grn.Network) -> None:
    assert precision(truth, timed.edges.weight) > 0.75
    likely = (timed.edges.probability > 0.5) & truth.candidates
    assert likely.any() and (np.sign(timed.edges.weight) == truth.signs)[likely].all()


def test_screen_and_series_together(truth: Truth, screen: AnnData, series: AnnData) -> None:
    both = ad.concat([screen, series], join="outer")
    network = ia.grn.fit(both, **SCREEN, **SERIES | {"time": "time"}, settings=quick())
    assert precision(truth, network.edges.weight) > 0.7


def test_a_knockout_nobody_made_is_predicted_from_series(
    truth: Truth, timed: ia.grn.Network
) -> None:
    left = 1 - np.eye(len(truth.genes))
    told, true = predict_rest(timed, left), np.stack([truth.rest(row) for row in left])
    apart = ~np.eye(len(left), dtype=bool)
    assert np.abs(told - true)[apart].mean() < 0.6 * np.abs(1 - true)[apart].mean()
    assert np.abs(told[~apart]).max() < 1e-6


def test_knockouts_of_few_genes_do_not_make_them_regulate_everything() -> None:
    """Three of forty genes, six guides each, one true edge."""
    rng = np.random.default_rng(0)
    y = rng.normal(1, 0.05, size=(24, 40))
    y[:6, 5] -= 0.6
    targets = np.repeat(["g0", "g1", "g2", "none"], 6)
    y[np.arange(18), np.arange(18) // 6] = 0
    obs = pd.DataFrame({"target": targets}, index=[f"row{i}" for i in range(24)])
    adata = AnnData(y, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(40)]))
    network = ia.grn.fit(adata, interventions="target", settings=quick(steps=200))
    likely = ia.grn.edges(network).query("probability > 0.5")
    assert likely.iloc[0][["regulator", "target", "sign"]].tolist() == ["g0", "g5", 1]
    assert len(likely) <= 3


def test_what_knockdowns_leave_of_counts_is_learned_in_counts() -> None:
    """Three guides leave a quarter of a gene where half was meant."""
    rng = np.random.default_rng(0)
    rates = np.full((30, 5), 400.0)
    rates[:, 4] = 9000  # the rest of the cell
    for gene in range(3):
        rates[12 + 6 * gene : 18 + 6 * gene, gene] *= 0.25
    obs = pd.DataFrame(
        {
            "target": ["none"] * 12 + ["a"] * 6 + ["b"] * 6 + ["c"] * 6,
            "experiment": ["wildtype"] * 12 + ["knockdown"] * 18,
        },
        index=[f"row{i}" for i in range(30)],
    )
    adata = AnnData(rng.poisson(rates).astype("f4"), obs=obs, var=pd.DataFrame(index=list("abcde")))
    strengths = ia.grn.fit(adata, **SCREEN, settings=quick(steps=200)).strengths
    assert (strengths["nominal"] == 0.5).all()
    assert strengths["left"].to_numpy() == pytest.approx(0.25, abs=0.1)


def test_times_far_from_zero_fit_the_same_network(series: AnnData) -> None:
    """Seconds since 1970, a minute apart."""
    late = series.copy()
    late.obs["time"] = 1.7e9 + 64 * series.obs["time"]
    near = series.copy()
    near.obs["time"] = late.obs["time"] - 1.7e9
    one, other = (ia.grn.fit(a, **SERIES, settings=quick(steps=30)) for a in (near, late))
    assert np.allclose(one.edges.weight, other.edges.weight, atol=1e-3)


def test_the_table_of_edges_is_the_matrix(screened: ia.grn.Network) -> None:
    table = ia.grn.edges(screened)
    n = len(screened.genes)
    assert len(table) == n * (n - 1) and not (table["regulator"] == table["target"]).any()
    assert table["weight"].abs().is_monotonic_decreasing
    assert table[["probability", "stability"]].stack().between(0, 1).all()
    matrix = table.pivot(index="regulator", columns="target", values="weight").fillna(0)
    assert np.array_equal(matrix.to_numpy(), screened.edges.weight * screened.regulators[:, None])
    assert (np.sign(table["weight"]) == table["sign"]).all()


def test_only_regulators_regulate(series: AnnData) -> None:
    network = ia.grn.fit(series, **SERIES, regulators=["G1", "G2"], settings=quick(steps=50))
    assert not network.edges.weight[[0, 3, 4, 5, 6]].any()
    assert set(ia.grn.edges(network)["regulator"]) == {"G1", "G2"}
    assert not network.members[0].gates[[0, 3, 4, 5, 6]].any()


@pytest.mark.parametrize("columns", [SCREEN, SERIES], ids=["screen", "series"])
def test_same_seed_same_network_bit_for_bit(
    columns: dict[str, str], screen: AnnData, series: AnnData
) -> None:
    adata = screen if columns is SCREEN else series
    one, same, other = (
        ia.grn.fit(adata, **columns, settings=quick(steps=60, seed=seed, refine_steps=5))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one.edges.weight, same.edges.weight)
    assert one.history.equals(same.history)
    assert not np.array_equal(one.edges.weight, other.edges.weight)
    for parameter, again in zip(
        one.members[0].dynamics.parameters(), same.members[0].dynamics.parameters(), strict=True
    ):
        assert torch.equal(parameter, again)


def test_more_threads_change_the_last_bits_at_most(series: AnnData) -> None:
    one = ia.grn.fit(series, **SERIES, settings=quick(steps=40))
    torch.set_num_threads(2)
    two = ia.grn.fit(series, **SERIES, settings=quick(steps=40))
    assert np.allclose(one.edges.weight, two.edges.weight, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_units_of_time_and_expression_do_not_matter(series: AnnData, seed: int) -> None:
    """Hours or seconds, and any factor on expression; the factor spares no last bit."""
    settings = quick(steps=100, seed=seed)
    here = ia.grn.fit(series, **SERIES, settings=settings)
    other = series.copy()
    other.obs["time"] *= 2.0**12
    other.X = other.X * 2.0**10
    there = ia.grn.fit(other, **SERIES, settings=settings)
    assert np.allclose(here.edges.weight, there.edges.weight, atol=1e-2)
    assert np.allclose(
        ia.grn.intervene(here, "G0").X * 2**10, ia.grn.intervene(there, "G0").X, rtol=1e-2, atol=1
    )


def test_a_prior_is_preferred_and_never_enforced(truth: Truth) -> None:
    """Two series tell few edges; of those believed two are true, the third is contradicted."""
    adata = truth.series(n=2)
    without, given = (
        ia.grn.fit(adata, **SERIES, prior_network=prior, settings=quick()).members[0].gates
        for prior in (None, BELIEVED)
    )
    assert not without[[0, 1], [1, 2]].any() and given[[0, 1], [1, 2]].min() > 0.5
    assert given[6, 3] < 0.01


def test_a_prior_forbids_nothing(truth: Truth, series: AnnData) -> None:
    given = ia.grn.fit(series, **SERIES, prior_network=BELIEVED, settings=quick()).edges
    assert precision(truth, given.weight) > 0.75
    others = truth.signs != 0
    others[[0, 1], [1, 2]] = False
    assert (given.probability[others] > 0.4).sum() >= 2
    assert given.probability[6, 3] < 0.1


def test_interventions_start_where_lineages_do(timed: ia.grn.Network) -> None:
    """At the first time measured, whichever times are asked for."""
    whole = ia.grn.intervene(timed, ["G1", "G4"], times=[0, 6, 12])
    late = ia.grn.intervene(timed, ["G1", "G4"], times=[6, 12])
    assert np.allclose(late.X[[0, 1, 3, 4]], whole.X[[1, 2, 5, 6]], atol=1e-3)
    assert np.array_equal(whole.X[0], whole.X[4])
    fixed = ia.grn.intervene(timed, ["G1", "G4"], times=np.linspace(0, 12, 97), method="rk4")
    assert np.allclose(fixed.X[[0, 48, 96]], whole.X[:3], atol=1e-2)


def test_interventions_end_at_rest_and_leave_what_is_upstream(timed: ia.grn.Network) -> None:
    far = ia.grn.intervene(timed, "G5", times=[0, 400])
    untouched, intervened = (
        far[far.obs["state"] == "untouched"],
        far[far.obs["state"] != "untouched"],
    )
    assert np.allclose(intervened.X[1], intervened.X[2], atol=1e-2)
    above = ~np.isin(
        timed.genes,
        ["G5", *ia.grn.edges(timed).query("regulator == 'G5' and weight != 0")["target"]],
    )
    assert np.allclose(intervened.X[:, above], untouched.X[:, above], atol=1e-3)
    assert intervened.X[1, 5] < 1e-3 < untouched.X[1, 5]
    half = ia.grn.intervene(timed, "G5", kind="knockdown", times=[0, 400])
    assert half.X[-1, 5] == pytest.approx(untouched.X[-1, 5] / 2, rel=0.02)
    told = ia.grn.intervene(timed, "G5", left=0.5, times=[0, 400])
    assert np.array_equal(told.X, half.X)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"genes": "G77"}, GeneError, r"names 'G77', which is none of the 7 genes"),
        ({"genes": []}, GeneError, r"names no gene"),
        ({"kind": "knock-out"}, SettingsError, r"kind is 'knock-out'; it takes knockout, knockd"),
        ({"left": -0.1}, SettingsError, r"left is -0.1; it takes a share from 0 to 100"),
        ({"left": float("nan")}, SettingsError, r"left is nan"),
        ({"left": "half"}, SettingsError, r"left is 'half'"),
        ({"times": 3.0}, SettingsError, r"times are 3.0; they take two numbers or more that rise"),
        ({"times": [0.0, "x"]}, SettingsError, r"times are \[0.0, 'x'\]"),
        ({"times": [0, 2, 1]}, SettingsError, r"times are \[0, 2, 1\]"),
        ({"times": [0, 1e-50]}, SettingsError, r"times are"),
        ({"times": [-1, 2]}, SettingsError, r"none below 0, where the measurements start"),
        ({"method": "euler"}, SettingsError, r"method is 'euler'; it takes dopri5 or rk4"),
    ],
)
def test_interventions_that_cannot_be_predicted(
    timed: ia.grn.Network, asked: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ia.grn.intervene(timed, **{"genes": "G1", **asked})  # type: ignore[arg-type]


def test_lineages_of_cells_have_names(truth: Truth) -> None:
    one = truth.series(n=2, seed=1)
    cells = ad.concat([one] * 6, index_unique="-")
    cells.X = np.abs(cells.X + np.random.default_rng(0).normal(0, 0.05, cells.shape))
    network = ia.grn.fit(cells, **SERIES, settings=quick(steps=20))
    assert network.lineages == ("s0", "s1")
    assert ia.grn.intervene(network, "G1", lineage="s1").n_obs == 84
    with pytest.raises(CovariateError, match="no lineage 's2'; the network has s0, s1"):
        ia.grn.intervene(network, "G1", lineage="s2")


@pytest.mark.parametrize("production", ["sigmoid", "additive", "multiplicative", "network"])
def test_genes_that_do_not_vary_do_no_harm(series: AnnData, production: str) -> None:
    """Constant, never expressed, and more of them than of others; also below zero."""
    few = series[:, :3]
    still = np.tile([0.0, 3.0, -2.0, 0.0], (series.n_obs, 1))
    adata = AnnData(
        np.hstack([few.X - 1, still]),
        obs=series.obs,
        var=pd.DataFrame(index=[*few.var_names, *"abcd"]),
    )
    network = ia.grn.fit(adata, **SERIES, settings=quick(steps=60, production=production))
    assert np.isfinite(network.edges.weight).all()
    assert not network.edges.weight[3:].any()
    predicted = ia.grn.intervene(network, "G1")
    assert np.isfinite(predicted.X).all()
    assert np.allclose(predicted.X[:, 3:], still[0], atol=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"production": "hill"}, r"production is 'hill'; it takes sigmoid, additive, multipl"),
        ({"steps": 0}, r"steps is 0; it takes a whole number from 1 on"),
        ({"steps": 10.5}, r"steps is 10.5"),
        ({"members": True}, r"members is True"),
        ({"seed": -1}, r"seed is -1"),
        ({"seed": 10**17}, r"seed is 10{17}; it takes a whole number from 0 to 4,294,967,295"),
        ({"refine_steps": -1}, r"refine_steps is -1; it takes a whole number from 0 on"),
        ({"minibatch_size": None}, r"minibatch_size is None"),
        ({"edge_cost": -1.0}, r"edge_cost is -1.0; it takes a number from 0 on"),
        ({"evidence": float("nan")}, r"evidence is nan"),
        ({"learning_rate": float("inf")}, r"learning_rate is inf"),
        ({"learning_rate": None}, r"learning_rate is None"),
        ({"series_weight": "much"}, r"series_weight is 'much'"),
        ({"off_target_cost": -2}, r"off_target_cost is -2"),
        ({"edge_cost": True}, r"edge_cost is True"),
        ({"off_targets": 1.0}, r"off_targets is 1.0"),
        ({"off_targets": None}, r"off_targets is None; it takes true or false"),
        ({"proteins": "yes"}, r"proteins is 'yes'"),
        ({"edges": 3}, r"no setting 'edges'; a network has production, proteins"),
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ia.grn.NetworkSettings.from_dict(wrong)


def test_settings_without_an_opinion_are_taken() -> None:
    settings = ia.grn.NetworkSettings.from_dict({"proteins": None, "series_weight": None})
    assert settings == ia.grn.NetworkSettings()
