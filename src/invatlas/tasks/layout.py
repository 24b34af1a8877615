"""Two dimensions to look at: UMAP (McInnes et al. 2018, arXiv 1802.03426) of the latents."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors

from invatlas.processor import kept_threads

LAID_OUT_CELLS = 20_000
NEIGHBOURS = 15


def lay_out(latents: np.ndarray, seed: int = 0) -> np.ndarray:
    """Lay cells out on a plane.

    Beyond 20,000 cells, 20,000 are laid out and each other cell is placed between its nearest
    five among them.

    Parameters
    ----------
    latents
        Array (cell, latent).
    seed
        Seed of the layout.

    Returns
    -------
    Array (cell, 2), float32.
    """
    from umap import UMAP  # heavy to import

    n_cells, n_latents = latents.shape
    if n_latents <= 2 or n_cells <= NEIGHBOURS + 1:
        padded = np.zeros((n_cells, 2), dtype=np.float32)
        padded[:, : min(2, n_latents)] = latents[:, :2]
        return padded
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(n_cells)[:LAID_OUT_CELLS]
    sample = latents[chosen]
    # UMAP's own search takes 11 s of Python calls below 4,096 cells, and as long to compile above
    search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(sample)
    distances, neighbours = search.kneighbors(sample)
    with warnings.catch_warnings(), kept_threads():
        warnings.simplefilter("ignore")
        plane = UMAP(
            n_neighbors=NEIGHBOURS,
            min_dist=0.3,
            random_state=seed % 2**32,
            n_jobs=1,
            precomputed_knn=(neighbours, distances.astype(np.float32)),
            force_approximation_algorithm=True,  # else neighbours are searched for all the same
        )
        laid_out = plane.fit_transform(sample)
    placed = np.empty((n_cells, 2), dtype=np.float32)
    placed[chosen] = laid_out
    rest = np.setdiff1d(np.arange(n_cells), chosen)
    if len(rest):
        nearest = KNeighborsRegressor(5, weights="distance").fit(sample, laid_out)
        placed[rest] = nearest.predict(latents[rest])
    return placed
