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

from invatlas.model.calls import call_log_probabilities
from invatlas.model.priors import ConditionalGaussians, DiagonalGaussian
from invatlas.training.posterior import CHUNK

LANDMARKS = 2000
NEAREST_LANDMARKS = 50
FLATTENING = 4.0
POOLED_CELLS = 8
SAMPLE = 1000


def novelty_parts(
    q: DiagonalGaussian, prior: ConditionalGaussians, landmarks: Float[Tensor, "landmark latent"]
) -> Float[Tensor, "cell 2"]:
    """D and H of each cell.

    D takes the 50 nearest of 2,000 landmarks; one in forty where there are fewer.
    """
    n = max(1, min(NEAREST_LANDMARKS, len(landmarks) * NEAREST_LANDMARKS // LANDMARKS))
    parts = []
    for some in q.split(CHUNK):
        nearest = np.partition(torch.cdist(some.mean, landmarks).numpy(), n - 1, axis=1)[:, :n]
        distance = torch.from_numpy(nearest.mean(1))  # torch's topk takes ten times as long
        log_p = call_log_probabilities(some, prior, FLATTENING)
        parts.append(torch.stack([distance, -(log_p.exp() * log_p).sum(1)], 1))
    return torch.cat(parts)


def standardised_sum(
    parts: Float[Tensor, "cell 2"], standard: Float[Tensor, "2 2"]
) -> Float[Tensor, " cell"]:
    """Score n from its parts, and from their means (first row) and spreads (second)."""
    return ((parts - standard[0]) / standard[1]).sum(1)


def pooled(
    scores: Float[Tensor, " cell"], z: Float[Tensor, "cell latent"]
) -> Float[Tensor, " cell"]:
    """Score n* of cells that were met together: the mean over each and its seven nearest.

    Every k-th cell in the order of the first latent makes a sample, k being how many samples of
    at most 1,000 there are: the order in which the cells come does not matter.
    """
    result = torch.empty_like(scores)
    order = z[:, 0].argsort() if len(z) else torch.zeros(0, dtype=torch.int64)
    samples = -(-len(z) // SAMPLE)
    for k in range(samples):
        some = order[k::samples]
        n = min(POOLED_CELLS, len(z[some]))
        nearest = torch.cdist(z[some], z[some]).topk(n, dim=1, largest=False).indices
        result[some] = scores[some][nearest].mean(1)
    return result
