"""The invariant VAE (Aliee et al. 2023, arXiv 2307.00558), with label-free encoders.

z_I ~ p(z_I | d)    z_S ~ p(z_S | e)    x ~ p(x | a(z_I, z_S [, e]), l)
q(z_I | x)  q(z_S | x)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from invatlas.data.minibatch import Minibatch
from invatlas.model.exponential_family import ExponentialFamilyPrior
from invatlas.model.independence import COMPARED_CELLS
from invatlas.model.likelihoods import LIKELIHOODS, CountDistribution
from invatlas.model.low_rank import LowRankPrior
from invatlas.model.measured import Measured
from invatlas.model.networks import Decoder, Encoder
from invatlas.model.priors import (
    ConditionalGaussians,
    CovariateTable,
    DiagonalGaussian,
    FactorisedPrior,
    Prior,
)
from invatlas.settings import Settings

PRIORS: dict[str, type[FactorisedPrior]] = {
    "factorised": FactorisedPrior,
    "low_rank": LowRankPrior,
    "exponential_family": ExponentialFamilyPrior,
}


@dataclass(frozen=True)
class LatentView:
    """One set of latents of a minibatch: what the counts say and what the covariates say.

    ``embedding`` is the posterior mean a user will get of the cells that are compared, without
    the noise of dropout and minibatch statistics that ``posterior`` has while training.
    """

    embedding: Float[Tensor, "compared latent"]
    posterior: DiagonalGaussian
    sample: Float[Tensor, "cell latent"]
    prior: ConditionalGaussians
    allowed: Bool[Tensor, "cell combination"]
    strata: Int[Tensor, " combination"]


@dataclass(frozen=True)
class Explanation:
    """Everything the objective needs to know of a minibatch."""

    invariant: LatentView
    spurious: LatentView
    counts: CountDistribution
    shrinkage: Float[Tensor, ""]
    random_effects: Float[Tensor, ""]


class Model(nn.Module):
    """Networks, priors and likelihood of one atlas."""

    def __init__(
        self,
        n_genes: int,
        biological: CovariateTable,
        technical: CovariateTable,
        median_library_size: float,
        settings: Settings,
    ) -> None:
        super().__init__()
        s = settings
        self.encode = Encoder(
            n_genes,
            {"invariant": s.invariant_latents, "spurious": s.spurious_latents},
            s.hidden,
            s.layers,
            s.dropout,
            s.input_dropout,
            s.depth_noise,
            median_library_size,
        )
        prior = PRIORS[s.prior]
        self.prior_invariant = prior(biological, s.invariant_latents, s.interaction_rank)
        self.prior_spurious = prior(technical, s.spurious_latents, s.interaction_rank)
        self.measured = Measured(
            len(biological.combinations), s.invariant_latents, s.layers, s.hidden
        )
        self.decode = Decoder(
            s.invariant_latents + s.spurious_latents,
            technical.sizes if s.technical_in_decoder else [],
            n_genes,
            s.hidden,
            s.layers,
            s.dropout,
        )
        self.likelihood = LIKELIHOODS[s.likelihood](n_genes, median_library_size)

    def forward(self, minibatch: Minibatch) -> Explanation:
        """Explain a minibatch."""
        posterior = self.encode(minibatch.counts, minibatch.library_size)
        embedding = self._embed(minibatch) if self.training else posterior
        invariant = _view(
            embedding["invariant"].mean,
            posterior["invariant"],
            self.prior_invariant,
            minibatch.biological,
        )
        spurious = _view(
            embedding["spurious"].mean,
            posterior["spurious"],
            self.prior_spurious,
            minibatch.technical,
        )
        logits = self.decode(torch.cat([invariant.sample, spurious.sample], 1), minibatch.technical)
        return Explanation(
            invariant,
            spurious,
            self.likelihood(logits, minibatch.library_size),
            self.prior_invariant.shrinkage() + self.prior_spurious.shrinkage(),
            self.prior_spurious.departure(spurious.prior),
        )

    def _embed(self, minibatch: Minibatch) -> dict[str, DiagonalGaussian]:
        """Posteriors of the cells to compare, as they will be once training is over."""
        self.encode.eval()
        embedding: dict[str, DiagonalGaussian] = self.encode(
            minibatch.counts.first(COMPARED_CELLS), minibatch.library_size[:COMPARED_CELLS]
        )
        self.encode.train()
        return embedding


def _view(
    embedding: Tensor, posterior: DiagonalGaussian, prior: Prior, codes: Tensor
) -> LatentView:
    allowed = prior.allowed(codes)
    return LatentView(embedding, posterior, posterior.sample(), prior(), allowed, prior.strata)
