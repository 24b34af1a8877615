"""Genes: which are chosen, and how those of a query meet those of an atlas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from invatlas.data import genes
from invatlas.data.genes import GeneOverlap, match_genes, select_genes
from invatlas.errors import CountsError, GeneError


@pytest.fixture
def cells(generator: np.random.Generator) -> AnnData:
    """200 cells of two kinds; genes v0..v9 tell them apart, f0..f29 do not, z is never counted."""
    kind = np.arange(200) % 2
    flat = generator.poisson(2.0, (200, 30))
    varying = generator.poisson(np.where(kind[:, None] == np.arange(10) % 2, 12.0, 0.2))
    names = [f"f{i}" for i in range(30)] + [f"v{i}" for i in range(10)] + ["z"]
    x = np.hstack([flat, varying, np.zeros((200, 1), dtype=int)]).astype(np.float32)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(200)])
    return AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=names))


def test_genes_that_vary_are_chosen(cells: AnnData) -> None:
    assert select_genes(cells, 10) == sorted(f"v{i}" for i in range(10))


def test_zero_or_more_than_there_are_keeps_every_gene_that_is_counted(cells: AnnData) -> None:
    every = sorted(name for name in cells.var_names if name != "z")
    assert select_genes(cells, 0) == every
    assert select_genes(cells, 10_000) == every


def test_zero_keeps_a_gene_that_one_cell_holds_looked_at_or_not(
    cells: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genes, "SELECTION_CELLS", 50)
    for cell in range(200):
        x = sp.lil_matrix(cells.shape, dtype=np.float32)
        x[cell, 40] = 1
        found = select_genes(AnnData(x.tocsr(), var=cells.var), 0)
        assert found == ["z"]
    assert all(type(name) is str for n in (0, 10, 50) for name in select_genes(cells, n))


def test_order_of_genes_and_form_of_counts_do_not_matter(
    cells: AnnData, generator: np.random.Generator
) -> None:
    expected = select_genes(cells, 17)
    permuted = cells[:, generator.permutation(cells.n_vars)].copy()
    assert select_genes(permuted, 17) == expected
    permuted.layers["raw"] = permuted.X.toarray().astype(np.int64)
    permuted.X = np.full(permuted.shape, 0.5)
    assert select_genes(permuted, 17, "raw") == expected
    permuted.X = sp.csc_matrix(permuted.layers["raw"])
    assert select_genes(permuted, 17) == expected


def test_a_gene_in_two_columns_is_one_gene(cells: AnnData) -> None:
    split = AnnData(
        sp.hstack([cells.X, cells.X], format="csr"),
        var=pd.DataFrame(index=[*cells.var_names, *cells.var_names]),
    )
    assert select_genes(split, 10) == select_genes(cells, 10)
    assert len(set(select_genes(split, 0))) == len(select_genes(split, 0)) == 40


def test_empty_cells_and_donors_of_a_few_cells_do_not_stop_it(cells: AnnData) -> None:
    cells.X = sp.vstack([sp.csr_matrix((3, cells.n_vars), dtype=np.float32), cells.X[3:]]).tocsr()
    assert select_genes(cells, 10) == sorted(f"v{i}" for i in range(10))
    donors = np.r_[0, 1, 1, np.full(100, 2), np.full(97, 3)]
    assert select_genes(cells, 10, technical=donors) == sorted(f"v{i}" for i in range(10))
    few = cells[np.r_[3:15]].copy()
    assert len(select_genes(few, 10, technical=np.arange(12))) == 10


def test_a_gene_that_only_tells_donors_apart_does_not_count(cells: AnnData) -> None:
    x = cells.X.toarray()
    donor = np.repeat([0, 1], 100)
    x[:, 0] = np.where(donor == 0, 30, 0)
    told = AnnData(sp.csr_matrix(x), var=cells.var)
    assert "f0" in select_genes(told, 11)
    assert "f0" not in select_genes(told, 11, technical=donor)


def test_counts_of_nothing_are_refused(cells: AnnData) -> None:
    cells.X = sp.csr_matrix(cells.shape, dtype=np.float32)
    for n_genes, where in ((0, "any cell"), (10, "any of the 200 cells looked at")):
        with pytest.raises((GeneError, CountsError), match=f"None of 41 genes.* in {where}"):
            select_genes(cells, n_genes)


def test_one_gene_can_be_chosen(cells: AnnData) -> None:
    assert len(select_genes(cells, 1)) == 1


GENES = tuple("abcdef")
SHARES = np.array([0.4, 0.3, 0.1, 0.1, 0.06, 0.04])


def match(present: list[str], minimum: float) -> GeneOverlap:
    return match_genes(pd.DataFrame(index=present), GENES, SHARES, minimum)[1]


def test_missing_genes_are_counted_and_the_largest_come_first() -> None:
    overlap = match(["x", "f", "d", "b", "a"], 0.5)
    assert (overlap.n_genes, overlap.n_missing) == (6, 2)
    assert overlap.missing_share == pytest.approx(0.16)
    assert [name for name, _ in overlap.worst] == ["c", "e"]
    text = overlap.describe()
    assert "2 of 6 genes" in text and "16.0%" in text and text.index("c (") < text.index("e (")


def test_too_small_an_overlap_is_refused_and_names_blamed_only_where_they_differ() -> None:
    with pytest.raises(
        GeneError, match=r"Only 2 of 6 .*14\.0%.*50%.*lower minimum_overlap"
    ) as refusal:
        match(["Ensg1", "c", "f", "q"], 0.5)
    assert "look like" not in str(refusal.value)
    with pytest.raises(GeneError, match=r"Only 0 of 6 .*50%.*look like Ensg1.*a, b, c"):
        match(["Ensg1", "Ensg2"], 0.5)
    assert match(["c", "f"], 0.1).n_missing == 4


@given(st.sets(st.sampled_from([*GENES, "x", "y"])), st.randoms())
def test_matching_is_a_matter_of_sets(present: set[str], random: object) -> None:
    names = sorted(present)
    random.shuffle(names)  # type: ignore[attr-defined]
    if not present - {"x", "y"}:
        with pytest.raises(GeneError, match=r"Only 0 of 6 .*more than nothing is needed"):
            match(names, 0.0)
        return
    found = match([*names, *names], 0.0)
    absent = [gene for gene in GENES if gene not in present]
    assert found.n_missing == len(absent)
    expected = sum(SHARES[GENES.index(gene)] for gene in absent)
    assert found.missing_share == pytest.approx(expected)
    assert [name for name, _ in found.worst] == absent[:5], "shares fall along GENES"
    common = 1 - expected
    if common < 0.5 - 1e-9:
        with pytest.raises(GeneError):
            match(names, 0.5)


HUMAN = ["ACTB", "GAPDH", "CD3E", "MS4A1", "LYZ", "NKG7", "C1orf112"]
MOUSE = ["Actb", "Gapdh", "Cd3e", "Ms4a1", "Lyz", "Nkg7", "Gm1234"]
IDS = [f"ENSG{i:011d}" for i in range(7)]
EVEN = np.full(7, 1 / 7)


def test_ways_of_meeting_are_counted_and_said() -> None:
    present = ["ENSG00000000000", "ENSG00000000001.5", "ensg00000000002", "ensg00000000003.1"]
    found = match_genes(pd.DataFrame(index=present), IDS, EVEN, 0.5)[1]
    assert (found.n_exact, found.n_version, found.n_case, found.n_missing) == (1, 1, 2, 3)
    assert "1 met by the same name, 1 by the Ensembl id without" in found.describe()
    assert "2 by another case" in found.describe()
    exact = match_genes(pd.DataFrame(index=IDS), IDS, EVEN, 0.5)[1]
    assert exact.describe() == "All 7 genes of the atlas are in the query."


REFUSED = {
    "a column that does not exist": (
        pd.DataFrame({"symbol": HUMAN, "n_cells": 3}, index=IDS),
        "symbols",
        r"no column 'symbols'.*its columns are symbol, n_cells",
    ),
    "ids for symbols": (
        pd.DataFrame(index=IDS),
        None,
        r"Only 0 of 7.*The query has Ensembl ids, the atlas symbols.*gene_column",
    ),
    "ids, and a column of symbols": (
        pd.DataFrame({"kind": "gene", "gene_symbols": [*HUMAN[:6], None]}, index=IDS),
        None,
        r"Only 0 of 7.*Column 'gene_symbols' of var matches 86%: pass gene_column='gene_symbols'",
    ),
    "a category of symbols": (
        pd.DataFrame({"name": pd.Categorical(HUMAN)}, index=IDS),
        None,
        "pass gene_column='name'",
    ),
    "the wrong column": (
        pd.DataFrame({"ids": IDS}, index=HUMAN),
        "ids",
        "var_names match 100%: leave gene_column out",
    ),
    "a column of mouse symbols is no advice": (
        pd.DataFrame({"symbols": MOUSE}, index=IDS),
        None,
        r"Only 0 of 7(?!.*pass gene_column=)",
    ),
    "another species": (
        pd.DataFrame(index=MOUSE),
        None,
        r"query's genes look like mouse symbols \(Actb, Gapdh, Cd3e\), the atlas's like human "
        r"ones \(ACTB, .*orthologues",
    ),
    "another species with its orthologues": (
        pd.DataFrame({"human": HUMAN}, index=MOUSE),
        None,
        r"mouse symbols.*Column 'human' of var matches 100%: pass gene_column='human'",
    ),
    "nothing has a name": (
        pd.DataFrame({"empty": [None, np.nan, "", " ", None, None, None]}, index=HUMAN),
        "empty",
        r"Only 0 of 7.*none has a name.*leave gene_column out",
    ),
}


@pytest.mark.parametrize(("var", "column", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("minimum", [0.0, 0.5])
def test_genes_that_do_not_fit_are_refused_with_advice(
    var: pd.DataFrame, column: str | None, message: str, minimum: float
) -> None:
    with pytest.raises(GeneError, match=message):
        match_genes(var, HUMAN, EVEN, minimum, column)
