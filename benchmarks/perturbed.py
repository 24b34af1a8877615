"""A simulated screen whose every cell is known under every perturbation, pairs included.

    z       = mu_c + u + h sum_{p in perturbation} (1 + s_cp) delta_p      u ~ N(0, 0.5^2)
    rho     = softmax(beta + W z + W_S z_S,donor)
    x_g     ~ NB(l rho_g, theta_g)                                         l ~ logN(log 1500, 0.3^2)

s_cp ~ N(0, 0.2^2): cell types answer more or less. h is 1, and for pairs ``together``. Truth for a
cell is its own rho under the other perturbation, all else equal.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

CONTROL = "control"


def simulate_screen(
    cell_types: int = 4,
    perturbations: int = 5,
    cells: int = 60,
    genes: int = 600,
    together: float = 1.0,
    seed: int = 0,
) -> AnnData:
    """Draw a screen of all singles and all pairs, ``cells`` of each type and perturbation.

    Returns
    -------
    AnnData with ``cell_type``, ``perturbation`` (pairs as "A+B") and ``donor`` in obs, and in
    ``obsm["z"]``, ``uns["screen"]`` what :func:`true_shares` needs.
    """
    rng = np.random.default_rng(seed)
    latents, donors = 10, 4
    names = [chr(ord("A") + p) for p in range(perturbations)]
    sets = [(), *[(p,) for p in range(perturbations)], *combinations(range(perturbations), 2)]
    mu = rng.normal(0, 1.5, (cell_types, latents))
    delta = rng.normal(0, 1, (perturbations, latents)) * (
        rng.random((perturbations, latents)) < 0.4
    )
    scale = 1 + rng.normal(0, 0.2, (cell_types, perturbations))
    effects = scale[:, :, None] * delta
    shift = np.stack([effects[:, s].sum(1) * (together if len(s) > 1 else 1) for s in sets], 1)
    loadings = rng.normal(0, 0.35, (genes, latents)) * (rng.random((genes, latents)) < 0.3)
    technical = rng.normal(0, 0.25, (donors, genes))
    beta, theta = rng.normal(0, 1.3, genes), np.exp(rng.normal(np.log(4), 0.5, genes))
    c, k = (v.ravel() for v in np.mgrid[:cell_types, : len(sets)])
    c, k = np.repeat(c, cells), np.repeat(k, cells)
    donor = rng.integers(donors, size=len(c))
    own = rng.normal(0, 0.5, (len(c), latents))
    screen = {"mu": mu, "shift": shift, "loadings": loadings, "technical": technical, "beta": beta}
    labels = [CONTROL if not s else "+".join(names[p] for p in s) for s in sets]
    obs = pd.DataFrame(
        {
            "cell_type": [f"type_{v + 1}" for v in c],
            "perturbation": [labels[v] for v in k],
            "donor": [f"donor_{v + 1}" for v in donor],
        },
        index=[f"cell_{i}" for i in range(len(c))],
    )
    codes = np.stack([c, k, donor], 1)
    adata = AnnData(
        obs=obs,
        obsm={"own": own, "codes": codes},
        uns={"screen": screen | {"labels": labels}},
        shape=(len(c), genes),
    )
    adata.var_names = [f"gene_{g:03d}" for g in range(genes)]
    share = true_shares(adata)
    size = np.exp(rng.normal(np.log(1500), 0.3, (len(c), 1)))
    counts = rng.poisson(size * share * rng.gamma(theta, 1 / theta, share.shape))
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


def true_shares(adata: AnnData, perturbation: str | None = None) -> np.ndarray:
    """Expected share of each gene (cell, gene), of the cells as they are or under another one."""
    s, (c, k, donor) = adata.uns["screen"], adata.obsm["codes"].T
    if perturbation is not None:
        k = np.full_like(k, list(s["labels"]).index(perturbation))
    z = s["mu"][c] + adata.obsm["own"] + s["shift"][c, k]
    rate = np.exp(s["beta"] + z @ s["loadings"].T + s["technical"][donor])
    return np.asarray(rate / rate.sum(1, keepdims=True))
