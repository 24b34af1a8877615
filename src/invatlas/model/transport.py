"""Where a latent goes when the covariates of its cell change: optimal transport of Gaussians.

    T(z) = m_2 + A (z - m_1)        A = S_1^-1/2 (S_1^1/2 S_2 S_1^1/2)^1/2 S_1^-1/2

carries N(m_1, S_1) onto N(m_2, S_2) and moves the mass least, in squared distance (Dowson and
Landau 1982; Knott and Smith 1984). Of diagonal covariances A is diagonal: sd_2 / sd_1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invatlas.model.priors import ConditionalGaussians


@dataclass(frozen=True)
class Transport:
    """T between the k-th of some Gaussians and the k-th of others, for every k."""

    source: Float[Tensor, "move latent"]
    target: Float[Tensor, "move latent"]
    slope: Float[Tensor, "move latent latent"]

    @classmethod
    def between(cls, source: ConditionalGaussians, target: ConditionalGaussians) -> Transport:
        """Transport each of ``source`` onto its ``target``."""
        root, inverse_root = _roots(source.covariance().double())
        middle, _ = _roots(root @ target.covariance().double() @ root)
        slope = inverse_root @ middle @ inverse_root
        return cls(source.mean, target.mean, slope.to(source.mean.dtype))

    def shifted(self, shift: Float[Tensor, "move latent"]) -> Transport:
        """The same with every target moved."""
        return Transport(self.source, self.target + shift, self.slope)

    def __call__(
        self, z: Float[Tensor, "cell latent"], move: Int[Tensor, " cell"]
    ) -> Float[Tensor, "cell latent"]:
        """Move each cell by the transport it is given; -1 leaves it where it is."""
        away = (z - self.source[move])[:, :, None]
        moved = self.target[move] + (self.slope[move] @ away)[:, :, 0]
        return torch.where((move >= 0)[:, None], moved, z)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square roots of positive definite matrices, and their inverses."""
    values, vectors = torch.linalg.eigh(matrix)
    root = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()[..., None, :]
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT
