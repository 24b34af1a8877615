"""The simulator: what it promises about seeds, form, settings and errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from invatlas.data.simulate import simulate, split_off
from invatlas.errors import SettingsError

SMALL: dict[str, Any] = {"cells": 300, "genes": 60}


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


def test_truth_is_optional_and_changes_nothing_else() -> None:
    full, lean = simulate(**SMALL), simulate(**SMALL, truth=False)
    assert "expression_true" not in lean.layers
    del full.layers["expression_true"]
    assert_identical(full, lean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"donors": 2}, "donors is 2, too few for the diseases; it takes at least 3."),
        ({"donors": 3}, "donors is 3, too few for the batches; it takes at least 4."),
        (
            {"cells": 13, "cell_types": 14},
            "cells is 13, too few for the cell types; it takes at least 14.",
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


def test_no_shared_state_is_as_before_and_two_diseases_are_needed() -> None:
    assert_identical(simulate(**SMALL, seed=7), simulate(**SMALL, shared_state=0.0, seed=7))
    assert "state" not in simulate(**SMALL).obs
    with pytest.raises(SettingsError, match="at least 3"):
        simulate(**SMALL, diseases=2, shared_state=0.4)
    with pytest.raises(SettingsError, match=r"shared_state is 1\.5"):
        simulate(**SMALL, shared_state=1.5)
