"""Embedding and mapping: counts alone decide, by gene name, whatever form they come in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import invatlas as ia
from invatlas.errors import CountsError, DataError, GeneError, SettingsError
from invatlas.tasks.embed import match_counts
from invatlas.training import posterior

WHICH = pytest.mark.parametrize("which", ["invariant", "spurious"])


@pytest.fixture(scope="module")
def expected(atlas: ia.Atlas, frozen_study: AnnData) -> dict[str, np.ndarray]:
    return {which: ia.embed(atlas, frozen_study, which) for which in ("invariant", "spurious")}


def test_latents_are_one_row_a_cell_float32_and_not_all_alike(
    expected: dict[str, np.ndarray],
) -> None:
    assert expected["invariant"].shape == (600, 5)
    assert expected["spurious"].shape == (600, 3)
    for latents in expected.values():
        assert latents.dtype == np.float32 and np.isfinite(latents).all()
        assert (latents.std(0) > 0).all()


@WHICH
def test_labels_permuted_removed_or_foreign_change_nothing(
    atlas: ia.Atlas,
    study: AnnData,
    expected: dict[str, np.ndarray],
    which: str,
    generator: np.random.Generator,
) -> None:
    for column in study.obs.columns:
        study.obs[column] = study.obs[column].to_numpy()[generator.permutation(600)]
    assert np.array_equal(ia.embed(atlas, study, which), expected[which])
    for column in study.obs.columns:
        study.obs[column] = "Martian"
    assert np.array_equal(ia.embed(atlas, study, which), expected[which])
    bare = AnnData(study.X, var=pd.DataFrame(index=study.var_names))
    assert bare.obs.shape == (600, 0)
    assert np.array_equal(ia.embed(atlas, bare, which), expected[which])


@WHICH
def test_genes_in_another_order_and_extra_genes_change_nothing(
    atlas: ia.Atlas,
    study: AnnData,
    expected: dict[str, np.ndarray],
    which: str,
    generator: np.random.Generator,
) -> None:
    order = generator.permutation(120)
    assert np.array_equal(ia.embed(atlas, study[:, order].copy(), which), expected[which])
    extra = sp.csr_matrix(generator.poisson(5.0, (600, 9)).astype(np.float32))
    more = AnnData(
        sp.hstack([extra, study.X[:, order]], format="csr"),
        var=pd.DataFrame(index=[*(f"extra{i}" for i in range(9)), *study.var_names[order]]),
    )
    assert np.array_equal(ia.embed(atlas, more, which), expected[which])


FORMS: dict[str, Callable[[sp.csr_matrix], object]] = {
    "csc": lambda x: x.tocsc(),
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "float64": lambda x: x.astype(np.float64),
    "int32": lambda x: x.astype(np.int32),
    "uint16": lambda x: x.astype(np.uint16),
    "dense int64": lambda x: x.toarray().astype(np.int64),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_counts_embeds_the_same(
    atlas: ia.Atlas,
    study: AnnData,
    expected: dict[str, np.ndarray],
    form: Callable[[sp.csr_matrix], object],
) -> None:
    study.X = form(study.X)
    assert np.array_equal(ia.embed(atlas, study), expected["invariant"])


def test_layers_views_and_backed_files_embed_the_same(
    atlas: ia.Atlas, study: AnnData, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study.write_h5ad(tmp_path / "csr.h5ad")
    backed = ad.read_h5ad(tmp_path / "csr.h5ad", backed="r")
    assert np.array_equal(ia.embed(atlas, backed), expected["invariant"])
    backed.file.close()
    rows = np.arange(5, 600, 3)
    view = study[rows]
    np.testing.assert_allclose(
        ia.embed(atlas, view), expected["invariant"][rows], rtol=1e-4, atol=1e-5
    )
    assert view.is_view
    study.layers["raw"] = study.X.copy()
    study.X = sp.csr_matrix(np.full(study.shape, 0.5, dtype=np.float32))
    assert np.array_equal(ia.embed(atlas, study, layer="raw"), expected["invariant"])


def test_counts_of_one_gene_name_are_added(
    atlas: ia.Atlas, study: AnnData, expected: dict[str, np.ndarray]
) -> None:
    part = study.X.copy()
    part.data = np.floor(part.data / 3)
    with pytest.warns(UserWarning, match="not unique"):
        split = AnnData(
            sp.hstack([part, study.X - part], format="csr"),
            var=pd.DataFrame(index=[*study.var_names, *study.var_names]),
        )
        assert np.array_equal(ia.embed(atlas, split), expected["invariant"])


def test_order_of_cells_and_size_of_chunks_do_not_matter(
    atlas: ia.Atlas,
    study: AnnData,
    expected: dict[str, np.ndarray],
    generator: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = generator.permutation(600)
    found = ia.embed(atlas, study[order].copy())
    np.testing.assert_allclose(found, expected["invariant"][order], rtol=1e-4, atol=1e-5)
    for chunk in (1, 7, 599):
        monkeypatch.setattr(posterior, "CHUNK", chunk)
        found = ia.embed(atlas, study[:60].copy())
        np.testing.assert_allclose(found, expected["invariant"][:60], rtol=1e-4, atol=1e-5)


def test_embedding_never_changes_the_data(atlas: ia.Atlas, study: AnnData) -> None:
    x = study.X.astype(np.float64)
    x.data[::9] = 0
    for start, end in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        x.data[start:end] = x.data[start:end][::-1]
        x.indices[start:end] = x.indices[start:end][::-1]
    x.has_sorted_indices = False
    study.X = x
    before = [a.copy() for a in (study.X.data, study.X.indices, study.X.indptr)]
    keys = (list(study.obsm), list(study.uns), study.obs.copy())
    ia.embed(atlas, study)
    ia.map_cells(atlas, study)
    after = (study.X.data, study.X.indices, study.X.indptr)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert (list(study.obsm), list(study.uns)) == keys[:2]
    pd.testing.assert_frame_equal(study.obs, keys[2])


def test_cells_without_counts_one_cell_and_deeper_cells(
    atlas: ia.Atlas, study: AnnData, expected: dict[str, np.ndarray]
) -> None:
    one = ia.embed(atlas, study[3].copy())
    np.testing.assert_allclose(one, expected["invariant"][[3]], rtol=1e-4, atol=1e-5)
    deep = study.copy()
    deep.X = deep.X * 3
    np.testing.assert_allclose(ia.embed(atlas, deep), expected["invariant"], rtol=1e-3, atol=1e-4)
    study.X = sp.csr_matrix(study.shape, dtype=np.float32)
    with pytest.raises(CountsError, match="No gene of the atlas is counted in any of 600 cells"):
        ia.embed(atlas, study)


def test_cells_without_counts_are_named_and_not_called(atlas: ia.Atlas, study: AnnData) -> None:
    x = study.X.toarray()
    x[[4, 9, 40]] = 0
    study.X = sp.csr_matrix(x)
    assert np.isfinite(ia.embed(atlas, study)).all()
    mapped = ia.map_cells(atlas, study, calling=ia.Calling())
    obs = mapped.cells.obs
    assert mapped.overlap.empty == (4, 9, 40)
    assert any("3 cells have no counts in the genes" in note for note in mapped.notes)
    assert obs["abstained"].iloc[[4, 9, 40]].all()
    assert not obs["novelty_flag"].iloc[[4, 9, 40]].any()
    assert obs.index[obs["novelty_pvalue"].isna()].equals(obs.index[[4, 9, 40]])
    parts = ia.map_cells(atlas, study, calling=ia.Calling(), align_by="batch")
    assert parts.overlap.empty == (4, 9, 40)


@pytest.mark.parametrize("prior", ["reference", "query"])
@pytest.mark.parametrize("align", [False, True])
def test_cells_without_counts_change_nothing_for_the_others(
    atlas: ia.Atlas, study: AnnData, prior: str, align: bool
) -> None:
    with_empty = ad.concat([study, study[:400]], index_unique="-")
    with_empty.X = sp.vstack([study.X, sp.csr_matrix((400, study.n_vars), dtype=np.float32)])
    with_empty.obs["part"] = ["real"] * study.n_obs + ["empty"] * 400
    calling = ia.Calling(label_prior=prior)
    alone = ia.map_cells(atlas, study, calling=calling, align=align).cells
    both = ia.map_cells(atlas, with_empty, calling=calling, align=align).cells[: study.n_obs]
    np.testing.assert_allclose(
        both.obsm["X_invariant"], alone.obsm["X_invariant"], rtol=1e-4, atol=1e-4
    )
    names = ["predicted_joint_probability", "novelty_score", "novelty_pvalue"]
    np.testing.assert_allclose(both.obs[names], alone.obs[names], rtol=1e-3, atol=1e-3)
    assert (both.obs["novelty_flag"].to_numpy() == alone.obs["novelty_flag"].to_numpy()).all()
    parts = ia.map_cells(atlas, with_empty, calling=calling, align_by="part")
    assert parts.overlap.empty == tuple(range(study.n_obs, study.n_obs + 400))


def test_missing_genes_raise_the_library_size_by_their_share(
    atlas: ia.Atlas, study: AnnData, expected: dict[str, np.ndarray]
) -> None:
    shares = pd.Series(atlas.gene_shares, atlas.genes)
    small = shares.sort_values().index[:30]
    kept = [name for name in study.var_names if name not in set(small)]
    source, overlap = match_counts(atlas, study[:, kept].copy(), None, 0.5)
    assert overlap.n_missing == 30
    assert overlap.missing_share == pytest.approx(shares[small].sum())
    np.testing.assert_allclose(
        source.library_size * (1 - shares[small].sum()),
        np.maximum(study[:, kept].X.sum(1).A1, 1),
        rtol=1e-5,
    )
    found = ia.embed(atlas, study[:, kept].copy())
    same = np.corrcoef(found.ravel(), expected["invariant"].ravel())[0, 1]
    assert same > 0.9, "what is left of a cell still tells where it lies"


def test_an_overlap_that_is_too_small_is_refused(atlas: ia.Atlas, study: AnnData) -> None:
    shares = pd.Series(atlas.gene_shares, atlas.genes).sort_values()
    few = study[:, list(shares.index[:40])].copy()
    with pytest.raises(GeneError, match=r"Only 40 of 120 genes.*at least 50%") as refusal:
        ia.embed(atlas, few)
    assert "lower minimum_overlap" in str(refusal.value) and "look like" not in str(refusal.value)
    assert ia.embed(atlas, few, minimum_overlap=0.01).shape == (600, 5)
    few.var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.raises(GeneError, match=r"Only 0 of 120 genes.*look like ENSG0"):
        ia.embed(atlas, few)


def test_wrong_questions_are_refused(atlas: ia.Atlas, study: AnnData) -> None:
    with pytest.raises(SettingsError, match=r"'both'.*invariant or spurious"):
        ia.embed(atlas, study, "both")
    with pytest.raises(CountsError, match="no layer 'raw'"):
        ia.embed(atlas, study, layer="raw")
    with pytest.raises(CountsError, match="0 cells"):
        ia.embed(atlas, study[:0].copy())
    study.X = study.X.log1p()
    with pytest.raises(CountsError, match="fractional"):
        ia.embed(atlas, study)


def test_mapped_cells_carry_obs_and_latents_and_no_counts(
    atlas: ia.Atlas, study: AnnData, expected: dict[str, np.ndarray]
) -> None:
    mapped = ia.map_cells(atlas, study)
    pd.testing.assert_frame_equal(mapped.cells.obs, study.obs)
    assert sorted(mapped.cells.obsm) == ["X_invariant", "X_spurious"]
    for which, latents in expected.items():
        assert np.array_equal(mapped.cells.obsm[f"X_{which}"], latents)
    assert mapped.cells.X is None and mapped.overlap.n_missing == 0
    mapped.cells.obs["donor"] = "changed"
    assert "changed" not in set(study.obs["donor"])


def test_anything_but_cells_is_refused(atlas: ia.Atlas) -> None:
    for ask in (ia.embed, ia.annotate, ia.novelty, ia.prediction_sets, ia.map_cells, ia.adapt):
        with pytest.raises(DataError, match=r"'query.h5ad' \(str\); they must be an AnnData"):
            ask(atlas, "query.h5ad")
    with pytest.raises(DataError, match="must be an AnnData"):
        ia.fit("study.h5ad", ["cell_type"])


def test_anything_but_an_atlas_is_refused(study: AnnData, tmp_path: Path) -> None:
    groups = ({"disease": "healthy"}, {"disease": "disease_1"})
    questions: tuple[tuple[Callable[..., object], tuple[object, ...]], ...] = (
        *[
            (ask, (study,))
            for ask in (
                *(ia.embed, ia.annotate, ia.novelty, ia.prediction_sets, ia.map_cells, ia.adapt),
                *(ia.align, ia.abundance, ia.donors, ia.evaluate.leakage),
            )
        ],
        *[(ask, ()) for ask in (ia.explain, ia.identifiability, ia.undo_adaptation)],
        (ia.counterfactual, (study, {"disease": "healthy"})),
        (ia.differential_expression, (study, *groups)),
        (partial(ia.states, cell_type="type_1", reference="healthy"), (study,)),
        (ia.save, (tmp_path / "atlas",)),
        (ia.summarise, (study.obs,)),
        (partial(ia.design, budget=2), ()),
    )
    for ask, rest in (
        *questions,
        (ia.evaluate.unmix, ()),
        (ia.summarise_query, (None, ia.Calling())),
    ):
        with pytest.raises(DataError, match=r"The atlas is 'katlas' \(str\); it must be an Atlas"):
            ask("katlas", *rest)
