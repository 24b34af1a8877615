"""The border of ``grn``: rows become series, bins and steady states, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from invatlas.errors import CovariateError, DataError, GeneError, SettingsError
from invatlas.grn.experiments import (
    GIVEN,
    NORMALISED,
    Experiments,
    Intervention,
    read_experiments,
)

DREAM4 = {
    "time": "time",
    "lineage": "series",
    "interventions": "target",
    "experiment": "experiment",
}


@pytest.fixture
def series() -> AnnData:
    """Two series of four times, a wild type, a knockout, a double knockdown, and a mixture."""
    obs = pd.DataFrame(
        {
            "time": [*(0.0, 1.0, 2.0, 3.0) * 2, *[np.nan] * 4],
            "series": [*["one"] * 4, *["two"] * 4, *["x"] * 4],
            "target": [*["none"] * 9, "A", "C+B", None],
            "experiment": [
                *["timeseries"] * 8,
                "wildtype",
                "knockout",
                "knockdown",
                "multifactorial",
            ],
        },
        index=[f"row{i}" for i in range(12)],
    )
    y = np.random.default_rng(0).normal(size=(12, 3))
    return AnnData(y, obs=obs, var=pd.DataFrame(index=["A", "B", "C"]))


def test_rows_at_rest_beside_a_column_of_times_are_doubted(series: AnnData) -> None:
    def doubts(adata: AnnData, **asked: str) -> list[str]:
        told = read_experiments(adata, **asked).warnings
        return [warning for warning in told if "No time is named" in warning]

    (told,) = doubts(series)
    assert "so 12 rows count as steady states" in told
    assert "obs has time, which looks like a time: name it with --time time " in told
    assert not doubts(series, time="time", lineage="series")
    for name, looks in (
        ("pseudotime_1", True), ("dpt_pseudotime", True), ("Day", True), ("sim_time", True),
        ("hours", True), ("sometimes", False), ("birthday", False), ("n_counts", False),
    ):  # fmt: skip
        renamed = series.copy()
        renamed.obs = renamed.obs.rename(columns={"time": name})
        assert bool(doubts(renamed)) == looks, name
    series.obs["time"] = [*(f"day {k}" for k in range(12))]
    assert not doubts(series)


@pytest.fixture
def cells() -> AnnData:
    """Counts of 400 cells in pseudotime, two lineages of two donors."""
    rng = np.random.default_rng(1)
    t = rng.random(400)
    obs = pd.DataFrame(
        {
            "pseudotime": t,
            "lineage": rng.choice(["left", "right"], 400),
            "donor": rng.choice(["d1", "d2"], 400),
        },
        index=[f"cell{i}" for i in range(400)],
    )
    rates = np.stack([50 * t, 50 * (1 - t), np.full(400, 20), np.full(400, 30)], 1)
    return AnnData(
        rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=list("ABCD"))
    )


def read_cells(adata: AnnData, **changes: object) -> Experiments:
    asked = {"time": "pseudotime", "lineage": "lineage", "donor": "donor"}
    return read_experiments(adata, **{**asked, **changes})  # type: ignore[arg-type]


def test_every_row_becomes_what_it_is(series: AnnData) -> None:
    found = read_experiments(series, **DREAM4)
    assert found.scale == GIVEN and found.warnings == () and found.prior is None
    assert found.regulators.all() and list(found.genes) == ["A", "B", "C"]
    for k, trajectory in enumerate(found.trajectories):
        assert trajectory.lineage == ("one", "two")[k] and trajectory.perturbed
        assert np.array_equal(trajectory.times, [0, 1, 2, 3])
        assert np.array_equal(trajectory.mean, series.X[4 * k : 4 * k + 4])
        assert not trajectory.spread.any() and (trajectory.cells == 1).all()
        assert trajectory.intervention == Intervention()
    assert [s.name for s in found.steady] == ["row8", "row9", "row10", "row11"]
    assert [s.intervention for s in found.steady] == [
        Intervention((), "none"),
        Intervention((0,), "knockout"),
        Intervention((1, 2), "knockdown"),
        Intervention((), "multifactorial"),
    ]
    assert np.array_equal(found.steady[1].expression, series.X[9])


def test_a_gene_without_a_kind_is_a_knockout_and_series_under_one_stand_apart(
    series: AnnData,
) -> None:
    series.obs["target"] = [*["none"] * 4, *["B"] * 4, *["none"] * 3, "A"]
    series.obs["series"] = "all"
    found = read_experiments(series, time="time", lineage="series", interventions="target")
    assert [t.intervention for t in found.trajectories] == [
        Intervention((1,), "knockout"),
        Intervention(),
    ]
    assert found.steady[-1].intervention == Intervention((0,), "knockout")


def test_a_gene_that_is_called_like_a_missing_value_is_that_gene(series: AnnData) -> None:
    series.var_names = ["nan", "NA", "B"]
    series.obs["target"] = ["nan", "NA", "nan+B", "none", "na", None, float("nan"), *["B"] * 5]
    done = [s.intervention.genes for s in read_experiments(series, interventions="target").steady]
    assert done == [(0,), (1,), (0, 2), (), (), (), (), *[(2,)] * 5]


def test_numbers_too_great_to_have_fractions_are_no_counts(series: AnnData) -> None:
    series.X = np.abs(series.X) * 1e20
    assert read_experiments(series).scale == GIVEN
    series.X = np.floor(series.X / 1e6)
    assert read_experiments(series).scale == NORMALISED


def test_without_a_time_all_rows_are_steady(series: AnnData) -> None:
    found = read_experiments(series)
    assert len(found.steady) == 12 and found.trajectories == ()


def test_pseudotime_is_binned_evenly_by_lineage_and_donor(cells: AnnData) -> None:
    found = read_cells(cells)
    assert found.scale == NORMALISED and not found.steady
    assert [(t.lineage, t.donor) for t in found.trajectories] == [
        ("left", "d1"),
        ("left", "d2"),
        ("right", "d1"),
        ("right", "d2"),
    ]
    y = np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))
    for t in found.trajectories:
        chosen = ((cells.obs["lineage"] == t.lineage) & (cells.obs["donor"] == t.donor)).to_numpy()
        assert t.cells.sum() == chosen.sum() and np.ptp(t.cells) <= 1 and t.cells.min() >= 8
        assert (np.diff(t.times) > 0).all()
        order = np.flatnonzero(chosen)[np.argsort(cells.obs["pseudotime"].to_numpy()[chosen])]
        first = y[order[: t.cells[0]]]
        assert np.allclose(t.mean[0], first.mean(0), atol=1e-5)
        assert np.allclose(t.spread[0], first.std(0, ddof=1), atol=1e-5)
        assert np.allclose(t.cells @ t.mean / t.cells.sum(), y[chosen].mean(0), atol=1e-5)


def test_bins_are_as_many_as_asked_and_never_split_a_time(cells: AnnData) -> None:
    assert {len(t.times) for t in read_cells(cells, bins=5).trajectories} == {5}
    cells.obs["pseudotime"] = cells.obs["pseudotime"].round(1)
    for t in read_cells(cells, bins=5, lineage=None, donor=None).trajectories:
        assert len(t.times) <= 5 and t.cells.sum() == 400
    by_time = read_cells(cells, lineage=None, donor=None).trajectories[0]
    times, counts = np.unique(cells.obs["pseudotime"], return_counts=True)
    assert np.allclose(by_time.times, times) and np.array_equal(by_time.cells, counts)


def test_neither_the_order_of_rows_nor_that_of_genes_matters(cells: AnnData) -> None:
    rng = np.random.default_rng(2)
    genes = rng.permutation(4)
    there = read_cells(cells).trajectories
    moved = read_cells(cells[rng.permutation(400)][:, genes].copy()).trajectories
    for a, b in zip(there, moved, strict=True):
        assert (a.lineage, a.donor) == (b.lineage, b.donor)
        assert np.array_equal(a.cells, b.cells) and np.allclose(a.times, b.times)
        assert np.allclose(a.mean[:, genes], b.mean) and np.allclose(a.spread[:, genes], b.spread)


def test_counts_on_the_disk_are_read(cells: AnnData, tmp_path: Path) -> None:
    cells.X = sp.csr_matrix(cells.X)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    choices = {"time": "pseudotime", "lineage": "lineage"}
    there, here = (read_experiments(some, **choices) for some in (backed, cells))
    for one, other in zip(there.trajectories, here.trajectories, strict=True):
        assert np.array_equal(one.mean, other.mean)


@pytest.mark.parametrize("odd", [-1.0, 0.5])
def test_counts_with_one_odd_value_are_told(cells: AnnData, odd: float) -> None:
    y = np.asarray(cells.X, dtype=float)
    y[5, 1] = odd
    cells.X = y
    found = read_experiments(cells, time="pseudotime")
    assert found.scale == GIVEN
    assert f"look like counts ({odd:g} in row" in found.warnings[0]


def test_what_is_no_column_and_what_never_varies_is_refused(series: AnnData) -> None:
    for name, value in (("time", ""), ("donor", 3), ("experiment", "")):
        with pytest.raises(SettingsError, match=f"{name} is {value!r}; it takes the name"):
            read_experiments(series, **{name: value})
    with pytest.raises(SettingsError, match=r"bins is 2\.5; it takes a whole number"):
        read_experiments(series, time="time", bins=2.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the same in all of 1 row:"):
        read_experiments(series[:1].copy())
    series.X[:] = 3.0
    with pytest.raises(DataError, match="the same in all of 12 rows: nothing varies"):
        read_experiments(series)


def test_a_row_drawn_twice_counts_once(series: AnnData) -> None:
    twice = ad.concat([series, series[:3]], index_unique="-")
    found = read_experiments(twice, **DREAM4)
    assert [t.cells.tolist() for t in found.trajectories] == [[1] * 4] * 2
    assert "3 rows repeat" in found.warnings[0]
    twice.X[-1] += 1
    assert read_experiments(twice, **DREAM4).trajectories[0].cells.tolist() == [1, 1, 2, 1]


def test_cells_without_a_pseudotime_are_not_taken_for_steady_states_in_silence(
    cells: AnnData,
) -> None:
    cells.obs.loc[cells.obs_names[:7], "pseudotime"] = np.nan
    found = read_cells(cells)
    assert len(found.steady) == 7 and "7 rows without a pseudotime" in found.warnings[0]


def test_prior_network_of_a_table_and_of_varm(series: AnnData) -> None:
    edges = pd.DataFrame(
        {"regulator": ["A", "B", "Z"], "target": ["B", "A", "A"], "sign": ["+", "-", "+"]}
    )
    found = read_experiments(series, **DREAM4, prior_network=edges)
    assert found.prior is not None
    assert np.array_equal(found.prior, [[0, 1, 0], [-1, 0, 0], [0, 0, 0]])
    assert "1 of 3 edges" in found.warnings[0] and "Z to A" in found.warnings[0]
    series.varm["motifs"] = np.array([[0, 0.5, 0], [0, 0, -0.5], [0, 0, 0]])
    found = read_experiments(series, **DREAM4, prior_network="motifs", regulators=["A", "C"])
    assert found.prior is not None and np.array_equal(found.regulators, [True, False, True])
    assert np.array_equal(found.prior, [[0, 0.5, 0], [0, 0, 0], [0, 0, 0]])
    weighted = edges.drop(columns="sign").assign(weight=[0.2, -3, 1])
    found = read_experiments(series, prior_network=weighted)
    assert found.prior is not None and found.prior[1, 0] == -3


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"sign": ["+", "-", None]}, [1, -1, 1]),
        ({"sign": ["1", "-1", ""]}, [1, -1, 1]),
        ({"sign": [1.0, -1.0, np.nan]}, [1, -1, 1]),
        ({"sign": [1, -1, 0]}, [1, -1, 1]),
        ({"weight": ["0.5", " -2", ""]}, [0.5, -2, 1]),
        ({"weight": [0.5, -2, np.nan], "sign": ["-", None, "-"]}, [-0.5, -2, -1]),
        ({"weight": [0.5, -2, 0.0], "sign": [1, -1, 0]}, [0.5, -2, 0]),
    ],
    ids=str,
)
def test_a_sign_or_weight_that_is_not_known_is_belief_all_the_same(
    series: AnnData, columns: dict[str, list[object]], expected: list[float]
) -> None:
    edges = pd.DataFrame({"regulator": list("ABC"), "target": list("BCA"), **columns})
    found = read_experiments(series, **DREAM4, prior_network=edges)
    assert found.prior is not None and found.warnings == ()
    assert found.prior[[0, 1, 2], [1, 2, 0]].tolist() == expected


def test_self_edges_and_edges_of_two_signs_are_told(series: AnnData) -> None:
    edges = pd.DataFrame(
        {
            "regulator": ["A", "A", "A", "B", "B", "C"],
            "target": ["A", "B", "B", "C", "C", "C"],
            "sign": ["+", "-", "+", "-", "-", "-"],
        }
    )
    found = read_experiments(series, **DREAM4, prior_network=edges)
    assert found.prior is not None
    assert np.array_equal(found.prior, [[0, 1, 0], [0, 0, -1], [0, 0, 0]])
    differ, left_out = found.warnings
    assert differ.endswith("differ in it: 1 edge, such as A to B.")
    assert left_out == "Left out of the prior network: 2 edges from a gene to itself."
    series.varm["loops"] = np.eye(3)
    with pytest.raises(GeneError, match="no edge left: 3 edges from a gene to itself"):
        read_experiments(series, **DREAM4, prior_network="loops")
    with pytest.raises(SettingsError, match=r"prior_network is 3 \(int\); it takes a table"):
        read_experiments(series, **DREAM4, prior_network=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"time": "tim"}, CovariateError, r"no column 'tim'.*Did you mean 'time'"),
        ({"time": "flat"}, CovariateError, r"'flat' is 2 in every row; a time needs two values"),
        ({"time": "silent"}, CovariateError, r"'silent' is missing in every row"),
        ({"time": "series"}, CovariateError, r"'series' holds 'one' \(row 'row0'\), which is no"),
        ({"lineage": "cell"}, CovariateError, r"no column 'cell'"),
        ({"donor": "who"}, CovariateError, r"no column 'who'"),
        ({"time": None}, SettingsError, r"a lineage needs times"),
        ({"lineage": "target"}, CovariateError, r"'target' is missing in row 'row0'.*8 such rows"),
        ({"experiment": "series"}, CovariateError, r"'one' \(row 'row0'\).*knockout, knockdown"),
        ({"interventions": "odd"}, GeneError, r"Row 'row9' intervenes on 'AA', which is none of"),
        ({"interventions": "early"}, CovariateError, r"'row0' is called timeseries and names"),
        ({"interventions": None}, CovariateError, r"'row9' is called knockout and names no"),
        ({"regulators": ["A", "GATA1"]}, GeneError, r"regulators name 'GATA1' \(1 of 2 names\)"),
        ({"regulators": ["a"]}, GeneError, r"'a', which is .* \(A, B, C; did you mean 'A'\?\)\.$"),
        ({"regulators": ["A", "b", "c"]}, GeneError, r"'b', 'c' .*, which are none of"),
        ({"regulators": ["C,A"]}, GeneError, r"\(A, B, C; several genes are joined by \+"),
        ({"regulators": "A"}, SettingsError, r"takes a list of genes"),
        ({"layer": "raw"}, DataError, r"no layer 'raw'; the layers are none"),
        ({"bins": 1}, SettingsError, r"bins is 1"),
        ({"prior_network": "motif"}, CovariateError, r"no prior network 'motif'"),
    ],
)
def test_mistakes_are_named(
    series: AnnData, change: dict[str, object], error: type[Exception], message: str
) -> None:
    series.obs["flat"], series.obs["silent"] = 2.0, None
    series.obs["odd"] = [*["none"] * 9, "AA", "B", None]
    series.obs["early"] = [*["A"] * 8, None, "A", "B", None]
    with pytest.raises(error, match=message):
        read_experiments(series, **{**DREAM4, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ({"from": ["A"], "target": ["B"]}, r"no column 'regulator'; it has from, target"),
        ({"regulator": ["A"], "target": ["B"], "sign": ["up"]}, r"the sign 'up'; it takes \+"),
        ({"regulator": ["A"], "target": ["B"], "weight": ["w"]}, r"the weight 'w'"),
        ({"regulator": ["X"], "target": ["Y"]}, r"no edge left: 1 of 1 edges"),
        ({"regulator": ["C"], "target": ["B"]}, r"no edge left: 1 edge from .* do not regulate"),
        (
            {"regulator": ["A", "C"], "target": ["A", "C"]},
            r"2 edges from a gene to itself\.$",
        ),
        ({"regulator": ["A"], "target": ["B"], "weight": [0.0]}, r"left: every weight is 0\.$"),
        ({"regulator": [], "target": [], "sign": []}, r"regulator, target, sign and no row"),
        (
            {"regulator": ["A"], "target": ["B"], "sign": [np.float64(2)]},
            r"the sign '2\.0'; it takes \+, -, 1, -1, or nothing",
        ),
    ],
)
def test_prior_networks_that_say_nothing_are_refused(
    series: AnnData, edges: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_experiments(series, regulators=["A"], prior_network=pd.DataFrame(edges))


def test_a_lineage_of_three_cells_is_named(cells: AnnData) -> None:
    cells.obs.loc[cells.obs_names[:3], "lineage"] = "rare"
    cells.obs.loc[cells.obs_names[:3], "donor"] = "d1"
    message = r"Lineage 'rare' of donor 'd1' has 3 cells; a trajectory of cells needs 24"
    with pytest.raises(CovariateError, match=message):
        read_cells(cells)
    cells.obs["pseudotime"] = cells.obs["pseudotime"].round(1)
    cells.obs.loc[cells.obs_names[:3], "pseudotime"] = [0.0, 0.1, 0.2]
    with pytest.raises(CovariateError, match=message):
        read_cells(cells)


def test_a_series_of_one_time_is_named(series: AnnData) -> None:
    series.obs["time"] = [*(0.0, 1.0, 2.0, 3.0), *[1.0] * 4, *[np.nan] * 4]
    with pytest.raises(CovariateError, match="Lineage 'two' has one time only, 1"):
        read_experiments(series, **DREAM4)


def test_a_hole_in_expression_is_named(series: AnnData) -> None:
    series.X[4, 1] = np.nan
    with pytest.raises(DataError, match="nan in row 'row4', gene 'B'"):
        read_experiments(series, **DREAM4)
    series.var_names = ["A", "A", "B"]
    with pytest.raises(GeneError, match="'A' is there twice"):
        read_experiments(series)


FILES = {
    "dream4_size10_1": (DREAM4, 31, 5),
    "dream4_size100_1": (DREAM4, 201, 10),
    "dream4_size100_2": (DREAM4, 201, 10),
    "beeline_GSD": ({"time": "sim_time", "lineage": "trajectory"}, 0, 61),
    "beeline_mCAD": ({"time": "sim_time", "lineage": "trajectory"}, 0, 150),
    "beeline_dyn-LI": ({"time": "sim_time", "lineage": "trajectory"}, 0, 150),
    "beeline_dyn-BF": ({"time": "sim_time", "lineage": "trajectory", "donor": "replicate"}, 0, 680),
    "beeline_dyn-CY": ({"time": "sim_time", "lineage": "trajectory"}, 0, 150),
    "hematopoiesis_pathreg_9.7k_529g": (
        {"time": "pseudotime", "lineage": "lineage", "donor": "donor"},
        0,
        14,
    ),
    "yeast_pramila_phoenix_500g_24T": (
        {"time": "time", "lineage": "replicate", "prior_network": "prior"},
        0,
        2,
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", FILES)
def test_every_real_file_is_read_as_what_it_is(real_data: Path, name: str) -> None:
    file = real_data / "grn" / f"{name}.h5ad"
    if not file.exists():
        pytest.skip(f"needs {file.name} in the folder of the real data")
    columns, steady, trajectories = FILES[name]
    adata = ad.read_h5ad(file)
    for layer in [None, *adata.layers]:
        found = read_experiments(adata, **columns, layer=layer)  # type: ignore[arg-type]
        assert (len(found.steady), len(found.trajectories)) == (steady, trajectories)
        binned = name.startswith("hematopoiesis")
        assert (found.scale == NORMALISED) == binned
        rows = sum(int(t.cells.sum()) for t in found.trajectories)
        for trajectory in found.trajectories:
            assert np.isfinite(trajectory.mean).all() and (np.diff(trajectory.times) > 0).all()
            assert (trajectory.cells >= 8).all() or not binned
        if name.startswith("dream4"):
            kinds = [s.intervention.kind for s in found.steady]
            assert kinds.count("knockout") == kinds.count("knockdown") == adata.n_vars
            for s in found.steady:
                if s.intervention.kind == "knockout":
                    assert s.expression[list(s.intervention.genes)] < 0.01  # noise of measuring
        else:
            assert rows <= adata.n_obs and rows > adata.n_obs / 2
