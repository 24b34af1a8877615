"""Counts come in as they lie about, and are kept exactly; what is no count is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from invatlas.data.counts import CHUNK, CountSource, compact, read_counts, read_pieces, take_rows
from invatlas.errors import CountsError, GeneError

COUNTS = np.array([[0, 3, 0, 1], [0, 0, 0, 0], [7, 0, 0, 250], [1, 2, 0, 300]])


def make(x: object = COUNTS, genes: str = "abcd") -> AnnData:
    cells = [f"cell{i}" for i in range(x.shape[0])]
    return AnnData(x, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=list(genes)))


FORMS: dict[str, Callable[[np.ndarray], object]] = {
    "dense float32": lambda x: x.astype(np.float32),
    "dense float64": lambda x: x.astype(np.float64),
    "dense int64": lambda x: x.astype(np.int64),
    "dense uint16": lambda x: x.astype(np.uint16),
    "dense fortran": lambda x: np.asfortranarray(x.astype(np.float32)),
    "csr float32": lambda x: sp.csr_matrix(x.astype(np.float32)),
    "csr float64": lambda x: sp.csr_matrix(x.astype(np.float64)),
    "csr int32": lambda x: sp.csr_matrix(x.astype(np.int32)),
    "csr uint16": lambda x: sp.csr_matrix(x.astype(np.uint16)),
    "csr array": lambda x: sp.csr_array(x.astype(np.float32)),
    "csc float32": lambda x: sp.csc_matrix(x.astype(np.float32)),
    "csc int64": lambda x: sp.csc_matrix(x.astype(np.int64)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_counts_reads_the_same(form: Callable[[np.ndarray], object]) -> None:
    source = CountSource.from_anndata(make(form(COUNTS)), list("abcd"))
    assert np.array_equal(source.matrix.toarray(), COUNTS)
    assert source.matrix.dtype == np.uint16
    assert source.library_size.tolist() == [4, 1, 257, 303], "an empty cell has size 1"
    assert source.library_size.dtype == np.float32


@pytest.mark.parametrize("form", ["csr float32", "csc float32", "dense float32"])
def test_backed_files_and_views_read_the_same(form: str, tmp_path: Path) -> None:
    adata = make(FORMS[form](COUNTS))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = CountSource.from_anndata(backed, list("abcd")).matrix.toarray()
    assert np.array_equal(found, COUNTS)
    view = adata[[3, 0], ["d", "a"]]
    assert view.is_view
    assert CountSource.from_anndata(view, ["a", "d"]).matrix.toarray().tolist() == [
        [1, 300],
        [0, 1],
    ]
    backed.file.close()


@pytest.mark.parametrize("backed", [False, True], ids=["memory", "file"])
def test_csc_is_gone_through_once_however_many_cells_there_are(
    backed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: np.random.Generator
) -> None:
    x = generator.poisson(1.0, (3 * CHUNK, 4))
    adata = make(sp.csc_matrix(x.astype(np.float32)))
    if backed:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    kind, taken = type(adata.X), []
    take = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda *a: taken.append(a) or take(*a))
    found = CountSource.from_anndata(adata, list("abcd")).matrix.toarray()
    assert len(taken) <= 1
    assert np.array_equal(found, x)


def test_a_layer_is_read_instead_of_x() -> None:
    adata = make(np.full((4, 4), 0.5))
    adata.layers["raw"] = sp.csc_matrix(COUNTS)
    assert np.array_equal(
        CountSource.from_anndata(adata, list("abcd"), "raw").matrix.toarray(), COUNTS
    )


def test_genes_are_ordered_as_asked_and_absent_ones_are_zero() -> None:
    found = CountSource.from_anndata(make(), ["d", "nowhere", "a"])
    expected = np.c_[COUNTS[:, 3], np.zeros(4), COUNTS[:, 0]]
    assert np.array_equal(found.matrix.toarray(), expected)
    assert found.library_size.tolist() == [1, 1, 257, 301]


def test_counts_of_one_name_are_added_also_beyond_their_storage() -> None:
    adata = make(sp.csr_matrix(np.array([[200, 100, 1, 5]], dtype=np.uint8)), "aaab")
    assert CountSource.from_anndata(adata, ["b", "a"]).matrix.toarray().tolist() == [[5, 301]]


def test_a_gene_asked_for_twice_is_refused() -> None:
    with pytest.raises(GeneError, match="twice"):
        CountSource.from_anndata(make(), ["a", "a"])


def test_order_within_rows_duplicate_entries_and_stored_zeros_do_not_matter() -> None:
    messy = sp.csr_matrix(
        (np.array([2.0, 1, 4, 0, 6]), np.array([3, 1, 3, 0, 2]), np.array([0, 4, 5])), (2, 4)
    )
    before = (messy.data.copy(), messy.indices.copy(), messy.indptr.copy())
    adata = make(messy)
    source = CountSource.from_anndata(adata, list("abcd"))
    assert source.matrix.toarray().tolist() == [[0, 1, 0, 6], [0, 0, 6, 0]]
    assert source.matrix.nnz == 3, "a stored zero is no nonzero"
    after = (adata.X.data, adata.X.indices, adata.X.indptr)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "never changed"


def test_a_count_is_the_sum_of_the_entries_at_its_place() -> None:
    halves = sp.csr_matrix(
        (np.array([0.5, 1.5, 3.0]), np.array([1, 1, 2]), np.array([0, 3])), (1, 4)
    )
    source = CountSource.from_anndata(make(halves), list("abcd"))
    assert source.matrix.toarray().tolist() == [[0, 2, 3, 0]]


def test_more_cells_than_a_chunk_keep_their_order_and_counts() -> None:
    n = CHUNK + 3
    x = sp.csr_matrix((np.arange(1, n + 1), (np.arange(n), np.arange(n) % 4)), (n, 4))
    source = CountSource.from_anndata(make(x), list("abcd"))
    assert source.n_cells == n
    assert np.array_equal(source.matrix.toarray(), x.toarray())
    assert [rows.stop - rows.start for rows, _ in read_counts(make(x))] == [CHUNK, 3]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-2, r"X holds a negative value, -2 \(cell 'cell2', gene 'b'\)"),
        (0.5, r"X holds a fractional value, 0.5 \(cell 'cell2', gene 'b'\)"),
        (np.nan, r"X holds .*no finite number, nan \(cell 'cell2', gene 'b'\)"),
        (np.inf, r"X holds .*no finite number, inf \(cell 'cell2', gene 'b'\)"),
        (1e20, r"1e\+20 \(cell 'cell2', gene 'b'\)"),
    ],
)
def test_what_is_no_count_is_refused_by_value_cell_and_gene(
    value: float, message: str, form: Callable[[np.ndarray], object]
) -> None:
    x = COUNTS.astype(np.float64)
    x[2, 1] = value
    with pytest.raises(CountsError, match=message):
        CountSource.from_anndata(make(form(x)), ["a"])


def test_a_wrong_value_in_a_later_chunk_is_named_rightly() -> None:
    n = CHUNK + 5
    x = sp.csr_matrix(
        (np.r_[np.ones(n - 1), -1.0], (np.r_[0 : n - 2, n - 2, n - 2], np.r_[np.zeros(n - 1), 3])),
        (n, 4),
    )
    with pytest.raises(CountsError, match=rf"cell 'cell{n - 2}', gene 'd'"):
        CountSource.from_anndata(make(x), ["a"])


def test_a_wrong_value_in_a_layer_names_the_layer() -> None:
    adata = make()
    adata.layers["logs"] = np.log1p(COUNTS)
    with pytest.raises(CountsError, match="layer 'logs' holds a fractional value"):
        CountSource.from_anndata(adata, ["a"], "logs")


def test_an_unknown_layer_is_refused_and_the_layers_named() -> None:
    adata = make()
    adata.layers["raw"] = COUNTS
    with pytest.raises(CountsError, match=r"no layer 'count'.*raw"):
        CountSource.from_anndata(adata, ["a"], "count")


def test_a_layer_that_is_nearly_named_is_suggested() -> None:
    adata = make()
    adata.layers["Counts"] = COUNTS
    with pytest.raises(CountsError, match=r"the layers are Counts\. Did you mean 'Counts'\?$"):
        CountSource.from_anndata(adata, ["a"], "count")


def test_where_counts_are_instead_is_said() -> None:
    adata = make(np.log1p(COUNTS))
    adata.layers["logs"], adata.layers["empty"] = np.log1p(COUNTS), COUNTS * 0
    with pytest.raises(CountsError, match=r"No layer holds any; the layers are logs, empty\.$"):
        CountSource.from_anndata(adata, ["a"])
    adata.raw = make()
    told = r"\.raw holds whole numbers.*\.raw\.to_adata\(\)\.write_h5ad\('counts\.h5ad'\)"
    with pytest.raises(CountsError, match=told):
        CountSource.from_anndata(adata, ["a"])
    with pytest.raises(CountsError, match=rf"no layer 'raw'.*{told}"):
        CountSource.from_anndata(adata, ["a"], "raw")
    adata.layers["spliced"], adata.layers["counts"] = sp.csc_matrix(COUNTS), COUNTS
    with pytest.raises(CountsError, match=r"'counts', 'spliced' hold whole .* pass layer='counts'"):
        CountSource.from_anndata(adata, ["a"])
    adata.X = COUNTS
    with pytest.raises(CountsError, match="X holds whole numbers: name no layer"):
        CountSource.from_anndata(adata, ["a"], "logs")


def test_counts_are_found_behind_many_empty_cells_also_on_disk(tmp_path: Path) -> None:
    many = np.zeros((2000, 2), dtype=np.float32)
    many[1990:] = 3
    for layout in (np.asarray, sp.csr_matrix, sp.csc_matrix):
        adata = AnnData(np.log1p(many) + 0.5, var=pd.DataFrame(index=["a", "b"]))
        with pytest.raises(CountsError, match=r"There are no layers, and no \.raw"):
            CountSource.from_anndata(adata, ["a"])
        adata.layers["counts"] = layout(many)
        place = tmp_path / f"{layout.__name__}.h5ad"
        adata.write_h5ad(place)
        for cells in (adata, ad.read_h5ad(place, backed="r")):
            with pytest.raises(CountsError, match="'counts' holds whole numbers"):
                CountSource.from_anndata(cells, ["a"])


def test_no_matrix_no_cells_or_no_genes_are_refused() -> None:
    with pytest.raises(CountsError, match="no X"):
        CountSource.from_anndata(AnnData(obs=pd.DataFrame(index=["a"])), ["a"])
    with pytest.raises(CountsError, match="1 cell and 0 genes"):
        CountSource.from_anndata(make()[:1, :0].copy(), ["a"])
    with pytest.raises(CountsError, match="0 cells"):
        CountSource.from_anndata(make()[:0].copy(), ["a"])
    with pytest.raises(CountsError, match="0 genes"):
        CountSource.from_anndata(make()[:, :0].copy(), ["a"])


@given(
    arrays(
        np.int64,
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.one_of(st.just(0), st.integers(0, 300), st.integers(0, 2**31)),
    )
)
def test_compact_storage_keeps_counts_exactly_in_the_smallest_integers(x: np.ndarray) -> None:
    found = compact(sp.csr_matrix(x.astype(np.float64)))
    assert np.array_equal(found.toarray().astype(np.int64), x)
    assert found.dtype == np.min_scalar_type(int(x.max()))
    source = CountSource.from_anndata(make(x, "abcdef"[: x.shape[1]]), list("abcdef"[: x.shape[1]]))
    assert np.array_equal(source.matrix.toarray().astype(np.int64), x)
    expected = np.maximum(x.sum(1), 1).astype(np.float32)
    assert np.array_equal(source.library_size, expected)


def test_counts_of_many_chunks_share_one_storage() -> None:
    n = CHUNK + 2
    x = sp.lil_matrix((n, 4), dtype=np.float64)
    x[0, 0], x[n - 1, 1] = 3, 70_000
    found = CountSource.from_anndata(make(x.tocsr()), list("abcd")).matrix
    assert found.dtype == np.uint32
    assert (found[0, 0], found[n - 1, 1]) == (3, 70_000)


def test_neighbouring_rows_are_no_copy_even_of_a_small_part() -> None:
    counts = sp.random(500, 30, density=0.3, format="csr", random_state=0)
    some = take_rows(counts, slice(10, 20))
    assert np.shares_memory(some.data, counts.data)
    assert np.shares_memory(some.indices, counts.indices)
    np.testing.assert_array_equal(some.toarray(), counts.toarray()[10:20])


def test_pieces_are_the_whole(generator: np.random.Generator) -> None:
    """Zeros that are stored, columns in another order and a gene that is absent included."""
    x = generator.poisson(1.0, (CHUNK + 3, 6)).astype(np.float32)
    stored = sp.csr_matrix(x)
    stored.data[::7] = 0
    data, genes = make(stored, "abcdef"), ["e", "b", "absent", "f"]
    before = stored.copy()
    pieces = list(read_pieces(data, genes))
    whole = CountSource.from_anndata(data, genes)
    assert [piece.n_cells for piece in pieces] == [CHUNK, 3]
    joined = sp.vstack([piece.matrix for piece in pieces])
    np.testing.assert_array_equal(joined.toarray(), whole.matrix.toarray())
    np.testing.assert_array_equal(joined.toarray()[:, 0], before.toarray()[:, 4])
    sizes = np.concatenate([piece.library_size for piece in pieces])
    np.testing.assert_array_equal(sizes, whole.library_size)
    np.testing.assert_array_equal(data.X.toarray(), before.toarray()), "the user's counts stay"
    assert len(data.X.data) == len(before.data)
