"""The yardsticks: a planted network is found, closed forms are met, units do not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from invatlas.errors import DataError
from invatlas.evaluate.network import network_scores
from invatlas.grn import baselines
from invatlas.grn.experiments import (
    Experiments,
    Intervention,
    SteadyState,
    Trajectory,
    read_experiments,
)

GENES = 8
METHODS = {
    "correlation": baselines.correlation,
    "forests": lambda e: baselines.forests(e, trees=20),
    "lasso": baselines.lasso,
    "knockout_zscore": baselines.knockout_zscore,
    "prior_only": baselines.prior_only,
}


def solve(weights: np.ndarray, knocked: int | None) -> np.ndarray:
    """Rest of dy/dt = 1 + W' y - y, with a gene held at 0."""
    pull = np.eye(GENES) - weights.T
    push = np.ones(GENES)
    if knocked is not None:
        pull[knocked], push[knocked] = np.eye(GENES)[knocked], 0
    return np.linalg.solve(pull, push)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """A chain with one side branch: 0 -> 1 -> ... -> 7 and 0 -| 4."""
    weights = np.diag(np.full(GENES - 1, 0.7), 1)
    weights[0, 4] = -0.5
    return weights


@pytest.fixture(scope="module")
def experiments(weights: np.ndarray) -> Experiments:
    rng = np.random.default_rng(0)
    none = Intervention()
    steady = [SteadyState(solve(weights, None), none)]
    for gene in range(GENES):
        steady.append(SteadyState(solve(weights, gene), Intervention((gene,), "knockout")))
    steady = [replace(s, expression=s.expression + rng.normal(0, 0.01, GENES)) for s in steady]
    trajectories = []
    for k in range(12):
        times, y = np.arange(25) * 0.2, np.empty((25, GENES))
        y[0] = rng.uniform(0, 3, GENES)
        for i in range(24):
            y[i + 1] = y[i] + 0.2 * (1 + y[i] @ weights - y[i])
        y += rng.normal(0, 0.005, y.shape)
        ones = np.ones(25, dtype=np.int64)
        trajectories.append(Trajectory(f"s{k}", "", times, y, 0 * y, ones, none))
    return Experiments(
        pd.Index([f"g{j}" for j in range(GENES)]),
        np.ones(GENES, dtype=bool),
        2.0 * weights,
        tuple(steady),
        tuple(trajectories),
    )


@pytest.mark.parametrize(
    ("name", "least"),
    [("correlation", 1.5), ("forests", 2), ("lasso", 6), ("knockout_zscore", 3), ("prior_only", 7)],
)
def test_a_planted_network_is_found(
    experiments: Experiments, weights: np.ndarray, name: str, least: float
) -> None:
    scores = METHODS[name](experiments)
    found = network_scores({name: scores}, weights != 0, weights).loc[name]
    assert found["auprc_ratio"] >= least
    if name in ("lasso", "prior_only", "knockout_zscore"):
        assert found["signed_accuracy"] == 1


def test_closed_forms(experiments: Experiments) -> None:
    rows = baselines.stack_rows(experiments)
    assert len(rows) == 1 + GENES + 12 * 25
    there = np.corrcoef(rows.T)
    np.fill_diagonal(there, 0)
    assert np.allclose(baselines.correlation(experiments), there)
    knocked = np.stack([s.expression for s in experiments.steady[1:]])
    z = (np.median(knocked, 0) - knocked) / knocked.std(0)
    np.fill_diagonal(z, 0)
    assert np.allclose(baselines.knockout_zscore(experiments), z)
    assert np.array_equal(baselines.prior_only(experiments), experiments.prior)


@pytest.mark.parametrize("name", METHODS)
def test_only_regulators_have_scores_and_none_to_itself(
    experiments: Experiments, name: str
) -> None:
    few = np.arange(GENES) < 3
    scores = METHODS[name](replace(experiments, regulators=few))
    assert scores.shape == (GENES, GENES) and np.isfinite(scores).all()
    assert scores[:3].any() and not scores[3:].any() and not np.diag(scores).any()


@pytest.mark.parametrize("name", ["correlation", "lasso", "knockout_zscore", "forests"])
def test_units_of_a_gene_and_a_constant_gene_change_nothing(
    experiments: Experiments, name: str
) -> None:
    def change(y: np.ndarray) -> np.ndarray:
        y = y * np.where(np.arange(GENES) == 2, 1000.0, 1.0)
        return np.where(np.arange(GENES) == 7, 5.0, y)

    def move(scale: Experiments) -> Experiments:
        return replace(
            scale,
            steady=tuple(replace(s, expression=change(s.expression)) for s in scale.steady),
            trajectories=tuple(replace(t, mean=change(t.mean)) for t in scale.trajectories),
        )

    scores = METHODS[name](move(experiments))
    assert np.isfinite(scores).all() and not scores[:, 7].any()
    assert name == "knockout_zscore" or not scores[7].any()
    if name != "forests":  # a forest draws its splits among all regulators, constant or not
        others = replace(experiments, regulators=np.arange(GENES) != 7)
        assert np.allclose(scores[:7, :7], METHODS[name](others)[:7, :7], atol=1e-4)


def test_a_gene_that_was_held_says_nothing_of_its_regulators(experiments: Experiments) -> None:
    moved = [
        replace(
            s, expression=np.where(np.arange(GENES) == s.intervention.genes, 50.0, s.expression)
        )
        if s.intervention.genes == (3,)
        else s
        for s in experiments.steady
    ]
    there = baselines.lasso(experiments)[:, 3]
    again = baselines.lasso(replace(experiments, steady=tuple(moved)))[:, 3]
    assert np.array_equal(there, again)


def test_the_path_of_many_genes_finds_what_the_grid_finds(
    experiments: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, genes = baselines.lasso(experiments), []
    monkeypatch.setattr(baselines, "MANY_GENES", 1)
    path = baselines.lasso(experiments, on_gene=lambda: genes.append(len(genes)))
    assert np.corrcoef(grid.ravel(), path.ravel())[0, 1] > 0.95
    assert len(genes) == GENES


def test_the_only_regulator_has_none_of_its_own(experiments: Experiments) -> None:
    one = replace(experiments, regulators=np.arange(GENES) == 0)
    for name, method in METHODS.items():
        scores = method(one)
        assert scores.shape == (GENES, GENES), name
        assert np.isfinite(scores).all() and not scores[:, 0].any() and not scores[1:].any()


def test_what_a_yardstick_needs_is_named(experiments: Experiments) -> None:
    with pytest.raises(DataError, match="no steady states of single knockouts"):
        baselines.knockout_zscore(replace(experiments, steady=()))
    with pytest.raises(DataError, match="no prior network"):
        baselines.prior_only(replace(experiments, prior=None))


@pytest.mark.real
@pytest.mark.parametrize(("network", "mark"), [(1, 0.488), (2, 0.388)])
def test_the_marks_of_knockouts_on_dream4(real_data: Path, network: int, mark: float) -> None:
    file = real_data / "grn" / f"dream4_size100_{network}.h5ad"
    if not file.exists():
        pytest.skip(f"needs {file.name} in the folder of the real data")
    adata = ad.read_h5ad(file)
    found = read_experiments(
        adata, time="time", lineage="series", interventions="target", experiment="experiment"
    )
    edges = adata.uns["grn_edges"]
    truth = np.zeros((100, 100), dtype=bool)
    truth[found.genes.get_indexer(edges["regulator"]), found.genes.get_indexer(edges["target"])] = 1
    scores = network_scores({"z": baselines.knockout_zscore(found)}, truth)
    assert scores.loc["z", "auprc"] == pytest.approx(mark, abs=0.001)
