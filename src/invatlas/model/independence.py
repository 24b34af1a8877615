"""How far z_I depends on the laboratory e, given the biology d.

With r the responsibility of combination d for a cell (1 where the label is known), and
k a Gaussian kernel, the penalty is the kernel between-group sum of squares

    sum_d sum_e n_de || mean_{cells of d, e} k(z, .) - mean_{cells of d} k(z, .) ||^2

that is the maximum mean discrepancy (Gretton et al. 2012, JMLR 13) of every laboratory from
the whole of its class, weighted by cells. Expanding the squares leaves one kernel matrix:

    sum_{i,j} k(z_i, z_j) sum_d r_id r_jd ([e_i = e_j] / n_de - 1 / n_d)

z is measured in units of the standard deviation of its class, averaged over classes, so
that the bandwidths need no tuning and shrinking the latents gains nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BANDWIDTHS = (0.5, 1.0, 2.0, 4.0)


def kernel(z: Float[Tensor, "cell latent"]) -> Float[Tensor, "cell cell"]:
    """Mean of Gaussian kernels whose bandwidths are multiples of sqrt(latents)."""
    squares = torch.cdist(z, z, compute_mode="use_mm_for_euclid_dist").square() / z.shape[1]
    return torch.stack([torch.exp(-squares / (2 * b * b)) for b in BANDWIDTHS]).mean(0)


def dependence(
    z: Float[Tensor, "cell latent"],
    responsibility: Float[Tensor, "cell combination"],
    technical: Int[Tensor, "cell technical"],
) -> Float[Tensor, ""]:
    """Mean over cells and technical covariates of the penalty above."""
    gram = kernel(z)
    total = z.new_zeros(())
    for c in range(technical.shape[1]):
        known = technical[:, c] >= 0
        r = responsibility * known[:, None]
        same = torch.zeros_like(gram)
        e = torch.nn.functional.one_hot(technical[:, c].clamp_min(0)).to(z.dtype)
        n_d = r.sum(0).clamp_min(1e-6)
        n_de = (e.T @ r).clamp_min(1e-6)  # technical value, combination
        within = r / n_de[technical[:, c].clamp_min(0)]
        same = (within @ r.T) * (e @ e.T) - (r / n_d) @ r.T
        total = total + (gram * same).sum() / known.sum().clamp_min(1)
    return total
