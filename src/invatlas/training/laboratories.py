"""How laboratories differ gene by gene, so that training can show a cell as another would have.

    E x_ng = l_n p_dg r_eg                              d the biology of cell n, e its laboratory
    p_dg <- sum_{n in d} x_ng / sum_{n in d} l_n r_eg
    r_eg <- (K + sum_{n in e} x_ng) / (K + sum_{n in e} l_n p_dg)

a log-linear model of counts with two factors, fitted by turns from r = 1 (iterative proportional
fitting, Deming and Stephan 1940, Annals of Mathematical Statistics 11); K counts draw r to 1 where
little was counted. Biology that one laboratory alone has seen leaves r where it began, since nobody
can tell the two apart there.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.data.counts import sum_counts
from invatlas.data.minibatch import Cells

K = 5.0
ROUNDS = 10
FEWEST_CELLS = 20


def compare_laboratories(cells: Cells, rows: np.ndarray) -> Float[Tensor, "laboratory gene"]:
    """Log r of every combination of technical values with enough cells whose values are all known.

    Fewer than two such laboratories have nothing to compare: the table is empty.
    """
    rows, d, e = number_known(cells, rows)
    if not len(rows):
        return torch.zeros(0, cells.source.matrix.shape[1])
    n_d, n_e = d.max() + 1, e.max() + 1
    exposure = np.zeros((n_e, n_d))
    np.add.at(exposure, (e[rows], d[rows]), cells.source.library_size[rows])
    counts_d, counts_e = sum_counts(cells.source, d, n_d), sum_counts(cells.source, e, n_e)
    r = np.ones_like(counts_e)
    for _ in range(ROUNDS):
        p = counts_d / (exposure.T @ r)
        r = (K + counts_e) / (K + exposure @ p)
    table = torch.from_numpy(np.log(r[np.bincount(e[rows]) >= FEWEST_CELLS])).float()
    return table if len(table) > 1 else table[:0]


def number_known(cells: Cells, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of some cells whose values are all known, and their biology and laboratory by number.

    Numbers have the shape (cell,); cells that are none of those have -1.
    """
    known = (cells.biological[rows] >= 0).all(1) & (cells.technical[rows] >= 0).all(1)
    rows = rows[known]
    return rows, _number(cells.biological, rows), _number(cells.technical, rows)


def _number(codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Number the combinations of values that occur among some cells; all other cells have -1."""
    number = np.full(len(codes), -1)
    number[rows] = np.unique(codes[rows], axis=0, return_inverse=True)[1].ravel()
    return number
