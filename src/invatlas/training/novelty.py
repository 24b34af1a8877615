"""How new a cell is to a fitted model.

    n(x)    D(x) + H(x), each less its mean and over its spread among held-out cells
    D(x)    mean distance of z_I(x) to the nearest of some reference cells (Sun et al. 2022, ICML)
    H(x)    entropy of p_4(d | x): calls flattened by a temperature of 4, so that it tells cells
            apart where every call is sure

    n*(x)   mean of n over x and the cells nearest to it among those met with it

One odd cell may be an accident; odd cells that lie together are a state nobody has met. Cells
are therefore judged together where there are enough of them, in samples of at most 1,000.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.processor import quick_products

LANDMARKS = 1000
NEAREST_LANDMARKS = 25
FLATTENING = 4.0
POOLED_CELLS = 8
SAMPLE = 1000
CHUNK = 256  # cells whose distances stay near the processor


def flat_entropy(log_p: Float[Tensor, "cell combination"]) -> Float[Tensor, " cell"]:
    """H of each cell, in nats, given its log-posterior."""
    flat = torch.log_softmax(log_p / FLATTENING, 1)
    return -(flat.exp() * flat).sum(1)


def landmark_distance(
    z: Float[Tensor, "cell latent"], landmarks: Float[Tensor, "landmark latent"]
) -> Float[Tensor, " cell"]:
    """D of each cell: over the 25 nearest of 1,000 landmarks, one in forty of fewer."""
    n = max(1, min(NEAREST_LANDMARKS, len(landmarks) * NEAREST_LANDMARKS // LANDMARKS))
    pieces = []
    with quick_products():
        for some in z.split(CHUNK):
            squares = _relative_squares(some, landmarks)
            squares.numpy().partition(n - 1, axis=1)  # torch's topk takes ten times as long
            nearest = squares[:, :n] + some.square().sum(1, keepdim=True)
            pieces.append(nearest.clamp_min(0).sqrt().mean(1))
    return torch.cat(pieces)


def standardised_sum(
    parts: Float[Tensor, "cell 2"], standard: Float[Tensor, "2 2"]
) -> Float[Tensor, " cell"]:
    """Score n from its parts, and from their means (first row) and spreads (second)."""
    return ((parts - standard[0]) / standard[1]).sum(1)


def pooled(
    scores: Float[Tensor, " cell"], z: Float[Tensor, "cell latent"]
) -> Float[Tensor, " cell"]:
    """Score n* of cells that were met together: the mean over each and its seven nearest.

    Cells as near as the seventh all count. Every k-th cell in the order of the first latent makes
    a sample, k being how many samples of at most 1,000 there are: the order in which the cells
    come does not matter.
    """
    result = torch.empty_like(scores)
    order = z[:, 0].argsort() if len(z) else torch.zeros(0, dtype=torch.int64)
    samples = -(-len(z) // SAMPLE)
    with quick_products():
        for k in range(samples):
            some = order[k::samples]
            squares = _relative_squares(z[some], z[some]).numpy()
            n = min(POOLED_CELLS, len(some))
            eighth = np.partition(squares, n - 1, axis=1)[:, n - 1 : n]
            cells, near = np.divmod(np.flatnonzero(squares <= eighth), len(some))
            sums = np.bincount(cells, scores[some].numpy()[near]) / np.bincount(cells)
            result[some] = torch.from_numpy(sums).to(result.dtype)
    return result


def _relative_squares(z: Tensor, others: Tensor) -> Tensor:
    """|z - y|^2 - |z|^2 = |y|^2 - 2 z y, shape (cell, other): who is nearest is the same."""
    return torch.addmm(others.square().sum(1), z, others.T, alpha=-2)
