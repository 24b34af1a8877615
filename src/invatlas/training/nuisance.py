"""Directions in which laboratories move the counts of all kinds of cells alike.

    u_n = c_d + s_e + rest                u = log1p(m x / l), as encoders are shown it
    [sqrt(n_e) s_e]_e = U diag(sigma) B^T
    W  <-  W - B B^T W                    W: the first layer of z_I's encoder

c_d is what cells of biology d have in common, s_e what the n_e cells of laboratory e do on top of
it, fitted by turns from s = 0, so that biology which one laboratory alone has seen stays biology.
An encoder whose first layer is orthogonal to B cannot tell along it one laboratory from another:
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
LEAST = 1e-6  # sigma of what is no rounding, against the length of all that laboratories have


def find_nuisance(
    cells: Cells, rows: np.ndarray, median_library_size: float, most: int
) -> Float[Tensor, "gene direction"]:
    """Orthonormal B: the directions of largest sigma, told by cells whose values are all known."""
    rows, d, e = number_known(cells, rows)
    if not most or not len(rows) or not e.max():
        return torch.zeros(cells.source.matrix.shape[1], 0)
    n = np.zeros((e.max() + 1, d.max() + 1))
    np.add.at(n, (e[rows], d[rows]), 1)
    n_e, n_d = n.sum(1)[:, None], n.sum(0)[:, None]
    scale = median_library_size / cells.source.library_size
    u_d, u_e = (sum_counts(cells.source, k, k.max() + 1, scale) for k in (d, e))
    s = np.zeros_like(u_e)
    for _ in range(ROUNDS):
        c = (u_d - n.T @ s) / n_d
        s = (u_e - n @ c) / n_e
    s -= (n_e * s).sum(0) / n_e.sum()
    _, sigma, directions = np.linalg.svd(np.sqrt(n_e) * s, full_matrices=False)
    found = sigma > LEAST * np.linalg.norm(u_e / np.sqrt(n_e))
    return torch.from_numpy(directions[found][:most].T.copy()).float()
