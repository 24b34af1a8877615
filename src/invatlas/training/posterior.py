"""Posteriors of many cells, a chunk at a time: what an encoder says once training is over."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invatlas.data.counts import CountSource
from invatlas.data.minibatch import gather_counts
from invatlas.model.calls import call_log_probabilities, collapse
from invatlas.model.invae import Model
from invatlas.model.priors import DiagonalGaussian, Prior

CHUNK = 2048


@torch.inference_mode()
def encode_cells(
    model: Model, source: CountSource, rows: np.ndarray | None = None
) -> dict[str, DiagonalGaussian]:
    """Posterior of each set of latents, of some cells (by default all), in their order."""
    rows = np.arange(source.n_cells) if rows is None else rows
    pieces: dict[str, list[DiagonalGaussian]] = {which: [] for which in model.encode.heads}
    for start in range(0, max(1, len(rows)), CHUNK):
        some = rows[start : start + CHUNK]
        for which, posterior in model.encode(*gather_counts(source, some)).items():
            pieces[which].append(posterior)
    return {
        which: DiagonalGaussian(
            torch.cat([piece.mean for piece in found]),
            torch.cat([piece.log_variance for piece in found]),
        )
        for which, found in pieces.items()
    }


@torch.inference_mode()
def call_cells(q: DiagonalGaussian, prior: Prior) -> Float[Tensor, "cell joint"]:
    """Log-posterior over combinations of categories (``prior.joint``), a chunk at a time."""
    only_categories = len(prior.categorical) == prior.combinations.shape[1]
    return _call(q, prior, None if only_categories else prior.joint()[1])


@torch.inference_mode()
def call_values(
    q: DiagonalGaussian, prior: Prior, column: int, size: int, allowed: Bool[Tensor, " joint"]
) -> Float[Tensor, "cell value"]:
    """Log-posterior over the values of one covariate within some combinations of categories.

    A chunk at a time; ``size`` is the number of values.
    """
    forbidden = ~allowed[prior.joint()[1]]
    return _call(q, prior, prior.combinations[:, column], size, forbidden).log_softmax(1)


def _call(
    q: DiagonalGaussian,
    prior: Prior,
    place: Tensor | None,
    size: int | None = None,
    forbidden: Tensor | None = None,
) -> Tensor:
    given, pieces = prior(), []
    for some in q.split(CHUNK):
        log_p = call_log_probabilities(some, given)
        if forbidden is not None:
            log_p = log_p.masked_fill(forbidden, -torch.inf)
        pieces.append(log_p if place is None else collapse(log_p, place, size))
    return torch.cat(pieces)
