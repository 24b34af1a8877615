"""Directions in which laboratories move the counts of all kinds of cells alike.

    u_n = c_d + s_h + rest                u = log1p(m x / l), as encoders are shown it
    A, B = sqrt(n_e) s_h                  (laboratory, gene), h the first and second half of e
    (A^T B + B^T A) / 2 = V diag(w) V^T
    W  <-  W - V_k V_k^T W                W: the first layer of z_I's encoder

c_d is what cells of biology d have in common, s_h what half of the n_e cells of laboratory e have
on top of it, fitted by turns from s = 0, so that biology which one laboratory alone has seen stays
biology. Chance does not repeat itself in the other half of the cells: without laboratories w would
lie about 0 to either side, so directions count where w is twice as far above 0 as any is below.

An encoder whose first layer is orthogonal to V_k cannot tell along it one laboratory from another:
nuisance attribute projection (Solomonoff, Campbell and Boardman 2005, IEEE ICASSP). A penalty on
what is told of the fitted donors makes chance differences between them disappear by means of the
very directions that will tell of a new donor's laboratory; here they are out of reach.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.data.counts import sum_counts
from invatlas.data.minibatch import Cells
from invatlas.training.laboratories import number_known

ROUNDS = 20
BEYOND_CHANCE = 2.0
ROUNDING = 1e-9  # of all the squares there are


def find_nuisance(
    cells: Cells, rows: np.ndarray, median_library_size: float, most: int
) -> Float[Tensor, "gene direction"]:
    """Orthonormal V_k, the largest w first, told by cells whose values are all known."""
    rows, d, e = number_known(cells, rows)
    if not most or not len(rows) or not e.max():
        return torch.zeros(cells.source.matrix.shape[1], 0)
    h = np.full(len(e), -1)
    h[rows] = 2 * e[rows] + np.random.default_rng(0).permutation(len(rows)) % 2
    n = np.zeros((2 * e.max() + 2, d.max() + 1))
    np.add.at(n, (h[rows], d[rows]), 1)
    n_h, n_d = n.sum(1)[:, None], n.sum(0)[:, None]
    scale = median_library_size / cells.source.library_size
    u_h, u_d = (sum_counts(cells.source, k, len(n_k), scale) for k, n_k in ((h, n_h), (d, n_d)))
    s = np.zeros_like(u_h)
    for _ in range(ROUNDS):
        c = (u_d - n.T @ s) / n_d
        s = (u_h - n @ c) / np.maximum(n_h, 1)
    s -= (n_h * s).sum(0) / n_h.sum()
    w, v = _agree(*(np.sqrt(n_h[::2] + n_h[1::2]) * half for half in (s[::2], s[1::2])))
    chance = max(BEYOND_CHANCE * -w.min(), ROUNDING * (u_d**2 / n_d).sum())
    return torch.from_numpy(v[:, w > chance][:, :most].copy()).float()


def _agree(
    a: Float[np.ndarray, "laboratory gene"], b: Float[np.ndarray, "laboratory gene"]
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues w and eigenvectors V (gene, w) on the span of the rows, the largest first."""
    span = np.linalg.svd(np.concatenate([a, b]), full_matrices=False)[2].T
    both = (a @ span).T @ (b @ span)
    w, v = np.linalg.eigh((both + both.T) / 2)
    return w[::-1], span @ v[:, ::-1]
