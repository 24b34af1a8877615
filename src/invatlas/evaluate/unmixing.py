"""Turn z_I so that its latents are as independent as the priors say they are.

    z = A s,   Cov[s | d] = diag v_d            what the priors claim, with v_d other in each d
    r_x        = m_q(x) - mean of m_q over the cells of the combination of x
    C_g        = mean of r_x r_x^T + diag v_q(x) over the cells of g    g a value of a covariate
    P          = mean of C_g, weighted by cells n_g;   K = P^(-1/2)
    W          = K V,   V orthogonal, minimises  sum_g n_g sum_{i != j} (V^T K C_g K V)_ij^2

Where variances differ between values in more than their scale, W is A^(-1) but for order, sign and
size of the latents (Belouchrani et al. 1997, IEEE Transactions on Signal Processing 45). V is found
by rotating two latents at a time, each by the best angle (Cardoso and Souloumiac 1996, SIAM Journal
on Matrix Analysis and Applications 17).
"""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from invatlas.atlas import Atlas
from invatlas.data.columns import text_values
from invatlas.errors import DataError
from invatlas.tasks.embed import MINIMUM_OVERLAP, encode_counts

FEWEST_TIMES = 5  # cells of a value, for each latent, whose covariance is asked
MOST_SWEEPS = 100
SETTLED = 1e-8  # sine of an angle that is no longer worth a turn


def unmix(
    atlas: Atlas,
    adata: AnnData,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> np.ndarray:
    """Find the linear map after which the latents of z_I vary independently within biology.

    A fit is free to turn z_I where its objective hardly depends on the turn. Use it as
    ``ia.embed(atlas, any_cells) @ ia.evaluate.unmix(atlas, adata)``.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts of cells with the categorical biological columns of the atlas in obs; cells that
        lack one are passed over.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.

    Returns
    -------
    Array (latent, latent); the mapped latents have variance 1 within combinations, on average.

    Raises
    ------
    DataError
        If fewer than two values, in which cells differ, have five cells for each latent.
    CovariateError, GeneError, CountsError
        As :func:`invatlas.embed`, or if obs lacks a biological column.
    """
    for covariate in atlas.schema.called:
        text_values(adata.obs, covariate.name)  # refuses a column that is not there
    codes, _ = atlas.schema.encode(adata.obs)
    codes = codes[:, atlas.model.prior_invariant.categorical]
    told = (codes >= 0).all(1)
    if not told.any():
        names = ", ".join(covariate.name for covariate in atlas.schema.called)
        raise DataError(
            f"No cell has values the atlas knows in all of {names}; unmixing needs some."
        )
    q, _ = encode_counts(atlas, adata[told], ["invariant"], layer, minimum_overlap, gene_column)
    z, variance = q["invariant"].mean.numpy(), q["invariant"].variance.numpy()
    covariances, cells = covary(z.astype(float), variance.astype(float), codes[told])
    if len(cells) < 2:
        raise DataError(
            f"{len(cells)} of the values in which cells differ have {FEWEST_TIMES} cells for each "
            f"of {z.shape[1]} latents; two are needed."
        )
    weight = cells / cells.sum()
    size, directions = np.linalg.eigh(np.einsum("g,gij->ij", weight, covariances))
    whiten = directions / np.sqrt(size.clip(1e-12))
    white = np.einsum("ai,gab,bj->gij", whiten, covariances, whiten)
    return np.asarray(whiten @ diagonalise(white * np.sqrt(weight)[:, None, None]))


def covary(z: np.ndarray, variance: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C_g (value, latent, latent) and n_g of the values that enough cells have, and not all."""
    _, place = np.unique(codes, axis=0, return_inverse=True)
    place = place.ravel()
    sums = np.zeros((place.max() + 1, z.shape[1]))
    np.add.at(sums, place, z)
    r = z - (sums / np.bincount(place)[:, None])[place]
    covariances, cells = [np.zeros((0, *2 * z.shape[1:]))], []
    for column in codes.T:
        for value in np.unique(column):
            rows = column == value
            if not rows.all() and rows.sum() >= FEWEST_TIMES * z.shape[1]:
                found = r[rows].T @ r[rows] / rows.sum() + np.diag(variance[rows].mean(0))
                covariances.append(found[None])
                cells.append(rows.sum())
    return np.concatenate(covariances), np.array(cells, dtype=float)


def diagonalise(matrices: np.ndarray) -> np.ndarray:
    """Orthogonal V (latent, latent) for which all V^T M V (matrix, latent, latent) are diagonal."""
    m, n = matrices.copy(), matrices.shape[1]
    v = np.eye(n)
    for _ in range(MOST_SWEEPS):
        turned = False
        for i in range(n):
            for j in range(i + 1, n):
                h = np.stack([m[:, i, i] - m[:, j, j], m[:, i, j] + m[:, j, i]])
                on, off = h @ h.T @ [1, 0], h @ h.T @ [0, 1]
                up, across = on[0] - off[1], on[1] + off[0]
                angle = 0.5 * np.arctan2(across, up + np.hypot(up, across))
                if abs(np.sin(angle)) > SETTLED:
                    turn = np.eye(n)
                    turn[[i, j], [i, j]] = np.cos(angle)
                    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
                    m, v, turned = turn.T @ m @ turn, v @ turn, True
        if not turned:
            break
    return v
