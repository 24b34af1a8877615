"""Turn z_I so that each latent moves few genes, as a programme does.

    a(z) = log expression, the decoder's    J = mean_d da / dz at z = m_d, weighted by p(d)
    z    = M s                              J M = da / ds, (gene, latent)

M is the one for which the columns of J M are as independent over genes as they can be: where a
programme leaves most genes alone, its column has most of its weight near 0 and is told from any
mixture (structural sparsity: Zheng, Ng and Zhang 2022, NeurIPS; sparse decoding: Moran, Sridhar,
Wang and Blei 2022, TMLR). It is found by FastICA over genes (Hyvarinen 1999, IEEE Transactions on
Neural Networks 10), from several starts, of which the least Gaussian is kept.
"""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import FastICA

from invatlas.atlas import Atlas, check_atlas
from invatlas.errors import DataError
from invatlas.tasks.explain import average_slopes, express_latents

STARTS = 5
MOST_ROUNDS = 2000
GAUSSIAN = 0.3745672  # E log cosh of a standard normal


def unmix(atlas: Atlas) -> np.ndarray:
    """Find the linear map after which each latent of z_I moves few genes.

    A fit is free to turn z_I where its objective hardly depends on the turn. Use it as
    ``ia.embed(atlas, cells) @ ia.evaluate.unmix(atlas)``.

    Parameters
    ----------
    atlas
        A fitted atlas.

    Returns
    -------
    Array (latent, latent). A mapped latent that grows by one moves log expression by a standard
    deviation of one over genes, more genes far up than far down; so the spread of a mapped latent
    over cells says how much it does.

    Raises
    ------
    DataError
        If some direction of z_I moves no gene.
    """
    check_atlas(atlas)
    slopes, _ = average_slopes(atlas, express_latents(atlas))
    j = slopes.double().numpy()
    if (rank := np.linalg.matrix_rank(j - j.mean(0))) < j.shape[1]:
        raise DataError(f"{j.shape[1] - rank} of {j.shape[1]} directions of z_I move no gene.")
    return np.asarray(np.linalg.inv(separate(j)))


def separate(mixed: np.ndarray) -> np.ndarray:
    """M^T (source, mixture): columns of ``mixed`` (sample, mixture) times M are independent."""
    best, most = np.eye(mixed.shape[1]), -np.inf
    for start in range(STARTS):
        ica = FastICA(whiten="unit-variance", random_state=start, max_iter=MOST_ROUNDS, tol=1e-6)
        sources = ica.fit_transform(mixed)
        contrast = np.abs(np.log(np.cosh(sources)).mean(0) - GAUSSIAN).sum()
        if contrast > most:
            sign = np.where((sources**3).mean(0) < 0, -1.0, 1.0)
            best, most = sign[:, None] * ica.components_, contrast
    return best
