"""Gene lists of a query: renamed, reordered, partial or larger, they give the same answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import invatlas as ia
from invatlas.errors import GeneError
from invatlas.tasks.embed import match_counts


@pytest.fixture(scope="module")
def expected(atlas: ia.Atlas, frozen_study: AnnData) -> np.ndarray:
    return ia.embed(atlas, frozen_study)


IDS = [f"ENSG{i:011d}" for i in range(120)]


def named(atlas: ia.Atlas, names: list[str]) -> ia.Atlas:
    """The same atlas with other names for its genes."""
    known = dict(zip([f"gene_{i:04d}" for i in range(1, 121)], names, strict=True))
    return replace(atlas, genes=tuple(known[gene] for gene in atlas.genes))


# names of the atlas's genes, of the query's, and of the query's again in a column
NAMINGS: dict[str, tuple[list[str], list[str], list[str] | None]] = {
    "versions in the query": (IDS, [f"{name}.{i % 9}" for i, name in enumerate(IDS)], None),
    "versions in the atlas": ([f"{name}.{i % 9}" for i, name in enumerate(IDS)], IDS, None),
    "other versions": ([f"{name}.3" for name in IDS], [f"{name}.4" for name in IDS], None),
    "lower case": (
        [f"GENE{i}" for i in range(120)],
        [f"gene{i}" if i % 2 else f"GENE{i}" for i in range(120)],
        None,
    ),
    "symbols in a column": (
        [f"GENE{i}" for i in range(120)],
        IDS,
        [f"GENE{i}" for i in range(120)],
    ),
    "ids in a column": (IDS, [f"GENE{i}" for i in range(120)], [f"{name}.2" for name in IDS]),
}


@pytest.mark.parametrize(("genes", "names", "column"), NAMINGS.values(), ids=NAMINGS)
def test_however_genes_are_named_the_answer_is_the_same(
    atlas: ia.Atlas,
    study: AnnData,
    expected: np.ndarray,
    genes: list[str],
    names: list[str],
    column: list[str] | None,
    generator: np.random.Generator,
) -> None:
    renamed = named(atlas, genes)
    study.var_names = names
    study.var["other"] = column
    other = "other" if column else None
    query = study[:, generator.permutation(120)].copy()
    assert np.array_equal(ia.embed(renamed, query, gene_column=other), expected)
    mapped = ia.map_cells(renamed, query, gene_column=other)
    assert np.array_equal(mapped.cells.obsm["X_invariant"], expected)
    assert mapped.overlap.n_missing == 0
    if column:
        with pytest.raises(GeneError, match="pass gene_column='other'"):
            ia.embed(renamed, query)


def test_every_question_takes_the_column(atlas: ia.Atlas, study: AnnData) -> None:
    by_name = study.copy()
    study.var["names"] = study.var_names
    study.var_names = IDS
    questions: tuple[Callable[..., pd.DataFrame], ...] = (
        ia.annotate,
        ia.novelty,
        ia.prediction_sets,
    )
    for ask in questions:
        pd.testing.assert_frame_equal(ask(atlas, study, gene_column="names"), ask(atlas, by_name))
        with pytest.raises(GeneError, match=r"no column 'symbols'.*names"):
            ask(atlas, study, gene_column="symbols")


def test_rows_of_one_name_are_added_and_rows_without_a_name_are_left_out(
    atlas: ia.Atlas, study: AnnData, expected: np.ndarray
) -> None:
    part = study.X.copy()
    part.data = np.floor(part.data / 3)
    noise = sp.csr_matrix(np.full((600, 3), 7, dtype=np.float32))
    split = AnnData(
        sp.hstack([noise, part, study.X - part], format="csr"),
        var=pd.DataFrame(
            {"symbol": [None, np.nan, "", *study.var_names, *study.var_names]},
            index=[f"row{i}" for i in range(243)],
        ),
    )
    assert np.array_equal(ia.embed(atlas, split, gene_column="symbol"), expected)


@pytest.mark.parametrize("n_genes", [0, 50])
def test_a_fit_takes_the_column_and_keeps_its_names(
    study: AnnData, fit: Callable[..., ia.Atlas], n_genes: int
) -> None:
    plain = fit(study, genes=n_genes, epochs=1)
    study.var["symbol"] = study.var_names
    study.var_names = IDS
    renamed = fit(study, genes=n_genes, epochs=1, gene_column="symbol")
    assert renamed.genes == plain.genes and renamed.record["gene_column"] == "symbol"
    assert np.array_equal(
        ia.embed(renamed, study, gene_column="symbol"), ia.embed(plain, study, gene_column="symbol")
    )
    with pytest.raises(GeneError, match=r"no column 'symbols' to take as gene_column.*symbol"):
        fit(study, gene_column="symbols")


def test_a_fit_adds_rows_of_one_name_and_leaves_rows_without_one_out(
    study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    names = [None, "", *study.var_names[2:]]
    names[3] = names[2]
    study.var["symbol"], study.var["empty"] = names, [None] * 120
    for n_genes in (0, 2000):
        found = fit(study, genes=n_genes, epochs=1, gene_column="symbol")
        assert found.genes == tuple(sorted({*study.var_names[4:], names[2]}))
    with pytest.raises(GeneError, match="None of 120 genes has a name"):
        fit(study, gene_column="empty")
    study.var["symbol"] = [*study.var_names[:5], *[None] * 115]
    study.X = study.X @ sp.diags((np.arange(120) >= 5).astype(np.float32)).tocsr()
    with pytest.raises(GeneError, match="None of 120 genes that has a name is counted"):
        fit(study, genes=0, gene_column="symbol")


@pytest.mark.parametrize("which", ["invariant", "spurious"])
def test_a_partial_list_answers_as_it_does_in_the_order_of_the_atlas(
    atlas: ia.Atlas, study: AnnData, which: str, generator: np.random.Generator
) -> None:
    kept = [gene for i, gene in enumerate(atlas.genes) if i % 6]
    matched = study[:, kept].copy()
    extra = sp.csr_matrix(generator.poisson(5.0, (600, 40)).astype(np.float32))
    more = AnnData(
        sp.hstack([matched.X, extra], format="csr"),
        var=pd.DataFrame(index=[*kept, *(f"extra{i}" for i in range(40))]),
    )
    shuffled = more[:, generator.permutation(140)].copy()
    assert np.array_equal(ia.embed(atlas, shuffled, which), ia.embed(atlas, matched, which))


def test_a_missing_gene_is_a_column_of_zeros_but_for_the_library_size(
    atlas: ia.Atlas, study: AnnData
) -> None:
    kept = [gene for i, gene in enumerate(atlas.genes) if i % 6]
    zeros = study.copy()
    zeros.X = sp.csr_matrix(zeros.X.multiply(study.var_names.isin(kept)[None, :]))
    some, overlap = match_counts(atlas, study[:, kept].copy(), None, 0.5)
    every, _ = match_counts(atlas, zeros, None, 0.5)
    assert (some.matrix != every.matrix).nnz == 0
    present = np.float32(1 - overlap.missing_share)
    np.testing.assert_array_equal(some.library_size, every.library_size / present)
    shares = np.where(np.isin(atlas.genes, kept), atlas.gene_shares, 0)
    never = replace(atlas, gene_shares=shares / shares.sum())
    assert np.array_equal(ia.embed(never, study[:, kept].copy()), ia.embed(never, zeros))


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(120)), extra=st.integers(0, 9))
def test_no_order_of_genes_and_no_further_gene_moves_a_cell(
    atlas: ia.Atlas, frozen_study: AnnData, order: list[int], extra: int
) -> None:
    few = frozen_study[:40].copy()
    more = AnnData(
        sp.hstack([sp.csr_matrix(np.full((40, extra), 3, np.float32)), few.X], format="csr"),
        var=pd.DataFrame(index=[*(f"extra{i}" for i in range(extra)), *few.var_names]),
    )
    places = [*(extra + np.array(order)), *range(extra)]
    assert np.array_equal(ia.embed(atlas, more[:, places].copy()), ia.embed(atlas, few))


def test_another_species_and_no_common_gene_are_refused(atlas: ia.Atlas, study: AnnData) -> None:
    human = named(atlas, [f"GENE{i}" for i in range(120)])
    study.var_names = [f"Gene{i}" for i in range(120)]
    for minimum in (0.0, 0.5):
        with pytest.raises(GeneError, match=r"look like mouse symbols \(Gene0.*orthologues"):
            ia.embed(human, study, minimum_overlap=minimum)
        with pytest.raises(GeneError, match=r"Only 0 of 120 genes"):
            ia.embed(named(atlas, IDS), study, minimum_overlap=minimum)
    study.var_names = [name.replace("ENSG", "ENSMUSG") for name in IDS]
    with pytest.raises(GeneError, match=r"mouse Ensembl ids.*the atlas's like human ones"):
        ia.annotate(named(atlas, IDS), study)


def test_names_that_come_twice_in_a_query_are_said(atlas: ia.Atlas, study: AnnData) -> None:
    first, second, *rest = study.var_names
    study.var_names = [first, first, *rest]
    told = f"1 gene of the atlas meets several of the query's of one name ({first})"
    for calling in (None, ia.Calling()):
        assert (
            sum(note.startswith(told) for note in ia.map_cells(atlas, study, calling=calling).notes)
            == 1
        )
    with pytest.warns(UserWarning, match="1 gene of the atlas meets several"):
        ia.annotate(atlas, study)
    numbered = replace(atlas, genes=tuple(f"ENSG{i:011d}" for i in range(len(atlas.genes))))
    study.var_names = [*[f"{gene}.1" for gene in numbered.genes[:-1]], f"{numbered.genes[0]}.2"]
    told = "1 gene of the atlas meets several of the query's alike but for versions (ENSG000"
    assert any(note.startswith(told) for note in ia.map_cells(numbered, study).notes)
    study.var_names = [first, second, *rest]
    assert not [note for note in ia.map_cells(atlas, study).notes if "several" in note]
