"""Raw counts of cells, held once, in the smallest integers that fit.

    CountSource: which counts, of which genes    (the order of reading is minibatch.py's)

Counts may come from X or a layer, as CSR, CSC, dense or backed, as integers or as floats
that are whole. Genes of one name are added up, so the order of columns never matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from invatlas.data.count_places import advise, advise_raw, list_layers
from invatlas.data.gene_names import read_names
from invatlas.errors import CountsError, DataError, GeneError
from invatlas.processor import spread
from invatlas.wording import count_noun, suggest

CHUNK = 1024
LARGEST_COUNT = 2**31
CSR = (sp.csr_matrix, sp.csr_array)


@dataclass(frozen=True)
class CountSource:
    """Counts of the model's genes in memory.

    Attributes
    ----------
    matrix
        Counts (cell, gene), CSR of unsigned integers.
    library_size
        Counts of each cell over these genes, shape (cell,), float32; at least 1.
    """

    matrix: sp.csr_matrix
    library_size: np.ndarray

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        genes: Sequence[str],
        layer: str | None = None,
        names: Sequence[str | None] | None = None,
    ) -> CountSource:
        """Read the counts of ``genes``, in this order; a gene the data lack is all zero.

        ``names`` are those of the data's columns, None for one to leave out; var_names by default.

        Raises
        ------
        CountsError
            If a value is negative, fractional or not finite, or there are no cells.
        """
        return cls.from_matrix(_stack(list(_read_genes(adata, genes, layer, names))))

    @classmethod
    def from_matrix(cls, matrix: sp.csr_matrix) -> CountSource:
        """Hold compact counts (cell, gene) that were checked already."""
        library_size = np.maximum(row_sums(matrix), 1).astype(np.float32)
        return cls(matrix, library_size)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.matrix.shape[0])


def read_pieces(
    adata: AnnData,
    genes: Sequence[str],
    layer: str | None = None,
    names: Sequence[str | None] | None = None,
) -> Iterator[CountSource]:
    """Read counts as :meth:`CountSource.from_anndata` does, 1,024 cells at a time."""
    return map(CountSource.from_matrix, _read_genes(adata, genes, layer, names))


def check_cells(adata: object) -> None:
    """Refuse anything that is no AnnData, such as the path of one.

    Raises
    ------
    DataError
        Unless it is an AnnData.
    """
    if not isinstance(adata, AnnData):
        raise DataError(
            f"The cells are {adata!r:.80} ({type(adata).__name__}); they must be an AnnData, such "
            "as anndata.read_h5ad gives."
        )


def read_counts(adata: AnnData, layer: str | None = None) -> Iterator[tuple[slice, sp.csr_matrix]]:
    """Go through the counts by chunks of cells, each checked and as compact CSR.

    Compact are the smallest unsigned integers that hold the counts, sorted and without zeros.

    Raises
    ------
    CountsError
        If the layer is absent, there are no cells, or a value is no count.
    """
    if layer is not None and layer not in adata.layers:
        raw = advise_raw(adata) if layer == "raw" else ""
        raise CountsError(
            f"There is no layer {layer!r}; the layers are {list_layers(adata)}."
            f"{suggest(str(layer), adata.layers)} {raw}".strip()
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise CountsError(
            f"The data have no X, where counts are looked for. {advise(adata, layer)}"
        )
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise CountsError(
            f"The data have {count_noun(adata.n_obs, 'cell')} and "
            f"{count_noun(adata.n_vars, 'gene')}."
        )
    matrix = _by_rows(matrix)
    for start in range(0, adata.n_obs, CHUNK):
        rows = slice(start, min(start + CHUNK, adata.n_obs))
        chunk = _sum_duplicates(_take_chunk(matrix, rows))
        _check_counts(chunk, adata, start, layer)
        yield rows, compact(chunk)


def compact(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Store counts in the smallest unsigned integers that hold them, sorted and without zeros."""
    matrix = _sum_duplicates(matrix)
    data = matrix.data.astype(np.min_scalar_type(int(matrix.data.max(initial=0))))
    if data.all():
        return put_together(data, matrix.indices, matrix.indptr, matrix.shape)
    counts = matrix.astype(data.dtype)
    counts.eliminate_zeros()
    return counts


def put_together(
    data: np.ndarray, indices: np.ndarray, starts: np.ndarray, shape: tuple[int, int]
) -> sp.csr_matrix:
    """Make a CSR matrix of its parts as they are; scipy would look at them, and copy slices."""
    matrix = sp.csr_matrix(shape, dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, starts
    return matrix


def take_rows(matrix: sp.csr_matrix, rows: slice) -> sp.csr_matrix:
    """Neighbouring rows of a CSR matrix, without a copy of their counts."""
    starts = matrix.indptr[rows.start : rows.stop + 1]
    part = slice(starts[0], starts[-1])
    shape = (len(starts) - 1, matrix.shape[1])
    return put_together(matrix.data[part], matrix.indices[part], starts - starts[0], shape)


def row_sums(matrix: sp.csr_matrix) -> np.ndarray:
    """Sum of each row, shape (cell,), without overflow of small integers.

    By chunks: the product makes float64 of all counts before it adds any.
    """
    ones, starts = np.ones(matrix.shape[1]), range(0, max(1, matrix.shape[0]), CHUNK)
    chunks = (take_rows(matrix, slice(start, start + CHUNK)) for start in starts)
    return np.concatenate([chunk @ ones for chunk in chunks])


def sum_counts(
    source: CountSource, sample: np.ndarray, n_samples: int, scale: np.ndarray | None = None
) -> np.ndarray:
    """Sum counts over the cells of each sample, X (sample, gene); -1 is no sample.

    Where a ``scale`` of each cell is given, log(1 + scale x) is summed instead.
    """
    rows = np.flatnonzero(sample >= 0)
    counted = np.zeros((n_samples, source.matrix.shape[1]))
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        dealt = (np.ones(len(some)), (sample[some], np.arange(len(some))))
        members = sp.csr_matrix(dealt, (n_samples, len(some)))
        x = source.matrix[some]
        if scale is not None:
            x = x.multiply(scale[some, None]).tocsr().log1p()
        counted += (members @ x).toarray()
    return counted


def _read_genes(
    adata: AnnData, genes: Sequence[str], layer: str | None, names: Sequence[str | None] | None
) -> Iterator[sp.csr_matrix]:
    """Counts of ``genes``, a chunk of cells at a time."""
    present = read_names(adata.var) if names is None else names
    places = _find_places(present, genes)
    chunks = (chunk for _, chunk in read_counts(adata, layer))
    return spread(lambda chunk: _select(chunk, places, len(genes)), chunks)


def _by_rows(matrix: Any) -> Any:
    """Turn CSC counts to CSR, and others not.

    A row of CSC may lie anywhere in it: all of it is read, from the file too, to take any.
    """
    if getattr(matrix, "format", None) != "csc":
        return matrix
    return (matrix if sp.issparse(matrix) else matrix[:]).tocsr()


def _take_chunk(matrix: Any, rows: slice) -> sp.csr_matrix:
    """Some rows of counts in any form that AnnData has, as CSR."""
    if isinstance(matrix, CSR):
        return take_rows(matrix, rows)
    some = matrix[rows]
    return sp.csr_matrix(some, dtype=None if sp.issparse(some) else np.float64)


def _sum_duplicates(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sort each row and add up what stands at one place, in a copy unless nothing is to be done."""
    if not matrix.has_canonical_format:
        matrix = matrix.astype(np.float64)
        matrix.sum_duplicates()
    return matrix


def _check_counts(chunk: sp.csr_matrix, adata: AnnData, start: int, layer: str | None) -> None:
    data = chunk.data
    in_range = data.min(initial=0) >= 0 and data.max(initial=0) <= LARGEST_COUNT
    if in_range and np.array_equal(data, np.floor(data)):
        return
    for wrong, what in (
        (~np.isfinite(data), "a value that is no finite number"),
        (data < 0, "a negative value"),
        (data != np.floor(data), "a fractional value"),
        (data > LARGEST_COUNT, "a value beyond any count"),
    ):
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            cell = start + int(np.searchsorted(chunk.indptr, k, side="right")) - 1
            gene = int(chunk.indices[k])
            place = "X" if layer is None else f"layer {layer!r}"
            raise CountsError(
                f"{place} holds {what}, {data[k]:g} (cell {adata.obs_names[cell]!r}, gene "
                f"{adata.var_names[gene]!r}); raw counts are whole numbers from 0 to 2^31. "
                f"{advise(adata, layer)}"
            )


def _select(chunk: sp.csr_matrix, places: np.ndarray, n_genes: int) -> sp.csr_matrix:
    """Counts of the wanted genes in their order, given the place of each column.

    Two transpositions sort in a fifth of the time of scipy's sort; the order in which genes come
    must not change the last bits of a sum.
    """
    if np.array_equal(places, np.arange(n_genes)):
        return chunk
    shape = (chunk.shape[0], n_genes + 1)
    moved = put_together(chunk.data, places[chunk.indices], chunk.indptr, shape).tocsc()
    moved.resize(chunk.shape[0], n_genes)
    chosen = moved.tocsr()
    return chosen if chosen.has_canonical_format else compact(chosen)  # genes of one name


def _stack(pieces: list[sp.csr_matrix]) -> sp.csr_matrix:
    """Put CSR matrices below each other, in the widest of their types."""
    dtype = np.result_type(*[piece.dtype for piece in pieces])
    data = np.concatenate([piece.data for piece in pieces], dtype=dtype)
    indices = np.concatenate([piece.indices for piece in pieces])
    lengths = np.concatenate([np.diff(piece.indptr) for piece in pieces])
    starts = np.append(0, np.cumsum(lengths, dtype=np.int64))
    shape = (len(lengths), pieces[0].shape[1])
    return sp.csr_matrix((data, indices, starts), shape=shape)


def _find_places(present: Sequence[str | None], wanted: Sequence[str]) -> np.ndarray:
    """Where each present gene stands among the wanted; those nobody wants stand behind them."""
    place: dict[str | None, int] = {gene: j for j, gene in enumerate(wanted)}
    if len(place) < len(wanted):
        raise GeneError("A gene is asked for twice; each gene of a model is named once.")
    return np.array([place.get(gene, len(place)) for gene in present], dtype=np.int32)
