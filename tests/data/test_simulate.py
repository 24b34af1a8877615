"""The simulator: what it promises about truth, design, form and errors."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.stats import chi2_contingency

from invatlas.data.simulate import simulate, split_off
from invatlas.errors import SettingsError

SMALL: dict[str, Any] = {"cells": 300, "genes": 60}


@pytest.fixture(scope="module")
def study() -> AnnData:
    """Simulate a study large enough for statistics; two donors for each disease and batch."""
    return simulate(cells=6000, genes=400, donors=24, seed=3)


def mean_counts(study: AnnData) -> np.ndarray:
    """Rebuild the expected counts from the stored truth by the equation of the module."""
    log_rate = (
        study.var["baseline"].to_numpy(np.float64)
        + study.obsm["z_invariant_true"] @ study.varm["invariant_loadings_true"].T
        + study.obsm["z_spurious_true"] @ study.varm["spurious_loadings_true"].T
    )
    rate = np.exp(log_rate)
    return study.obs["library_size"].to_numpy()[:, None] * rate / rate.sum(1, keepdims=True)


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    """Compute Cramer's V through scipy."""
    table = pd.crosstab(a, b).to_numpy()
    chi2 = chi2_contingency(table, correction=False).statistic
    return float(np.sqrt(chi2 / table.sum() / (min(table.shape) - 1)))


def shift_of(study: AnnData, cell_type: str, disease: str) -> np.ndarray:
    """Look up delta of one cell type and disease."""
    row = study.obs["cell_type"].cat.categories.get_loc(cell_type)
    column = study.obs["disease"].cat.categories.get_loc(disease)
    return study.uns["disease_shifts"][row, column]


def affected_pairs(study: AnnData) -> set[tuple[str, str]]:
    """Pair each cell type with the diseases that have differential genes there."""
    table = study.uns["differential_genes"]
    return set(zip(table["cell_type"], table["disease"], strict=True))


def all_pairs(study: AnnData) -> set[tuple[str, str]]:
    """Pair every cell type with every disease but healthy."""
    diseases = study.obs["disease"].cat.categories[1:]
    return {(c, k) for c in study.obs["cell_type"].cat.categories for k in diseases}


def cells_of(study: AnnData, cell_type: str, disease: str) -> np.ndarray:
    """Mask the cells of one cell type and disease."""
    obs = study.obs
    return ((obs["cell_type"] == cell_type) & (obs["disease"] == disease)).to_numpy()


def assert_identical(a: AnnData, b: AnnData) -> None:
    """Compare bit for bit: counts, truth and tables."""
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(a.X, name), getattr(b.X, name))
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    for field in ("obsm", "varm", "layers"):
        left, right = getattr(a, field), getattr(b, field)
        assert set(left) == set(right)
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])
    np.testing.assert_array_equal(a.uns["disease_shifts"], b.uns["disease_shifts"])


def test_same_seed_is_bit_identical_and_another_seed_is_not() -> None:
    first, again = simulate(**SMALL, seed=7), simulate(**SMALL, seed=7)
    assert_identical(first, again)
    pd.testing.assert_frame_equal(first.uns["differential_genes"], again.uns["differential_genes"])
    other = simulate(**SMALL, seed=8)
    assert (first.X != other.X).nnz > 0
    assert not np.array_equal(first.obsm["z_invariant_true"], other.obsm["z_invariant_true"])


def test_global_numpy_state_is_neither_read_nor_moved() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    first = simulate(**SMALL)
    assert np.random.random() == expected
    assert_identical(first, simulate(**SMALL))


@pytest.mark.parametrize(
    "change",
    [
        {"cells": 500},
        {"batches": 3},
        {"correlation": 1.0},
        {"technical_effect": 0.3},
        {"library_size": 500},
    ],
    ids=str,
)
def test_design_of_the_study_leaves_its_biology_alone(change: dict[str, Any]) -> None:
    first, second = simulate(**SMALL), simulate(**(SMALL | change))
    pd.testing.assert_frame_equal(first.var, second.var)
    pd.testing.assert_frame_equal(first.uns["differential_genes"], second.uns["differential_genes"])
    left, right = (one.obs.groupby("donor", observed=True) for one in (first, second))
    pd.testing.assert_series_equal(left["severity"].first(), right["severity"].first())
    if "cells" not in change:
        biological = ["cell_type", "disease", "donor", "severity"]
        pd.testing.assert_frame_equal(first.obs[biological], second.obs[biological])
        np.testing.assert_array_equal(
            first.obsm["z_invariant_true"], second.obsm["z_invariant_true"]
        )
        assert (first.X != second.X).nnz > 0


def test_shapes_types_and_names() -> None:
    study = simulate(
        cells=200,
        genes=50,
        cell_types=4,
        diseases=2,
        donors=6,
        batches=3,
        invariant_latents=5,
        spurious_latents=2,
    )
    assert study.shape == (200, 50)
    assert sparse.issparse(study.X) and study.X.format == "csr" and study.X.dtype == np.float32
    assert (study.X.data > 0).all() and (study.X.data == np.round(study.X.data)).all()
    assert list(study.obs) == [
        "cell_type", "disease", "donor", "batch", "severity", "library_size",
    ]  # fmt: skip
    levels = {"cell_type": 4, "disease": 2, "donor": 6, "batch": 3}
    for column, count in levels.items():
        assert isinstance(study.obs[column].dtype, pd.CategoricalDtype)
        assert study.obs[column].cat.categories.size == count
        assert study.obs[column].nunique() == count
    assert study.obs["disease"].cat.categories[0] == "healthy"
    assert study.obs["severity"].dtype.kind == study.obs["library_size"].dtype.kind == "f"
    assert study.obsm["z_invariant_true"].shape == (200, 5)
    assert study.obsm["z_spurious_true"].shape == (200, 2)
    assert study.varm["invariant_loadings_true"].shape == (50, 5)
    assert study.varm["spurious_loadings_true"].shape == (50, 2)
    assert study.uns["disease_shifts"].shape == (4, 2, 5)
    assert list(study.uns["differential_genes"]) == [
        "cell_type", "disease", "gene", "log_fold_change",
    ]  # fmt: skip
    assert (study.var["inverse_dispersion"] > 0).all()
    assert study.obs_names[0] == "cell_00001" and study.var_names[-1] == "gene_0050"
    assert study.obs["donor"].cat.categories[0] == "donor_01"
    assert study.obs_names.is_unique and study.var_names.is_unique


@pytest.mark.parametrize(
    "settings", [{}, {"diseases": 1}, {"disease_effect": 0.0}, {"truth": False}], ids=str
)
def test_round_trip_to_disk(settings: dict[str, Any], tmp_path: Path) -> None:
    study = simulate(**SMALL, **settings)
    study.write_h5ad(tmp_path / "study.h5ad")
    back = anndata.read_h5ad(tmp_path / "study.h5ad")
    assert_identical(study, back)
    table, table_back = study.uns["differential_genes"], back.uns["differential_genes"]
    assert list(table) == list(table_back) and len(table) == len(table_back)
    assert len(table) == 0 or settings in ({}, {"truth": False})
    for column in table:
        assert table[column].tolist() == table_back[column].tolist()


def test_every_value_occurs_in_the_smallest_study() -> None:
    study = simulate(cells=12, genes=2, donors=12, cell_types=12, batches=12)
    for column in ("cell_type", "donor", "batch"):
        assert (study.obs[column].value_counts() == 1).all()


def test_donors_are_nested_in_diseases_and_batches(study: AnnData) -> None:
    donors = study.obs.groupby("donor", observed=True)
    assert (donors[["disease", "batch", "severity"]].nunique() == 1).all(axis=None)
    first = donors[["disease", "severity"]].first()
    healthy = first["disease"] == "healthy"
    assert (first.loc[healthy, "severity"] == 0).all()
    ill = first.loc[~healthy, "severity"]
    assert ill.between(0.3, 1).all() and ill.nunique() == ill.size
    assert first["disease"].value_counts().tolist() == [8, 8, 8]


def test_cell_types_are_unequal_and_the_last_is_rare(study: AnnData) -> None:
    share = study.obs["cell_type"].value_counts(normalize=True, sort=False)
    assert share.is_monotonic_decreasing
    assert 0.01 < share.iloc[-1] < 0.03 and share.iloc[0] > 0.25


@pytest.mark.parametrize(
    ("donors", "diseases", "batches"), [(12, 3, 4), (24, 3, 4), (16, 4, 2), (20, 2, 5)]
)
def test_correlation_moves_the_association_of_disease_and_batch(
    donors: int, diseases: int, batches: int
) -> None:
    association, cellwise = [], []
    for correlation in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        obs = simulate(
            cells=2000, genes=2, truth=False, correlation=correlation,
            donors=donors, diseases=diseases, batches=batches,
        ).obs  # fmt: skip
        people = obs.drop_duplicates("donor")
        assert people["batch"].nunique() == batches
        association.append(cramers_v(people["disease"], people["batch"]))
        cellwise.append(cramers_v(obs["disease"], obs["batch"]))
    assert association[0] < 0.15 and association[-1] == pytest.approx(1)
    assert (np.diff(association) >= -1e-12).all() and len(set(np.round(association, 6))) > 3
    np.testing.assert_allclose(association, [0, 0.2, 0.4, 0.6, 0.8, 1], atol=0.2)
    np.testing.assert_allclose(cellwise, association, atol=0.2)
    assert cellwise[-1] == pytest.approx(1)


def test_nested_batches_belong_to_one_disease_and_balanced_ones_to_all() -> None:
    nested, balanced = (
        pd.crosstab(one.obs["disease"], one.obs["batch"]).to_numpy() > 0
        for one in (simulate(**SMALL, correlation=1.0), simulate(**SMALL, correlation=0.0))
    )
    assert (nested.sum(axis=0) == 1).all()
    assert balanced.all()


def test_counts_follow_the_negative_binomial_of_the_truth(study: AnnData) -> None:
    mean = mean_counts(study)
    theta = study.var["inverse_dispersion"].to_numpy()
    variance = mean + mean**2 / theta
    counts = study.X.toarray().astype(np.float64)
    residual = (counts - mean) / np.sqrt(variance)
    seen = mean.mean(0) > 0.1
    assert seen.sum() > 200
    assert abs(residual.mean()) < 0.003
    assert np.abs(residual[:, seen].mean(0)).max() < 5 / np.sqrt(study.n_obs)
    assert (residual[:, seen] ** 2).mean() == pytest.approx(1, abs=0.02)
    # a Poisson or a common inverse dispersion would miss the variance of single genes
    np.testing.assert_allclose((residual[:, seen] ** 2).mean(0), 1, atol=0.3)
    zero = (1 + mean / theta) ** -theta
    assert (counts == 0).mean() == pytest.approx(zero.mean(), abs=0.002)


def test_expression_true_is_the_softmax_of_the_invariant_part(study: AnnData) -> None:
    expression = study.layers["expression_true"]
    log_rate = (
        study.var["baseline"].to_numpy()
        + study.obsm["z_invariant_true"] @ study.varm["invariant_loadings_true"].T
    )
    rate = np.exp(log_rate)
    np.testing.assert_allclose(expression, rate / rate.sum(1, keepdims=True), rtol=1e-4)


def test_truth_is_optional_and_changes_nothing_else() -> None:
    full, lean = simulate(**SMALL), simulate(**SMALL, truth=False)
    assert "expression_true" not in lean.layers
    del full.layers["expression_true"]
    assert_identical(full, lean)


def test_differential_genes_are_true_against_expression_true(study: AnnData) -> None:
    log_expression = np.log(study.layers["expression_true"])
    for cell_type, disease in affected_pairs(study):
        ill, healthy = (cells_of(study, cell_type, one) for one in (disease, "healthy"))
        severity = study.obs.loc[ill, "severity"].mean()
        found = (log_expression[ill].mean(0) - log_expression[healthy].mean(0)) / severity
        table = study.uns["differential_genes"].query(
            "cell_type == @cell_type and disease == @disease"
        )
        listed = study.var_names.isin(table["gene"])
        expected = table.set_index("gene")["log_fold_change"].loc[study.var_names[listed]]
        response = np.flatnonzero(shift_of(study, cell_type, disease))
        loaded = (study.varm["invariant_loadings_true"][:, response] != 0).any(axis=1)
        np.testing.assert_array_equal(listed, loaded)
        slope = found[listed] @ expected / (expected @ expected)
        # the rare cell type has some 40 cells in each disease
        assert slope == pytest.approx(1, abs=0.25 if cell_type == "type_6" else 0.1)
        assert np.corrcoef(found[listed], expected)[0, 1] > 0.95
        assert np.abs(found[listed]).mean() > 3 * np.abs(found[~listed]).mean()


def test_log_fold_change_is_the_change_between_the_prior_means() -> None:
    study = simulate(**SMALL, cell_types=1, diseases=2, donors=2, batches=1)
    table = study.uns["differential_genes"].set_index("gene")["log_fold_change"]
    loadings = study.varm["invariant_loadings_true"]
    expected = loadings @ study.uns["disease_shifts"][0, 1]
    difference = table - expected[study.var_names.get_indexer(table.index)]
    # one constant, the change of the normaliser, is all that may separate them
    assert np.ptp(difference) < 1e-4
    assert abs(difference.mean()) < 0.5


def test_unaffected_cell_types_have_no_differential_genes(study: AnnData) -> None:
    affected, every = affected_pairs(study), all_pairs(study)
    for disease in study.obs["disease"].cat.categories[1:]:
        assert 0 < sum(k == disease for _, k in affected) < study.obs["cell_type"].nunique()
    for cell_type, disease in every:
        moved = []
        for one in ("healthy", disease):
            z = study.obsm["z_invariant_true"][cells_of(study, cell_type, one)]
            moved.append((z.mean(0), z.var(0) / len(z)))
        score = np.abs(moved[1][0] - moved[0][0]) / np.sqrt(moved[0][1] + moved[1][1])
        assert (score.max() > 8) == ((cell_type, disease) in affected)
        assert score.max() > 8 or score.max() < 4.5


def test_severity_scales_the_effect(study: AnnData) -> None:
    common = {
        (cell_type, disease)
        for cell_type, disease in affected_pairs(study)
        if cell_type != "type_6"
    }
    assert common
    for cell_type, disease in common:
        delta = shift_of(study, cell_type, disease)
        z = study.obsm["z_invariant_true"]
        start = z[cells_of(study, cell_type, "healthy")].mean(0)
        ill = cells_of(study, cell_type, disease)
        reached = (z[ill] - start) @ delta / (delta @ delta)
        slope, offset = np.polyfit(study.obs.loc[ill, "severity"], reached, 1)
        assert slope == pytest.approx(1, abs=0.15)
        assert offset == pytest.approx(0, abs=0.1)


def test_disease_effect_scales_shifts_and_zero_removes_them() -> None:
    one, double, none = (simulate(**SMALL, disease_effect=effect) for effect in (1.0, 2.0, 0.0))
    np.testing.assert_allclose(
        double.uns["disease_shifts"], 2 * one.uns["disease_shifts"], rtol=1e-6
    )
    assert one.uns["disease_shifts"].any() and len(one.uns["differential_genes"]) > 0
    assert not none.uns["disease_shifts"].any() and none.uns["differential_genes"].empty


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0])
def test_technical_effect_is_the_ratio_of_standard_deviations(effect: float) -> None:
    study = simulate(cells=6000, genes=100, truth=False, technical_effect=effect)
    spread = {
        part: study.obsm[f"z_{part}_true"] @ study.varm[f"{part}_loadings_true"].T
        for part in ("invariant", "spurious")
    }
    ratio = np.sqrt(spread["spurious"].var(0).sum() / spread["invariant"].var(0).sum())
    assert ratio == pytest.approx(effect, abs=0.08)


def test_library_size_is_log_normal_with_a_depth_for_each_batch(study: AnnData) -> None:
    log_size = np.log(study.obs["library_size"])
    by_batch = log_size.groupby(study.obs["batch"], observed=True)
    np.testing.assert_allclose(
        np.sort(by_batch.mean()) - np.log(1000), np.linspace(-0.35, 0.35, 4), atol=0.05
    )
    np.testing.assert_allclose(by_batch.std(), 0.35, atol=0.02)
    total = np.asarray(study.X.sum(axis=1)).ravel()
    assert np.corrcoef(total, study.obs["library_size"])[0, 1] > 0.8


def test_programmes_go_up_and_down_and_are_sparse(study: AnnData) -> None:
    loadings = study.varm["invariant_loadings_true"]
    np.testing.assert_array_equal((loadings != 0).sum(0), [60] * 4 + [20] * 4)
    np.testing.assert_array_equal((loadings > 0).sum(0), [30] * 4 + [10] * 4)


def test_no_two_diseases_have_the_same_main_programme_and_sign() -> None:
    shifts = simulate(**SMALL, diseases=9).uns["disease_shifts"]
    mains = set()
    for disease in range(1, 9):
        rows = shifts[:, disease][shifts[:, disease].any(axis=1)]
        main = np.abs(rows).argmax(axis=1)
        assert len(rows) == 3 and len(set(main)) == 1
        mains.add((main[0], np.sign(rows[0, main[0]])))
    assert len(mains) == 8


def test_donors_differ_within_batches_and_cell_types_in_spread(study: AnnData) -> None:
    people = study.obs.drop_duplicates("donor").set_index("donor")["batch"]
    spurious = pd.DataFrame(study.obsm["z_spurious_true"], index=study.obs_names)
    means = spurious.groupby(study.obs["donor"], observed=True).mean()
    within = means - means.groupby(people.loc[means.index], observed=True).transform("mean")
    # 0.8 was asked for; the mean of some 250 cells alone would give 0.05
    assert 0.5 < np.sqrt((within**2).to_numpy().sum() / (24 - 4) / 4) < 1.1
    healthy = (study.obs["disease"] == "healthy").to_numpy()
    invariant = pd.DataFrame(study.obsm["z_invariant_true"][healthy])
    spread = invariant.groupby(study.obs["cell_type"].to_numpy()[healthy]).std().to_numpy()
    assert 0.4 < spread.min() < 0.65 and 0.85 < spread.max() < 1.15


def test_cell_types_are_separable_from_the_truth_and_batches_are_not(study: AnnData) -> None:
    correct = {}
    for latents, column in product(("invariant", "spurious"), ("cell_type", "batch")):
        code = study.obs[column].cat.codes.to_numpy()
        z = study.obsm[f"z_{latents}_true"]
        means = np.stack([z[code == value].mean(0) for value in range(code.max() + 1)])
        nearest = np.linalg.norm(z[:, None] - means, axis=2).argmin(1)
        correct[latents, column] = (nearest == code).mean()
    assert correct["invariant", "cell_type"] > 0.95 and correct["spurious", "batch"] > 0.95
    assert correct["invariant", "batch"] < 0.4 and correct["spurious", "cell_type"] < 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"donors": 2}, "donors is 2, too few for the diseases; it takes at least 3."),
        ({"donors": 3}, "donors is 3, too few for the batches; it takes at least 4."),
        (
            {"cells": 13, "cell_types": 14},
            "cells is 13, too few for the cell_types; it takes at least 14.",
        ),
        ({"cells": 8}, "cells is 8, too few for the donors; it takes at least 12."),
        ({"cells": 0}, "cells is 0; it takes a whole number, 1"),
        ({"cells": 10.5}, "cells is 10.5; it takes a whole number, 1"),
        ({"genes": 1}, "genes is 1; it takes a whole number, 2"),
        ({"diseases": True}, "diseases is True; it takes a whole number"),
        ({"batches": "4"}, "batches is '4'; it takes a whole number"),
        ({"invariant_latents": 1}, "invariant_latents is 1; it takes a whole number, 2"),
        ({"spurious_latents": 0}, "spurious_latents is 0; it takes a whole number, 1"),
        ({"seed": -1}, "seed is -1; it takes a whole number, 0"),
        ({"seed": None}, "seed is None; it takes a whole number"),
        ({"correlation": 1.1}, "correlation is 1.1; it takes 0 to 1."),
        ({"correlation": -0.1}, "correlation is -0.1; it takes 0 to 1."),
        ({"correlation": float("nan")}, "correlation is nan; it takes"),
        ({"correlation": "high"}, "correlation is 'high'; it takes"),
        ({"disease_effect": -1.0}, "disease_effect is -1.0; it takes 0 to 5."),
        ({"technical_effect": 6}, "technical_effect is 6; it takes 0 to 5."),
        ({"library_size": 0}, "library_size is 0; it takes 1 to 1e+06."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        simulate(**settings)


def test_a_query_is_split_off_in_whole_donors() -> None:
    whole = simulate(cells=300, genes=30, donors=8, truth=False)
    study, query = split_off(whole)
    assert list(query.obs.columns) == ["donor", "batch"] and not query.obsm and not query.uns
    assert query.obs["donor"].nunique() == 2 and study.n_obs + query.n_obs == 300
    assert not set(query.obs["donor"]) & set(study.obs["donor"].cat.categories)
    assert (query.X != whole[query.obs_names].X).nnz == 0
    alone = simulate(cells=30, genes=30, donors=1, diseases=1, batches=1, truth=False)
    with pytest.raises(SettingsError, match="donors is 1"):
        split_off(alone)


def test_a_shared_state_moves_its_cells_alone() -> None:
    size = {"cells": 4000, "genes": 120, "diseases": 5, "donors": 10, "library_size": 1e5}
    plain, shared = simulate(**size, seed=4), simulate(**size, shared_state=0.4, seed=4)
    planted = shared.uns["shared_state"]
    inside = (shared.obs["state"] == "shared").to_numpy()
    may = (shared.obs["cell_type"] == planted["cell_type"]) & shared.obs["disease"].isin(
        planted["diseases"]
    )
    assert not inside[~may].any() and abs(inside[may].mean() - 0.4) < 0.07
    assert len(set(planted["diseases"])) == 2 and "healthy" not in planted["diseases"]
    pd.testing.assert_frame_equal(plain.obs, shared.obs.drop(columns="state"))
    np.testing.assert_array_equal(plain.obsm["z_invariant_true"], shared.obsm["z_invariant_true"])
    truth = [np.log(study.layers["expression_true"]) for study in (plain, shared)]
    np.testing.assert_array_equal(truth[0][~inside], truth[1][~inside])
    change = (truth[1] - truth[0])[inside]
    moved = shared.var_names.isin(planted["genes"])
    assert np.abs(change[:, moved] - change[:, ~moved][:, :1]).min() > 0.5
    assert np.ptp(change[:, ~moved], axis=1).max() < 1e-4, "the other genes make room alike"


def test_no_shared_state_is_as_before_and_two_diseases_are_needed() -> None:
    assert_identical(simulate(**SMALL, seed=7), simulate(**SMALL, shared_state=0.0, seed=7))
    assert "state" not in simulate(**SMALL).obs
    with pytest.raises(SettingsError, match="at least 3"):
        simulate(**SMALL, diseases=2, shared_state=0.4)
    with pytest.raises(SettingsError, match=r"shared_state is 1\.5"):
        simulate(**SMALL, shared_state=1.5)
