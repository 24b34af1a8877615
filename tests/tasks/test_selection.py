"""Sensitivity to lost cells, against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import invatlas as ia


@pytest.fixture
def cells() -> AnnData:
    """Control: 20 of 100 cells are B cells; ill: 10 of 100, half as viable as the others."""
    state = ["B"] * 20 + ["T"] * 80 + ["B"] * 10 + ["T"] * 90
    condition = np.repeat(["ctrl", "ill"], 100)
    ill_b = (np.array(state) == "B") & (condition == "ill")
    counts = np.where(np.array(state)[:, None] == "B", [[6, 2, 2]], [[1, 5, 4]])
    obs = pd.DataFrame(
        {"state": state, "condition": condition, "viability": np.where(ill_b, 0.4, 0.8)},
        index=[f"cell {i}" for i in range(200)],
    )
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = ["g0", "g1", "g2"]
    return adata


def ask(cells: AnnData, **changes: object) -> ia.Sensitivity:
    asked = {"state": ("state", "B"), "condition": "condition", "between": ("ctrl", "ill")}
    return ia.selection(cells, **(asked | changes))  # type: ignore[arg-type]


def test_an_assumed_survival_by_hand(cells: AnnData) -> None:
    found = ask(cells, assumed=[1.0, 0.5, 2.0], genes=["g0"])
    curve = found.curve.set_index("survival")
    assert curve["share_a"].tolist() == pytest.approx([0.2] * 3)
    np.testing.assert_allclose(curve["share_b"], [10 / 100, 20 / 110, 5 / 95])
    np.testing.assert_allclose(curve["log_ratio"], np.log(curve["share_b"] / 0.2))
    in_b = 0.6 * curve["share_b"] + 0.1 * (1 - curve["share_b"])
    np.testing.assert_allclose(curve["log_fold_change_g0"], np.log(in_b / (0.6 * 0.2 + 0.1 * 0.8)))
    # the odds 10 : 90 become 20 : 80 where (10 / r) : 90 = 1 : 4
    assert found.tipping_point == pytest.approx(10 / 90 * 4)
    assert "cannot tell which cells were lost" in found.statement


def test_a_measured_viability_by_hand(cells: AnnData) -> None:
    found = ask(cells, viability="viability", assumed=[0.0, 1.0])
    np.testing.assert_allclose(found.curve["share_b"], [0.1, 25 / (25 + 112.5)])
    np.testing.assert_allclose(found.curve["share_a"], [0.2, 0.2])
    assert list(found.curve["strength"]) == [0, 1] and found.tipping_point is None


def test_a_cell_without_a_state_counts_for_nothing(cells: AnnData) -> None:
    cells.obs["state"] = cells.obs["state"].astype(object)
    cells.obs.iloc[50:100, 0] = None
    found = ask(cells, assumed=[1.0]).curve.iloc[0]
    assert found["share_a"] == pytest.approx(20 / 50)


def test_every_donor_counts_the_same(cells: AnnData) -> None:
    cells.obs["donor"] = (["one"] * 20 + ["two"] * 80) + (["three"] * 50 + ["four"] * 50)
    found = ask(cells, donor="donor", assumed=[1.0]).curve.iloc[0]
    assert found["share_a"] == pytest.approx((1 + 0) / 2)
    assert found["share_b"] == pytest.approx((10 / 50 + 0) / 2)
    error = [np.var(x, ddof=1) / 2 / np.mean(x) ** 2 for x in ([1, 0], [0.2, 0])]
    assert found["standard_error"] == pytest.approx(np.sqrt(sum(error)))


def test_the_survival_that_made_the_data_gives_the_truth_back() -> None:
    rng = np.random.default_rng(0)
    state = rng.random(40_000) < 0.3
    ill = np.arange(40_000) % 2 == 1
    lived = rng.random(40_000) < np.where(state & ill, 0.25, 1.0)
    names = {"state": np.where(state, "B", "T"), "condition": np.where(ill, "ill", "ctrl")}
    obs = pd.DataFrame(names)
    adata = AnnData(obs=obs[lived].set_index(obs.index[lived].astype(str)))
    curve = ask(adata, assumed=[0.25, 1.0]).curve
    assert curve["log_ratio"][0] == pytest.approx(0, abs=0.05) and curve["log_ratio"][1] < -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": ("state", "NK")}, "No cell has state NK"),
        ({"between": ("ctrl", "flu")}, "No cell has condition flu"),
        ({"assumed": [0.0]}, "assumed holds 0.0; it takes survival ratios above 0"),
        ({"assumed": [-1.0], "viability": "viability"}, "takes strengths, 0 or more"),
        ({"viability": "state"}, "state of cell 'cell 0' is B; a viability is a number"),
        ({"genes": ["g9"]}, "The data have no gene g9"),
        ({"assumed": []}, "assumed is empty"),
    ],
)
def test_impossible_questions_are_refused(
    cells: AnnData, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ia.InvatlasError, match=message):
        ask(cells, **changes)
