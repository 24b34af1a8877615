"""Biology of a simulated study: cell types, diseases, programmes and their genes, as listed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from invatlas.data.simulate import simulate

SMALL: dict[str, Any] = {"cells": 300, "genes": 60}


@pytest.fixture(scope="module")
def study() -> AnnData:
    """Simulate a study large enough for statistics; two donors for each disease and batch."""
    return simulate(cells=6000, genes=400, donors=24, seed=3)


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


def test_cell_types_are_unequal_and_the_last_is_rare(study: AnnData) -> None:
    share = study.obs["cell_type"].value_counts(normalize=True, sort=False)
    assert share.is_monotonic_decreasing
    assert 0.01 < share.iloc[-1] < 0.03 and share.iloc[0] > 0.25


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
