"""Real counts: other genes, other labels, few cells, technologies nested in donors."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression

import invatlas as ia
from invatlas.errors import GeneError

pytestmark = pytest.mark.real
QUICK = {"epochs": 3, "hidden": 32, "invariant_latents": 8, "spurious_latents": 4, "genes": 500}


def read(folder: Path, name: str) -> AnnData:
    if not (folder / name).exists():
        pytest.skip(f"needs {name} in the folder of the real data")
    return ad.read_h5ad(folder / name)


def quick(**changes: object) -> ia.Settings:
    return ia.Settings(**{**QUICK, **changes})


@pytest.fixture(scope="module")
def kang(real_data: Path) -> AnnData:
    return read(real_data, "kang2018_ifnb.h5ad")


@pytest.fixture(scope="module")
def kang_atlas(kang: AnnData) -> ia.Atlas:
    return ia.fit(kang, ["cell_type", "condition"], ["donor"], settings=quick(epochs=6))


def test_kang_cell_types_and_conditions_are_learnt_in_a_few_epochs(
    kang: AnnData, kang_atlas: ia.Atlas
) -> None:
    assert len(kang_atlas.genes) == 500
    assert "ISG15" in kang_atlas.genes, "the loudest interferon gene is chosen"
    z = ia.embed(kang_atlas, kang)
    some = np.arange(len(z)) % 2 == 0
    for column in ("cell_type", "condition"):
        label = kang.obs[column].astype(str).to_numpy()
        called = LogisticRegression(max_iter=200).fit(z[some], label[some])
        assert called.score(z[~some], label[~some]) > 0.8, column


def test_a_query_with_other_genes_and_no_labels_maps_onto_kang(
    kang_atlas: ia.Atlas, real_data: Path
) -> None:
    query = read(real_data, "pbmc_unlabelled.h5ad")
    before = query.X.sum()
    mapped = ia.map_cells(kang_atlas, query)
    assert mapped.cells.obsm["X_invariant"].shape == (query.n_obs, 8)
    assert np.isfinite(mapped.cells.obsm["X_invariant"]).all()
    present = set(query.var_names)
    assert mapped.overlap.n_missing == sum(gene not in present for gene in kang_atlas.genes)
    assert query.X.sum() == before
    assert len(np.unique(mapped.cells.obsm["X_invariant"].round(4), axis=0)) > 0.9 * query.n_obs


def test_genes_of_another_name_space_are_refused(kang_atlas: ia.Atlas, kang: AnnData) -> None:
    other = kang[:50].copy()
    other.var_names = [f"ENSG{i:011d}" for i in range(other.n_vars)]
    with pytest.raises(GeneError, match="Only 0 of 500 genes"):
        ia.embed(kang_atlas, other)


def test_cellbench_lines_and_technologies_fit(real_data: Path) -> None:
    cells = read(real_data, "cellbench_5batches.h5ad")
    cells = cells[cells.obs["demuxlet"] == "SNG", cells.var["in_all_batches"].to_numpy(bool)].copy()
    atlas = ia.fit(cells, ["cell_type"], ["technology", "batch"], settings=quick(epochs=2))
    assert np.isfinite(ia.embed(atlas, cells)).all()
    assert np.isfinite(atlas.history.to_numpy(float)).all()


def test_pancreas_of_many_small_donors_fits(real_data: Path) -> None:
    cells = read(real_data, "pancreas_5tech.h5ad")
    atlas = ia.fit(cells, ["cell_type"], ["technology", "donor"], settings=quick(epochs=2))
    assert np.isfinite(ia.embed(atlas, cells)).all()
    assert np.isfinite(atlas.history.to_numpy(float)).all()
    assert any("fewer than 5 cells" in warning for warning in atlas.record["warnings"])
