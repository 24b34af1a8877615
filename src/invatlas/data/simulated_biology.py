"""What is true of the biology of a simulated study: p(z_I | d), and how genes follow z_I."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SimulatedBiology:
    """Parameters of p(z_I | d) and of the genes."""

    frequency: NDArray[np.float64]  # cell_type
    mu: Array  # cell_type latent
    sigma: Array  # cell_type latent
    delta: Array  # cell_type disease latent
    beta: Array  # gene
    theta: Array  # gene
    loadings: Array  # gene latent: W_I


@dataclass(frozen=True)
class SharedState:
    """A state that some cells of one cell type are in, in two diseases."""

    share: float  # P(a = 1)
    cell_type: int
    diseases: NDArray[np.intp]  # the two
    programme: Array  # gene: w

    def draw(self, rng: Generator, cell_type: NDArray[np.intp], disease: NDArray[np.intp]) -> Array:
        """Draw a, 0 or 1, for each cell."""
        may = (cell_type == self.cell_type) & np.isin(disease, self.diseases)
        inside: Array = (may & (rng.random(may.size) < self.share)).astype(np.float32)
        return inside


def draw_biology(
    rng: Generator, genes: int, cell_types: int, diseases: int, latents: int, effect: float
) -> SimulatedBiology:
    """Draw cell types, diseases and gene programmes."""
    identity = (latents + 1) // 2
    frequency = np.arange(1, cell_types + 1) ** -0.7
    frequency /= frequency.sum()
    frequency[-1] = min(0.02, frequency[-1] / 2)
    mu = np.zeros((cell_types, latents), np.float32)
    mu[:, :identity] = draw_apart(rng, cell_types, identity, 1.8)
    delta = effect * _draw_shifts(rng, cell_types, diseases, latents, identity)

    loadings = np.zeros((genes, latents), np.float32)
    for latent in range(latents):
        share = 0.15 if latent < identity else 0.05
        loadings[:, latent] = _draw_programme(rng, genes, share)
    return SimulatedBiology(
        frequency=frequency / frequency.sum(),
        mu=mu,
        sigma=rng.uniform(0.5, 1.0, (cell_types, latents)).astype(np.float32),
        delta=delta.astype(np.float32),
        beta=rng.normal(0, 1.5, genes).astype(np.float32),
        theta=np.exp(rng.normal(np.log(4), 0.5, genes)).astype(np.float32),
        loadings=loadings,
    )


def draw_shared_state(rng: Generator, biology: SimulatedBiology, share: float) -> SharedState:
    """Draw which cell type, of the commoner half, and which two diseases share a state.

    Its programme is as wide as one that tells cell types apart, and as strong as a disease's.
    """
    commoner = np.argsort(-biology.frequency)[: (biology.frequency.size + 1) // 2]
    return SharedState(
        share=share,
        cell_type=int(rng.choice(commoner)),
        diseases=np.sort(1 + rng.choice(biology.delta.shape[1] - 1, 2, replace=False)),
        programme=rng.uniform(4, 5) * _draw_programme(rng, biology.beta.size, 0.15),
    )


def draw_apart(rng: Generator, count: int, dimensions: int, scale: float) -> Array:
    """Draw normal points, each the one of 20 candidates farthest from those before."""
    points = np.zeros((count, dimensions), np.float32)
    for row in range(count):
        candidates = rng.normal(0, scale, (20, dimensions))
        distance = np.linalg.norm(candidates[:, None] - points[None, :row], axis=2)
        points[row] = candidates[distance.min(axis=1, initial=np.inf).argmax()]
    return points


def _draw_programme(rng: Generator, genes: int, share: float) -> Array:
    """Draw one column of loadings: a share of the genes, every other one going down."""
    programme = np.zeros(genes, np.float32)
    rows = rng.choice(genes, max(1, round(share * genes)), replace=False)
    sign = np.where(np.arange(rows.size) % 2, -1.0, 1.0)
    programme[rows] = sign * rng.uniform(0.2, 0.5, rows.size)
    return programme


def _draw_shifts(
    rng: Generator, cell_types: int, diseases: int, latents: int, identity: int
) -> NDArray[np.float64]:
    """Draw delta: a main and a second response programme for each disease, in some cell types."""
    delta = np.zeros((cell_types, diseases, latents))
    responses, affected = latents - identity, max(1, cell_types // 2)
    for disease in range(1, diseases):
        turn, main = divmod(disease - 1, responses)
        types = rng.choice(cell_types, affected, replace=False)
        delta[types, disease, identity + main] = (-1) ** turn * rng.uniform(3, 4.5, affected)
        if responses > 1:
            second = identity + (main + rng.integers(1, responses)) % responses
            delta[types, disease, second] = rng.choice([-1, 1]) * rng.uniform(1, 2, affected)
    return delta
