"""The command that maps cells, as a shell would call it."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import invatlas as ia
from invatlas.data.genes import GeneOverlap
from invatlas.tasks.map import Mapped
from invatlas.tasks.novel_states import NovelStates
from invatlas.terminal import show_mapped
from shell import COLUMNS, QUICK, call, refuse


def test_map_adds_latents_to_cells_without_labels(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    study = ad.read_h5ad(cells)
    query = AnnData(study.X[:50], var=study.var[[]])[:, ::-1].copy()
    query.write_h5ad(tmp_path / "query.h5ad")
    said = call("map", fitted, tmp_path / "query.h5ad", "--output", tmp_path / "mapped.h5ad")
    assert "All 120 genes of the atlas are in the query" in said
    mapped = ad.read_h5ad(tmp_path / "mapped.h5ad")
    assert mapped.shape == (50, 120) and mapped.X.sum() == query.X.sum()
    expected = ia.embed(ia.load(fitted), study)[:50]
    np.testing.assert_allclose(mapped.obsm["X_invariant"], expected, rtol=1e-4, atol=1e-5)
    assert mapped.obsm["X_spurious"].shape == (50, 2)
    assert mapped.obsm["X_invariant_umap"].shape == (50, 2)
    page = (tmp_path / "mapped.html").read_text(encoding="utf-8")
    assert "query" in page and "50" in page and "not laid out" not in page
    again = ("map", fitted, tmp_path / "query.h5ad", "--output", tmp_path / "other.h5ad")
    call(*again, "--no-report")
    assert not (tmp_path / "other.html").exists()
    (tmp_path / "other.h5ad").unlink()
    (tmp_path / "other.html").write_text("mine")
    assert "other.html exists already" in refuse(*again)


def test_map_accounts_for_missing_genes_and_refuses_too_few(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    study, atlas = ad.read_h5ad(cells), ia.load(fitted)
    order = np.argsort(-atlas.gene_shares)
    names = np.array(atlas.genes)[order]
    study[:, names[5:]].copy().write_h5ad(tmp_path / "some.h5ad")
    said = call("map", fitted, tmp_path / "some.h5ad", "-o", tmp_path / "mapped.h5ad")
    assert "5 of 120 genes" in said and names[0] in said and "%" in said
    study[:, names[60:]].copy().write_h5ad(tmp_path / "few.h5ad")
    query, output = tmp_path / "few.h5ad", tmp_path / "no.h5ad"
    said = refuse("map", fitted, query, "-o", output)
    assert "Only 60 of 120 genes" in said and "A lower --minimum-overlap takes fewer." in said
    assert not output.exists()
    call("map", fitted, query, "-o", output, "--minimum-overlap", "0.01")


def test_map_takes_gene_names_from_a_column(fitted: Path, cells: Path, tmp_path: Path) -> None:
    query, output = tmp_path / "query.h5ad", tmp_path / "mapped.h5ad"
    study = ad.read_h5ad(cells)[:50].copy()
    expected = ia.embed(ia.load(fitted), study)
    study.var["symbol"] = [
        name.upper() if j % 2 else name for j, name in enumerate(study.var_names)
    ]
    study.var_names = [f"ENSG{j:011d}" for j in range(120)]
    study.write_h5ad(query)
    said = refuse("map", fitted, query, "-o", output)
    assert "Column 'symbol' of var matches 100%: pass --gene-column symbol." in said
    assert "gene_column" not in said
    said = refuse("map", fitted, query, "-o", output, "--gene-column", "symbols")
    assert "no column 'symbols' to take as --gene-column; its columns are " in said
    said = call("map", fitted, query, "-o", output, "--gene-column", "symbol")
    assert "All 120 genes of the atlas are in the query" in said and "60 by another case" in said
    assert np.array_equal(ad.read_h5ad(output).obsm["X_invariant"], expected)


def test_cells_of_one_name_are_told_of_once_and_in_our_words(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    query = ad.read_h5ad(cells)[:60].copy()
    query.obs_names = ["twin", "twin", *query.obs_names[2:]]
    query.write_h5ad(tmp_path / "query.h5ad")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = call("map", fitted, tmp_path / "query.h5ad", "-o", tmp_path / "mapped.h5ad")
    assert said.count("Cell names are not unique (for instance 'twin')") == 1
    assert not [w for w in caught if "not unique" in str(w.message)]


def test_map_adapts_a_copy_and_leaves_the_atlas_alone(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    query = ad.read_h5ad(cells)[:80].copy()
    query.obs["donor"] = "newcomer"
    query.write_h5ad(tmp_path / "query.h5ad")
    before = {file.name: file.read_bytes() for file in fitted.iterdir()}
    asked = ("map", fitted, tmp_path / "query.h5ad", "--output", tmp_path / "mapped.h5ad")
    assert "--adapt takes another folder" in refuse(*asked, "--adapt", fitted, "--overwrite")
    said = call(*asked, "--adapt", tmp_path / "adapted")
    assert "Wrote the adapted atlas" in said
    assert {file.name: file.read_bytes() for file in fitted.iterdir()} == before
    adapted = ia.load(tmp_path / "adapted")
    assert adapted.schema.technical[0].categories[-1] == "newcomer"
    assert "newcomer" in call("info", tmp_path / "adapted")


def test_map_adapts_to_nothing_new_with_an_error(fitted: Path, cells: Path, tmp_path: Path) -> None:
    asked = ("map", fitted, cells, "--output", tmp_path / "mapped.h5ad")
    assert "nothing to adapt to" in refuse(*asked, "--adapt", tmp_path / "adapted")
    assert not list(tmp_path.iterdir())


def test_map_aligns_for_one_query_and_leaves_the_atlas_alone(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    before = {file.name: file.read_bytes() for file in fitted.iterdir()}
    asked = ("map", fitted, cells, "--no-report", "--output")
    call(*asked, tmp_path / "plain.h5ad")
    said = call(*asked, tmp_path / "aligned.h5ad", "--align")
    assert "Aligned, moved by shares of a cell's spread: all cells 0." in said
    plain, aligned = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("plain", "aligned"))
    assert not np.array_equal(plain.obsm["X_invariant"], aligned.obsm["X_invariant"])
    expected = ia.embed(ia.align(ia.load(fitted), ad.read_h5ad(cells)), ad.read_h5ad(cells))
    assert np.array_equal(aligned.obsm["X_invariant"], expected)
    assert {file.name: file.read_bytes() for file in fitted.iterdir()} == before


def test_map_aligns_each_batch_by_itself(fitted: Path, cells: Path, tmp_path: Path) -> None:
    study = ad.read_h5ad(cells)
    run = study.obs["batch"].astype(object)
    few, without = np.flatnonzero(run == "batch_1")[:20], np.flatnonzero(run == "batch_2")[:2]
    run.iloc[few], run.iloc[without] = "small", None
    study.obs["run"] = run
    study.write_h5ad(tmp_path / "query.h5ad")
    asked = ("map", fitted, tmp_path / "query.h5ad", "--no-report", "-o", tmp_path / "m.h5ad")
    said = call(*asked, "--align-by", "run")
    assert "22 cells without a run that 30 have are as they were" in said
    found, atlas = ad.read_h5ad(tmp_path / "m.h5ad"), ia.load(fitted)
    plain = ia.embed(atlas, study)
    expected = plain.copy()
    for name in ("batch_1", "batch_2"):
        rows = (study.obs["run"] == name).to_numpy()
        expected[rows] = ia.embed(ia.align(atlas, study[rows].copy()), study[rows].copy())
    assert np.abs(expected - plain).max() > 1e-2
    np.testing.assert_allclose(found.obsm["X_invariant"], expected, atol=1e-5)
    np.testing.assert_allclose(
        found.obsm["X_spurious"], ia.embed(atlas, study, "spurious"), atol=1e-5
    )
    assert "obs has no column 'runs'" in refuse(*asked, "--align-by", "runs", "--overwrite")
    assert "name one" in refuse(*asked, "--align-by", "run", "--align", "--overwrite")
    adapt = ("--adapt", tmp_path / "adapted", "--overwrite")
    for aligned in (("--align",), ("--align-by", "run")):
        assert "map with one of them" in refuse(*asked, *aligned, *adapt)
    study[:29].copy().write_h5ad(tmp_path / "query.h5ad")
    assert "No value of 'run' has 30 cells" in refuse(*asked, "--align-by", "run", "--overwrite")


def test_a_simulated_query_is_mapped(tmp_path: Path) -> None:
    study, query = tmp_path / "study.h5ad", tmp_path / "query.h5ad"
    call("simulate", study, "--query", query, "--cells", 300, "--genes", 60)
    call("fit", study, *COLUMNS, "-o", tmp_path / "atlas", *QUICK)
    call("map", tmp_path / "atlas", query, "-o", tmp_path / "m.h5ad", "--threads", 1)
    assert ad.read_h5ad(tmp_path / "m.h5ad").obs["predicted_cell_type"].notna().all()


def test_a_new_group_is_told_with_the_share_that_is_called_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    obs = pd.DataFrame({"novelty_flag": [True, False], "abstained": False}, index=["a", "b"])
    group = {"group": "new_1", "cells": 184, "nearest": "NK | ctrl", "share": 0.168, "markers": ""}
    states = NovelStates(pd.Series(dtype=str), pd.DataFrame([group]))
    show_mapped(Mapped(AnnData(obs=obs), GeneOverlap(7, 0, 0.0, ()), [], states), [], 0.5)
    said = capsys.readouterr().err
    assert "184 new cells, nearest to NK | ctrl (16.8 % of them called so); markers none." in said
