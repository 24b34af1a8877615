"""Posteriors of many cells, a chunk at a time: what an encoder says once training is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from invatlas.data.counts import CountSource
from invatlas.data.minibatch import Cells, gather_counts
from invatlas.model.calls import call_log_probabilities, collapse
from invatlas.model.invae import Model
from invatlas.model.networks import Encoder
from invatlas.model.priors import DiagonalGaussian, Prior
from invatlas.processor import quick_products, spread
from invatlas.training.novelty import flat_entropy

CHUNK = 512  # cells whose hidden layers stay near the processor


@dataclass(frozen=True)
class Calls:
    """What some cells may be.

    Attributes
    ----------
    log_p
        Log-posterior over combinations of categories (``prior.joint``), shape (cell, joint).
    entropy
        How undecided the flattened calls are, in nats, shape (cell,); see training/novelty.py.
    """

    log_p: Float[Tensor, "cell joint"]
    entropy: Float[Tensor, " cell"]


@torch.inference_mode()
def encode_cells(
    model: Model, source: CountSource, which: str, rows: np.ndarray | None = None
) -> DiagonalGaussian:
    """Posterior of one set of latents, of some cells (by default all), in their order."""
    with quick_products():
        return join(_encode(model.encode.alone(which), which, source, rows))


@torch.inference_mode()
def encode_pieces(
    model: Model, pieces: Iterable[CountSource], which: Sequence[str]
) -> dict[str, DiagonalGaussian]:
    """Posterior of sets of latents, by the name of the set, of cells that come piece by piece."""
    encoders = {name: model.encode.alone(name) for name in which}

    def encode(source: CountSource) -> dict[str, DiagonalGaussian]:
        return {name: join(_encode(one, name, source)) for name, one in encoders.items()}

    with quick_products():
        found = list(spread(encode, pieces))
    return {name: join([parts[name] for parts in found]) for name in which}


def _encode(
    encode: Encoder, which: str, source: CountSource, rows: np.ndarray | None = None
) -> list[DiagonalGaussian]:
    """Posteriors of some cells, by default all, a chunk each."""
    n_cells = source.n_cells if rows is None else len(rows)
    chunks = [slice(k, min(k + CHUNK, n_cells)) for k in range(0, max(1, n_cells), CHUNK)]
    taken = (gather_counts(source, some if rows is None else rows[some]) for some in chunks)
    return [encode(*counts)[which] for counts in taken]


def join(parts: Sequence[DiagonalGaussian]) -> DiagonalGaussian:
    """Posterior of cells that came in parts, in their order."""
    return DiagonalGaussian(
        torch.cat([part.mean for part in parts]), torch.cat([part.log_variance for part in parts])
    )


@torch.inference_mode()
def measure_cells(model: Model, cells: Cells, rows: np.ndarray) -> None:
    """Tell a model what the cells of each combination of biological values are."""
    prior, places = model.prior_invariant, []
    for start in range(0, len(rows), CHUNK):
        codes = torch.from_numpy(cells.biological[rows[start : start + CHUNK]])
        met = (prior.combinations == codes[:, None]).all(2)
        places.append(torch.where(met.any(1), met.int().argmax(1), -1))
    place = torch.cat(places)
    known = place >= 0
    rows, place = rows[known.numpy()], place[known]
    n = len(prior.combinations)
    with quick_products():
        q, _, hidden = mean_hidden(
            model.encode.alone("invariant"),
            cells.source,
            lambda some, _: one_hot(place[some], n).float(),
            rows,
        )
    model.measured.count(q, place)
    model.measured.hidden.copy_(hidden)


def mean_hidden(
    encode: Encoder,
    source: CountSource,
    weigh: Callable[[slice, DiagonalGaussian], Float[Tensor, "cell combination"]],
    rows: np.ndarray | None = None,
) -> tuple[
    DiagonalGaussian,
    Float[Tensor, " combination"],
    Float[Tensor, "combination layer hidden"],
]:
    """Posterior of some cells, by default all, total weights, means of what the encoder normalises.

    ``weigh`` says how far cells whose posteriors are known are of each combination; totals and
    weighted means are of every combination. The encoder is that of z_I.
    """
    posteriors, cells, sums = [], torch.zeros(()), torch.zeros(())
    rows = np.arange(source.n_cells) if rows is None else rows
    for start in range(0, max(1, len(rows)), CHUNK):
        some = slice(start, start + CHUNK)
        found, hidden = encode.look(*gather_counts(source, rows[some]))
        posteriors.append(found["invariant"])
        weights = weigh(some, found["invariant"])
        cells = cells + weights.sum(0)
        sums = sums + torch.einsum("xd,lxh->dlh", weights, hidden)
    return join(posteriors), cells, sums / cells.clamp_min(1e-6)[:, None, None]


@torch.inference_mode()
def call_cells(q: DiagonalGaussian, prior: Prior) -> Calls:
    """Call cells whose posterior is known, a chunk at a time."""
    given, place, found = prior(), prior.joint()[1], []
    only_categories = len(prior.categorical) == prior.combinations.shape[1]
    for some in q.split(CHUNK):
        log_p = call_log_probabilities(some, given)
        joint = log_p if only_categories else collapse(log_p, place)
        found.append((joint, flat_entropy(log_p)))
    log_p, entropy = map(torch.cat, zip(*found, strict=True))
    return Calls(log_p, entropy)


@torch.inference_mode()
def call_values(
    q: DiagonalGaussian, prior: Prior, column: int, size: int, allowed: Bool[Tensor, " joint"]
) -> Float[Tensor, "cell value"]:
    """Log-posterior over the values of one covariate within some combinations of categories.

    A chunk at a time; ``size`` is the number of values.
    """
    given, place = prior(), prior.combinations[:, column]
    forbidden = ~allowed[prior.joint()[1]]
    pieces = []
    for some in q.split(CHUNK):
        log_p = call_log_probabilities(some, given).masked_fill(forbidden, -torch.inf)
        pieces.append(collapse(log_p, place, size))
    return torch.cat(pieces).log_softmax(1)
