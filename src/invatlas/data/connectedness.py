"""How a table of cells falls apart into values that cannot be compared.

Two columns make a table of cells, N (value i of the one, value j of the other). Values are linked
where they share cells; values in different components of these links cannot be compared within
any value of the other column (connectedness: Weeks & Williams 1964, Technometrics 6, 319; Searle
1971, Linear Models, chapter 7). For a set S of rows, the share of its membership that the columns
explain is

    R2 = (sum_j N_Sj^2 / N_j - N_S^2 / N) / (N_S - N_S^2 / N)
    explained = 1 - (1 - R2) (N - 1) / (N - k)        adjusted for k columns (Ezekiel 1930)

and 1 / (1 - R2) is the variance inflation of its effect (Marquardt 1970, Technometrics 12, 591).
Components have R2 = 1. Inside one, links with less than a fifth of the cells that crossing would
give (N_i N_j / N) are cut; what then falls apart stands apart nearly if less than a fifth is left
unexplained: an inflation of five or more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

LIGHT = 0.2  # of the cells, or of the information, that crossing would give
NEARLY_ALL = 0.95  # of the cells of a row
FEWEST_CELLS = 5  # that can be said to be in one place


def find_groups(table: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows that stand apart from all others, with the columns that hold them."""
    parts = _find_components(table > 0)
    for rows, columns in parts:
        if len(parts) > 1:
            yield rows, columns
        inner = table[np.ix_(rows, columns)]
        pieces = _find_components(_find_solid(inner))
        for piece, places in pieces if len(pieces) > 1 else ():
            if measure_explained(inner, piece) >= 1 - LIGHT:
                yield rows[piece], columns[places]


def find_lonely(table: np.ndarray) -> list[tuple[int, int]]:
    """Rows with nearly all cells in one column though others had room for them, and the column."""
    if (table.sum(axis=0) > 0).sum() < 2:
        return []
    one = (_find_solid(table).sum(axis=1) == 1) & (table.sum(axis=1) >= FEWEST_CELLS)
    one &= table.max(axis=1) >= NEARLY_ALL * table.sum(axis=1)
    return [(int(i), int(table[i].argmax())) for i in np.flatnonzero(one)]


def is_apart(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> bool:
    """Say whether some rows and columns share no cell with any other."""
    shared = table[np.ix_(rows, columns)].sum()
    return bool(shared == table[rows].sum() == table[:, columns].sum())


def measure_explained(table: np.ndarray, rows: np.ndarray) -> float:
    """Adjusted share of the membership in some rows that the columns explain (module docstring)."""
    held, totals = table[rows].sum(axis=0), table.sum(axis=0)
    present = totals > 0
    held, totals = held[present].astype(float), totals[present].astype(float)
    n, k, mean = totals.sum(), len(totals), held.sum() ** 2 / totals.sum()
    if held.sum() in (0, n):
        return 0.0
    left = 1 - ((held**2 / totals).sum() - mean) / (held.sum() - mean)
    return float(min(1.0, max(0.0, 1 - max(left, 0.0) * (n - 1) / max(n - k, 1))))


def _find_components(linked: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Components of a bipartite graph (row, column) that have both rows and columns."""
    height, width = linked.shape
    rows, columns = np.nonzero(linked)
    links = coo_matrix(
        (np.ones(len(rows), dtype=bool), (rows, columns + height)), shape=(height + width,) * 2
    )
    n, label = connected_components(links, directed=False)
    found = [np.flatnonzero(label == k) for k in range(n) if (label == k).sum() > 1]
    return [(nodes[nodes < height], nodes[nodes >= height] - height) for nodes in found]


def _find_solid(table: np.ndarray) -> np.ndarray:
    """Links with a fair part of the cells that crossing would give them, bool (row, column)."""
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
    solid: np.ndarray = (table > 0) & (table >= LIGHT * expected)
    return solid
