"""Minibatches: both sparse layouts, the order of cells, and the reading ahead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from invatlas.data.counts import CountSource
from invatlas.data.minibatch import Cells, Minibatch, SparseCounts, prefetched, shuffled

matrices = arrays(
    np.int64,
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    elements=st.one_of(st.just(0), st.integers(0, 1000)),
)


@given(matrices)
def test_a_matrix_comes_back_whole_by_cell_and_by_gene(x: np.ndarray) -> None:
    counts = SparseCounts.from_csr(sp.csr_matrix(x))
    assert (counts.n_cells, counts.n_genes) == x.shape
    assert np.array_equal(counts.to_dense().numpy(), x)
    by_gene = np.zeros_like(x)
    ends = torch.cat([counts.by_gene.starts[1:], torch.tensor([len(counts.values)])])
    for gene, (start, end) in enumerate(zip(counts.by_gene.starts, ends, strict=True)):
        places = counts.by_gene.order[start:end]
        assert (counts.genes[places] == gene).all()
        assert torch.equal(counts.by_gene.cells[start:end], counts.cells[places])
        by_gene[counts.cells[places], gene] = counts.values[places]
    assert np.array_equal(by_gene, x)
    ends = torch.cat([counts.cell_starts[1:], torch.tensor([len(counts.values)])])
    assert (ends - counts.cell_starts).tolist() == (x > 0).sum(1).tolist()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.float32])
def test_storage_becomes_the_wanted_float(kind: type) -> None:
    matrix = sp.csr_matrix(np.array([[0, 250], [3, 0]], dtype=kind))
    assert SparseCounts.from_csr(matrix).values.dtype == torch.float32
    assert SparseCounts.from_csr(matrix, torch.float64).to_dense().tolist() == [[0, 250], [3, 0]]


def test_a_minibatch_holds_the_cells_asked_for_in_their_order() -> None:
    x = np.arange(12).reshape(4, 3)
    source = CountSource.from_matrix(sp.csr_matrix(x))
    cells = Cells(source, np.arange(8).reshape(4, 2), np.arange(4)[:, None])
    minibatch = cells.read(np.array([3, 0]))
    assert minibatch.counts.to_dense().tolist() == x[[3, 0]].tolist()
    assert minibatch.library_size.tolist() == [30.0, 3.0]
    assert minibatch.biological.tolist() == [[6, 7], [0, 1]]
    assert minibatch.technical.tolist() == [[3], [0]]
    assert minibatch.rows.tolist() == [3, 0]


@given(st.integers(1, 300), st.integers(2, 64))
def test_every_cell_is_met_once_in_minibatches_none_of_which_has_one_cell(
    n: int, size: int
) -> None:
    rows = np.arange(1000, 1000 + n)
    pieces = shuffled(rows, size, np.random.default_rng(0))
    assert sorted(np.concatenate(pieces)) == rows.tolist()
    lengths = [len(piece) for piece in pieces]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= min(2, n)
    assert max(lengths) <= max(size, 3)


def test_cells_come_in_another_order_each_time_and_in_the_same_for_one_seed() -> None:
    rows = np.arange(100)
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    first, second = shuffled(rows, 10, one), shuffled(rows, 10, one)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, shuffled(rows, 10, two))


def twenty_cells() -> tuple[Cells, list[np.ndarray]]:
    x = sp.csr_matrix(np.arange(1, 41).reshape(20, 2))
    source = CountSource.from_matrix(x)
    codes = np.zeros((20, 1), dtype=np.int64)
    return Cells(source, codes, codes), [np.array([i]) for i in range(20)]


def test_reading_ahead_keeps_order_and_stays_near() -> None:
    cells, rows = twenty_cells()
    read: list[int] = []

    def note(wanted: np.ndarray) -> Minibatch:
        read.append(int(wanted[0]))
        return cells.read(wanted)

    seen = []
    for minibatch in prefetched(rows, note):
        seen.append(int(minibatch.rows[0]))
        time.sleep(0.002)
        assert len(read) <= len(seen) + 4, "a few minibatches in memory, never all"
    assert seen == read == list(range(20))


def test_an_error_while_reading_reaches_the_loop() -> None:
    cells, rows = twenty_cells()

    def fail(wanted: np.ndarray) -> Minibatch:
        if wanted[0] == 2:
            raise OSError("the disk went away")
        return cells.read(wanted)

    with pytest.raises(OSError, match="the disk went away"):
        for _ in prefetched(rows, fail):
            pass


def test_a_loop_that_is_left_leaves_no_thread() -> None:
    cells, rows = twenty_cells()
    before = threading.active_count()
    reading = prefetched(rows, cells.read)
    next(reading)
    assert threading.active_count() == before + 1
    reading.close()
    assert threading.active_count() == before
    reading = prefetched(rows, cells.read)
    next(reading)
    with pytest.raises(KeyboardInterrupt):
        reading.throw(KeyboardInterrupt)
    assert threading.active_count() == before
