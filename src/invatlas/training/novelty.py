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

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.processor import quick_products, spread

LANDMARKS = 1000
NEAREST_LANDMARKS = 25
FLATTENING = 4.0
POOLED_CELLS = 8
SAMPLE = 1000
CHUNK = 256  # cells whose distances stay near the processor
GROUPS_EACH = 4  # groups for each of the smallest that are sought
VECTOR = 32  # entries that are compared at once


def flat_entropy(log_p: Float[Tensor, "cell combination"]) -> Float[Tensor, " cell"]:
    """H of each cell, in nats, given its log-posterior."""
    flat = torch.log_softmax(log_p / FLATTENING, 1)
    return -(flat.exp() * flat).sum(1)


def landmark_distance(
    z: Float[Tensor, "cell latent"], landmarks: Float[Tensor, "landmark latent"]
) -> Float[Tensor, " cell"]:
    """D of each cell: over the 25 nearest of 1,000 landmarks, one in forty of fewer."""
    n = max(1, min(NEAREST_LANDMARKS, len(landmarks) * NEAREST_LANDMARKS // LANDMARKS))

    def measure(some: Tensor) -> Tensor:
        near = find_nearest(_relative_squares(some, landmarks), n)
        nearest = torch.from_numpy(near.smallest) + some.square().sum(1, keepdim=True)
        return nearest.clamp_min(0).sqrt().mean(1)

    with quick_products():
        return torch.cat(list(spread(measure, z.split(CHUNK))))


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
    order = z[:, 0].argsort() if len(z) else torch.zeros(0, dtype=torch.int64)
    samples = -(-len(z) // SAMPLE)

    def pool(some: Tensor) -> Tensor:
        near = find_nearest(_relative_squares(z[some], z[some]), min(POOLED_CELLS, len(some)))
        sums = np.bincount(near.rows, scores[some].numpy()[near.columns])
        return torch.from_numpy(sums / np.bincount(near.rows)).to(scores.dtype)

    result, members = torch.empty_like(scores), [order[k::samples] for k in range(samples)]
    with quick_products():
        for some, mean in zip(members, spread(pool, members), strict=True):
            result[some] = mean
    return result


@dataclass(frozen=True)
class Nearest:
    """The smallest entries of each row.

    Attributes
    ----------
    rows, columns
        Places of all entries up to the k-th smallest of their row, ties of it too, row by row.
    smallest
        The k smallest of each row in any order, shape (row, k).
    """

    rows: np.ndarray
    columns: np.ndarray
    smallest: np.ndarray


def find_nearest(squares: Float[Tensor, "cell other"], k: int) -> Nearest:
    """Find the k smallest of each row, at a third of what a partition of whole rows takes.

    The k-th smallest of the minima of groups is no less than the k-th smallest of all, and hardly
    more entries are below it where groups are many.
    """
    n_rows, n_columns = squares.shape
    groups = min(n_columns, -(-GROUPS_EACH * k // VECTOR) * VECTOR)
    width = n_columns // groups
    minima = squares[:, : groups * width].unflatten(1, (width, groups)).amin(1).numpy()
    bound = np.partition(minima, k - 1, axis=1)[:, k - 1 : k]
    entries = squares.numpy()
    places = np.flatnonzero(entries <= bound)
    values, (rows, columns) = entries.reshape(-1)[places], np.divmod(places, n_columns)
    found = np.bincount(rows, minlength=n_rows)
    rank = np.arange(len(rows)) - np.repeat(found.cumsum() - found, found)
    few = np.full((n_rows, found.max(initial=k)), np.inf, entries.dtype)
    few[rows, rank] = values
    few.partition(k - 1, axis=1)
    kept = values <= few[rows, k - 1]
    return Nearest(rows[kept], columns[kept], few[:, :k])


def _relative_squares(z: Tensor, others: Tensor) -> Tensor:
    """|z - y|^2 - |z|^2 = |y|^2 - 2 z y, shape (cell, other): who is nearest is the same."""
    return torch.addmm(others.square().sum(1), z, others.T, alpha=-2)
