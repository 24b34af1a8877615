"""What a change does to the counts of cells.

    x'_s = E[x' | x, a(z_s), a'_s]        z_s a draw of q(z | x)
    a'_s = a(z'_s) + sum_k share_k [a(z'_sk) - a(z'_s)]
    mean, deviation of x'_s over draws s  each scaled to the library size of its cell

z'_s is what the change makes of z_s, z'_sk what the k-th part of a combined value makes of it (see
combined.py).

The conditional expectation is that of ``invatlas.model.likelihoods``: the cell keeps its residual.
Of several fits, the variance is that within them and that between them (the law of total variance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from invatlas.data.counts import CountSource
from invatlas.data.minibatch import gather_counts
from invatlas.model.invae import Model
from invatlas.model.priors import DiagonalGaussian
from invatlas.tasks.averages import PER, Averages, average_counts
from invatlas.tasks.change import Moves
from invatlas.tasks.embed import LATENTS
from invatlas.training.posterior import CHUNK

LEAST_COUNTS = 1e-12  # a cell without counts keeps none


@dataclass(frozen=True)
class Cells:
    """Cells whose latents are known, the genes that were counted and the cells to average over."""

    source: CountSource
    q: dict[str, DiagonalGaussian]
    counted: Tensor
    supported: np.ndarray

    def order(self) -> np.ndarray:
        """An order of the cells that their latents decide, not the order they came in."""
        return np.lexsort(self.q["invariant"].mean.numpy().T[::-1])


@dataclass(frozen=True)
class Prediction:
    """Counts of cells after a change.

    Attributes
    ----------
    mean, deviation
        Expected counts and their standard deviation over draws, float32 (cell, gene).
    drawn
        One draw of the counts, CSR (cell, gene).
    averages
        Over the supported cells.
    """

    mean: np.ndarray
    deviation: np.ndarray
    drawn: sp.csr_matrix
    averages: Averages


@dataclass(frozen=True)
class Route:
    """Where each set of latents goes, and what the decoder is told there."""

    moves: dict[str, Moves]
    technical: Tensor

    def draw(self, generator: np.random.Generator) -> Route:
        """The same route, its ends as far off as they may be."""
        drawn = {which: moves.draw(generator) for which, moves in self.moves.items()}
        return replace(self, moves=drawn)

    def decode(self, model: Model, z: dict[str, Tensor], rows: np.ndarray) -> Tensor:
        """Logits (cell, gene) at the end of the route of some cells."""
        moved = {
            which: moves.transport(z[which], moves.kind[rows])
            for which, moves in self.moves.items()
        }
        return _decode(model, {**z, **moved}, self.technical[rows])


@dataclass(frozen=True)
class Action:
    """What the decoder is told of the cells, where they go, and what combined values add.

    ``parts`` holds the share of each cell and the route of each part of a combined value.
    """

    before: Tensor
    route: Route
    parts: tuple[tuple[Tensor, Route], ...] = ()

    def draw(self, generator: np.random.Generator) -> Action:
        """The same action, its routes drawn."""
        route = self.route.draw(generator)
        parts = tuple((share, part.draw(generator)) for share, part in self.parts)
        return replace(self, route=route, parts=parts)

    def decode(self, model: Model, z: dict[str, Tensor], rows: np.ndarray) -> Tensor:
        """Logits a' (cell, gene) of some cells after the change."""
        end = self.route.decode(model, z, rows)
        added = [
            share[rows, None] * (part.decode(model, z, rows) - end) for share, part in self.parts
        ]
        return end + sum(added)

    @torch.inference_mode()
    def predict(self, model: Model, cells: Cells, samples: int, seed: int) -> Prediction:
        """Predict the counts of cells, so that neither their order nor CHUNK makes a difference."""
        *seeds, thin, join, path = np.random.default_rng(seed).spawn(samples + 3)
        actions = [self.draw(path) for _ in seeds]
        order, (n_cells, n_genes) = cells.order(), cells.source.matrix.shape
        mean, deviation = (np.zeros((n_cells, n_genes), np.float32) for _ in range(2))
        sums, squares, drawn = np.zeros((samples, n_genes)), np.zeros(n_genes), []
        for start in range(0, n_cells, CHUNK):
            rows = order[start : start + CHUNK]
            sparse, library_size = gather_counts(cells.source, rows)
            counts, per = (
                sparse.to_dense(),
                PER / library_size * torch.from_numpy(cells.supported[rows]),
            )
            total, total_squares = torch.zeros(2, len(rows), n_genes, dtype=torch.float64)
            for s, (action, generator) in enumerate(zip(actions, seeds, strict=True)):
                z = _draw(cells.q, rows, generator)
                here = model.likelihood(_decode(model, z, self.before[rows]), library_size)
                there = model.likelihood(action.decode(model, z, rows), library_size)
                x = here.carry(torch.where(cells.counted, counts, here.expected_counts), there)
                x = x * (library_size / x.sum(1).clamp_min(LEAST_COUNTS))[:, None]
                total += x
                total_squares += x.double().square()
                sums[s] += (per @ x).double().numpy()
            expected = total / samples
            variance = (total_squares - samples * expected.square()) / (samples - 1)
            mean[rows], deviation[rows] = expected, variance.clamp_min(0).sqrt()
            squares += (per.double().square() @ expected.square()).numpy()
            drawn.append(draw_counts(counts.numpy(), mean[rows], thin, join))
        n = int(cells.supported.sum())
        noise = (squares / n - (sums.mean(0) / n) ** 2).clip(0) / n
        back = np.argsort(order)
        before = np.where(cells.counted, average_counts(cells.source, cells.supported), np.nan)
        averages = Averages(before, sums / n, noise)
        return Prediction(mean, deviation, sp.vstack(drawn, "csr")[back], averages)


def pool(found: Sequence[Prediction]) -> Prediction:
    """Join what several fits predict of the same cells.

    The variance is the mean of those within fits and the variance between their means; the draws
    of the averages stand side by side. One draw of the counts is that of the first fit.
    """
    if len(found) == 1:
        return found[0]
    mean = np.mean([fit.mean for fit in found], axis=0)
    within = np.mean([fit.deviation**2 for fit in found], axis=0)
    between = np.var([fit.mean for fit in found], axis=0, ddof=1)
    averages = Averages(
        found[0].averages.before,
        np.concatenate([fit.averages.after for fit in found]),
        np.mean([fit.averages.noise for fit in found], axis=0),
    )
    return Prediction(mean, np.sqrt(within + between), found[0].drawn, averages)


def draw_counts(
    counts: np.ndarray, expected: np.ndarray, thin: np.random.Generator, join: np.random.Generator
) -> sp.csr_matrix:
    """Draw counts of some mean, the nearest to those there are: thinned, or joined by others."""
    kept = thin.binomial(counts.astype(np.int64), np.minimum(1, expected / np.maximum(counts, 1)))
    joined = join.poisson(np.maximum(0, expected - counts))
    return sp.csr_matrix((kept + joined).astype(np.float32))


def _draw(
    q: dict[str, DiagonalGaussian], rows: np.ndarray, generator: np.random.Generator
) -> dict[str, Tensor]:
    """One draw of all latents of each cell, a row of random numbers for each."""
    sizes = [posterior.mean.shape[1] for posterior in q.values()]
    noise = torch.from_numpy(generator.standard_normal((len(rows), sum(sizes)))).float()
    parts = zip(q.items(), noise.split(sizes, 1), strict=True)
    return {
        which: torch.addcmul(p.mean[rows], part, (0.5 * p.log_variance[rows]).exp())
        for (which, p), part in parts
    }


def _decode(model: Model, z: dict[str, Tensor], technical: Tensor) -> Tensor:
    logits: Tensor = model.decode(torch.cat([z[which] for which in LATENTS], 1), technical)
    return logits
