"""Groups of new cells: found where they lie together, described by the genes that make them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import invatlas as ia
from invatlas.tasks.novel_states import NovelStates, novel_states

Case = tuple[AnnData, pd.DataFrame, np.ndarray]


@pytest.fixture
def case() -> Case:
    """Two known states, a new one of 30 cells beside each, and 8 flagged cells on their own."""
    generator = np.random.default_rng(0)
    kind = np.repeat(["a", "b", "new a", "new b", "odd"], [100, 100, 30, 30, 8])
    centre = {"a": (0, 0), "b": (20, 0), "new a": (0, 6), "new b": (20, 6), "odd": (0, 0)}
    z = np.array([centre[k] for k in kind]) + generator.normal(0, 0.5, (len(kind), 2))
    z[kind == "odd"] = generator.uniform(-60, -30, (8, 2))
    rate = np.full((len(kind), 40), 2.0)
    rate[np.isin(kind, ["b", "new b"]), :5] *= 6
    rate[kind == "new a", 5:8] *= 8
    rate[kind == "new b", 8:11] *= 8
    adata = AnnData(sp.csr_matrix(generator.poisson(rate).astype(np.float32)))
    adata.var_names = [f"gene_{j}" for j in range(40)]
    adata.var["symbol"] = [f"SYMBOL{j}" for j in range(40)]
    adata.obs_names = [f"cell {i}" for i in range(len(kind))]
    called = [k.removeprefix("new ").replace("odd", "a") for k in kind]
    flag = ~np.isin(kind, ["a", "b"])
    calls = pd.DataFrame(
        {"predicted_joint": pd.Categorical(called), "novelty_flag": flag}, index=adata.obs_names
    )
    return adata, calls, z


def genes_of(found: NovelStates, nearest: str) -> set[str]:
    return set(found.table.set_index("nearest").loc[nearest, "markers"].split(", "))


def test_states_are_found_named_and_told_by_their_genes(case: Case) -> None:
    found = novel_states(*case)
    assert list(found.table["group"]) == ["new_1", "new_2"]
    assert found.table["cells"].between(27, 30).all(), "a cell at the edge may be left out"
    assert set(found.table["nearest"]) == {"a", "b"} and (found.table["share"] == 1).all()
    assert genes_of(found, "a") == {"gene_5", "gene_6", "gene_7"}
    assert genes_of(found, "b") == {"gene_8", "gene_9", "gene_10"}, "not those of b itself"
    alone = found.cells.isna().to_numpy()
    assert alone[:200].all() and alone[-8:].all(), "known cells and lonely ones are in no group"
    assert found.cells[200:230].nunique() == 1 and found.cells[230:260].nunique() == 1
    assert list(found.cells.index) == list(case[0].obs_names)


def test_markers_go_by_the_wanted_names(case: Case) -> None:
    found = novel_states(*case, gene_column="symbol")
    assert genes_of(found, "a") == {"SYMBOL5", "SYMBOL6", "SYMBOL7"}


def test_many_cells_are_grouped_by_some_of_them(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invatlas.tasks.novel_states.MOST_GROUPED", 40)
    monkeypatch.setattr("invatlas.tasks.novel_states.MOST_COMPARED", 20)
    found = novel_states(*case)
    assert found.table["cells"].between(25, 30).all()
    assert found.cells[:200].isna().all() and found.cells[-8:].isna().all()
    assert genes_of(found, "a") <= {"gene_5", "gene_6", "gene_7"}


@pytest.mark.parametrize("most", [50, 10_000])
def test_flags_at_random_make_no_group(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("invatlas.tasks.novel_states.MOST_GROUPED", most)
    generator = np.random.default_rng(0)
    z = generator.normal(size=(2000, 10))
    adata = AnnData(sp.csr_matrix(generator.poisson(2.0, (2000, 5)).astype(np.float32)))
    flag = generator.random(2000) < 0.05
    calls = pd.DataFrame({"predicted_joint": "a", "novelty_flag": flag}, index=adata.obs_names)
    assert len(novel_states(adata, calls, z).table) == 0


@pytest.mark.parametrize("flagged", [0, 5])
def test_without_enough_flagged_cells_there_are_no_groups(case: Case, flagged: int) -> None:
    adata, calls, z = case
    calls["novelty_flag"] = np.arange(len(calls)) < flagged
    found = novel_states(adata, calls, z)
    assert found.cells.isna().all() and len(found.table) == 0
    assert list(found.table) == ["group", "cells", "nearest", "share", "compared_with", "markers"]


def test_all_cells_new_leaves_nothing_to_compare_with(case: Case) -> None:
    adata, calls, z = case
    calls["novelty_flag"] = True
    found = novel_states(adata, calls, z)
    assert len(found.table) and (found.table["markers"] == "").all()


def test_cells_that_do_not_belong_together_are_refused(case: Case) -> None:
    adata, calls, z = case
    with pytest.raises(ia.InvatlasError, match="268 cells, but 268 calls and 10 latents"):
        novel_states(adata, calls, z[:10])
    with pytest.raises(ia.InvatlasError, match="at least 3"):
        novel_states(adata, calls, z, smallest=1)
    for lost in ("predicted_joint", "novelty_flag"):
        with pytest.raises(ia.InvatlasError, match=f"calls lacks {lost}; it takes the table that"):
            novel_states(adata, calls.drop(columns=lost), z)
