"""A minibatch of cells as tensors, and the order in which a loop meets them.

The counts of a minibatch are kept sparse in both directions: by cell (CSR) for the
forward pass of the first layer, by gene (CSC) for the gradient of its weights. The
transposition is done with numpy alone, so that it can be done ahead in another thread: a torch
operation in a second thread would start a second pool of threads, and the two would fight.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invatlas.data.counts import CountSource, take_rows
from invatlas.data.covariates import MISSING
from invatlas.data.crossing import Crossing

_AS_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass(frozen=True)
class ByGene:
    """Where the nonzero counts of some cells stand when they are read by gene.

    Attributes
    ----------
    order
        Permutation that puts the nonzeros in the order of genes, shape (nonzero,).
    cells
        Row of every nonzero in that order, shape (nonzero,).
    starts
        Where each gene begins in that order, shape (gene,).
    """

    order: Int[Tensor, " nonzero"]
    cells: Int[Tensor, " nonzero"]
    starts: Int[Tensor, " gene"]


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
    n_genes
        Number of genes.
    """

    values: Float[Tensor, " nonzero"]
    cells: Int[Tensor, " nonzero"]
    genes: Int[Tensor, " nonzero"]
    cell_starts: Int[Tensor, " cell"]
    n_genes: int

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.cell_starts.shape[0]

    @classmethod
    def from_csr(cls, matrix: sp.csr_matrix, dtype: torch.dtype = torch.float32) -> SparseCounts:
        """Lay out a CSR matrix (cell, gene) for the model."""
        n_cells, n_genes = matrix.shape
        cells = np.repeat(np.arange(n_cells, dtype=np.int64), np.diff(matrix.indptr))
        return cls(
            torch.from_numpy(matrix.data.astype(_AS_NUMPY[dtype])),
            torch.from_numpy(cells),
            _integers(matrix.indices),
            _integers(matrix.indptr[:-1]),
            n_genes,
        )

    @cached_property
    def by_gene(self) -> ByGene:
        """The layout by gene, which only a gradient needs; made once."""
        starts = np.append(self.cell_starts.numpy(), len(self.values))
        nonzeros = np.arange(len(self.values), dtype=np.int32)
        shape = (self.n_cells, self.n_genes)
        transposed = sp.csr_matrix((nonzeros, self.genes.numpy(), starts), shape).tocsc()
        return ByGene(
            _integers(transposed.data),
            _integers(transposed.indices),
            _integers(transposed.indptr[:-1]),
        )

    def prepare(self) -> None:
        """Make what a gradient asks for now, in this thread, rather than when it does."""
        _ = self.by_gene, self.place

    @cached_property
    def place(self) -> Int[Tensor, " nonzero"]:
        """Where every nonzero stands in a dense matrix that is read row by row; made once."""
        return torch.from_numpy(self.cells.numpy() * self.n_genes + self.genes.numpy())

    @cached_property
    def log_factorials(self) -> Float[Tensor, " cell"]:
        """Sum of log(x!) of each cell: what no parameter of a likelihood enters; made once."""
        return self.sum_by_cell(torch.lgamma(self.values + 1))

    def first(self, n_cells: int) -> SparseCounts:
        """The first cells alone."""
        if n_cells >= self.n_cells:
            return self
        some = self.nonzeros_of(slice(0, n_cells))
        cells, genes = self.cells[some], self.genes[some]
        return SparseCounts(
            self.values[some], cells, genes, self.cell_starts[:n_cells], self.n_genes
        )

    def nonzeros_of(self, cells: slice) -> slice:
        """Where the nonzeros of some neighbouring cells stand."""
        start, end = (
            len(self.values) if cell >= self.n_cells else int(self.cell_starts[cell])
            for cell in (cells.start, cells.stop)
        )
        return slice(start, end)

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
    expected
        log p(d | e) - log p(d) of its laboratory e; 0 where a loop does not train.
    compared
        The technical codes again; -1 too where a cell is not compared between the values.
    """

    rows: np.ndarray
    counts: SparseCounts
    library_size: Float[Tensor, " cell"]
    biological: Int[Tensor, "cell biological"]
    technical: Int[Tensor, "cell technical"]
    expected: Float[Tensor, "#cell #combination"]
    compared: Int[Tensor, "cell technical"]


def _integers(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32))


def gather_counts(
    source: CountSource, rows: np.ndarray | slice
) -> tuple[SparseCounts, Float[Tensor, " cell"]]:
    """Counts and library sizes of some cells, as tensors; of neighbours without a copy."""
    taken = take_rows(source.matrix, rows) if isinstance(rows, slice) else source.matrix[rows]
    return SparseCounts.from_csr(taken), torch.from_numpy(source.library_size[rows])


@dataclass(frozen=True)
class Rounding:
    """Deals a continuous value to one of the two knots it lies between, the nearer more often.

    On average over many draws the cell belongs to both, in linear interpolation (data/knots.py).

    Attributes
    ----------
    biological, technical
        Distances of the values from their codes, -1/2 to 1/2, each (cell, covariate).
    generator
        Of the draws.
    """

    biological: np.ndarray
    technical: np.ndarray
    generator: np.random.Generator

    def draw(self, offsets: np.ndarray) -> np.ndarray:
        """What to add to the codes: -1, 0 or 1."""
        moved = self.generator.random(offsets.shape) < np.abs(offsets)
        return np.where(moved, np.sign(offsets), 0).astype(np.int64)


@dataclass(frozen=True)
class Cells:
    """Counts and covariate codes of the cells a loop goes through.

    Attributes
    ----------
    source
        Raw counts.
    biological, technical
        Codes, each (cell, covariate); -1 where missing.
    rounding
        How continuous values are dealt to the two knots beside them; by default each has the
        code of the nearest.
    crossing
        How biology and laboratories cross, for a loop that trains.
    """

    source: CountSource
    biological: np.ndarray
    technical: np.ndarray
    rounding: Rounding | None = None
    crossing: Crossing | None = None

    def read(self, rows: np.ndarray) -> Minibatch:
        """Bring some cells together as tensors, ready for a gradient."""
        counts, library_size = gather_counts(self.source, rows)
        counts.prepare()
        biological, technical = self.biological[rows], self.technical[rows]
        if self.rounding:
            biological = biological + self.rounding.draw(self.rounding.biological[rows])
            technical = technical + self.rounding.draw(self.rounding.technical[rows])
        expected, compared = np.zeros((1, 1), np.float32), technical
        if self.crossing:
            expected = self.crossing.expect(technical)
            compared = np.where(self.crossing.leave_out(biological), MISSING, technical)
        parts = biological, technical, expected, compared
        return Minibatch(rows, counts, library_size, *map(torch.from_numpy, parts))


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
