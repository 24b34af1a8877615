"""A minibatch of cells as tensors, and the order in which a loop meets them.

The counts of a minibatch are kept sparse in both directions: by cell (CSR) for the
forward pass of the first layer, by gene (CSC) for the gradient of its weights. The
transposition is done here, away from the training thread, and with numpy alone: a torch
operation in a second thread would start a second pool of threads, and the two would fight.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invatlas.data.counts import CountSource, sum_log_factorials

_AS_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass(frozen=True)
class SparseCounts:
    """Nonzero counts of some cells, readable by cell and by gene.

    Attributes
    ----------
    values
        Counts, in the order of cells, shape (nonzero,).
    cells, genes
        Row and column of every nonzero, shape (nonzero,).
    cell_starts
        Where each cell begins in ``values``, shape (cell,).
    by_gene, cells_by_gene
        Permutation that puts the nonzeros in the order of genes, and ``cells`` in that order,
        each (nonzero,).
    gene_starts
        Where each gene begins in ``values[by_gene]``, shape (gene,).
    log_factorials
        Sum of log(x!) over the genes of each cell, shape (cell,): the part of every likelihood
        of counts that no parameter enters.
    """

    values: Float[Tensor, " nonzero"]
    cells: Int[Tensor, " nonzero"]
    genes: Int[Tensor, " nonzero"]
    cell_starts: Int[Tensor, " cell"]
    by_gene: Int[Tensor, " nonzero"]
    cells_by_gene: Int[Tensor, " nonzero"]
    gene_starts: Int[Tensor, " gene"]
    log_factorials: Float[Tensor, " cell"]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.cell_starts.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.gene_starts.shape[0]

    @classmethod
    def from_csr(
        cls,
        matrix: sp.csr_matrix,
        dtype: torch.dtype = torch.float32,
        log_factorials: np.ndarray | None = None,
    ) -> SparseCounts:
        """Lay out a CSR matrix (cell, gene) for the model.

        ``log_factorials`` spares their computation where they are known already.
        """
        n_cells = matrix.shape[0]
        if log_factorials is None:
            log_factorials = sum_log_factorials(matrix)
        nonzeros = np.arange(matrix.nnz, dtype=np.int64)
        transposed = sp.csr_matrix((nonzeros, matrix.indices, matrix.indptr), matrix.shape).tocsc()
        cells = np.repeat(np.arange(n_cells, dtype=np.int64), np.diff(matrix.indptr))

        def integers(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))

        return cls(
            values=torch.from_numpy(matrix.data.astype(_AS_NUMPY[dtype])),
            cells=integers(cells),
            genes=integers(matrix.indices),
            cell_starts=integers(matrix.indptr[:-1]),
            by_gene=integers(transposed.data),
            cells_by_gene=integers(transposed.indices),
            gene_starts=integers(transposed.indptr[:-1]),
            log_factorials=torch.from_numpy(log_factorials.astype(_AS_NUMPY[dtype])),
        )

    def first(self, n_cells: int) -> SparseCounts:
        """The first cells alone."""
        if n_cells >= self.n_cells:
            return self
        n_nonzeros = int(self.cell_starts[n_cells])
        kept = self.by_gene < n_nonzeros
        kept_before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return SparseCounts(
            self.values[:n_nonzeros],
            self.cells[:n_nonzeros],
            self.genes[:n_nonzeros],
            self.cell_starts[:n_cells],
            self.by_gene[kept],
            self.cells_by_gene[kept],
            kept_before[self.gene_starts],
            self.log_factorials[:n_cells],
        )

    def sum_by_cell(self, values: Float[Tensor, " nonzero"]) -> Float[Tensor, " cell"]:
        """Sum of what stands at the nonzeros of each cell."""
        ends = torch.cat([self.cell_starts[1:], self.cell_starts.new_tensor([len(values)])])
        lengths = ends - self.cell_starts
        total: Tensor = torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
        return total

    def to_dense(self) -> Float[Tensor, "cell gene"]:
        """Counts as a dense matrix."""
        dense = self.values.new_zeros(self.n_cells, self.n_genes)
        dense[self.cells, self.genes] = self.values
        return dense


@dataclass(frozen=True)
class Minibatch:
    """Cells that are looked at together.

    Attributes
    ----------
    rows
        Positions of the cells in their source, shape (cell,).
    counts
        Raw counts of the model's genes.
    library_size
        Counts of each cell over all genes of the model, shape (cell,).
    biological, technical
        Codes of the covariates, shape (cell, covariate); -1 where the value is missing.
    """

    rows: np.ndarray
    counts: SparseCounts
    library_size: Float[Tensor, " cell"]
    biological: Int[Tensor, "cell biological"]
    technical: Int[Tensor, "cell technical"]


def gather_counts(
    source: CountSource, rows: np.ndarray
) -> tuple[SparseCounts, Float[Tensor, " cell"]]:
    """Counts and library sizes of some cells, as tensors."""
    counts = SparseCounts.from_csr(source.matrix[rows], log_factorials=source.log_factorials[rows])
    return counts, torch.from_numpy(source.library_size[rows])


@dataclass(frozen=True)
class Cells:
    """Counts and covariate codes of the cells a loop goes through.

    Attributes
    ----------
    source
        Raw counts.
    biological, technical
        Codes, each (cell, covariate); -1 where missing.
    """

    source: CountSource
    biological: np.ndarray
    technical: np.ndarray

    def read(self, rows: np.ndarray) -> Minibatch:
        """Bring some cells together as tensors."""
        return Minibatch(
            rows,
            *gather_counts(self.source, rows),
            torch.from_numpy(self.biological[rows]),
            torch.from_numpy(self.technical[rows]),
        )


def count_minibatches(n_cells: int, size: int) -> int:
    """How many minibatches ``n_cells`` make.

    None has a single cell, which batch normalisation could not use: three cells by two make
    one minibatch.
    """
    return max(1, min(-(-n_cells // size), n_cells // 2))


def shuffled(rows: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Split rows at random into minibatches of near-equal size."""
    return np.array_split(generator.permutation(rows), count_minibatches(len(rows), size))


def prefetched(
    minibatch_rows: list[np.ndarray], read: Callable[[np.ndarray], Minibatch]
) -> Iterator[Minibatch]:
    """Yield ``read(rows)`` for each entry, preparing the next while one is in use."""
    ready: queue.Queue[Minibatch | BaseException | None] = queue.Queue(maxsize=2)
    abandoned = threading.Event()

    def offer(item: Minibatch | BaseException | None) -> None:
        while not abandoned.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def prepare() -> None:
        try:
            for rows in minibatch_rows:
                if abandoned.is_set():
                    return
                offer(read(rows))
            offer(None)
        except BaseException as error:  # handed over to the thread that waits
            offer(error)

    thread = threading.Thread(target=prepare, name="invatlas-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()
        thread.join()
