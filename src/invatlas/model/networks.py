"""Encoders from counts to a posterior, and the decoder from latents to the counts.

    u      = log1p(m x / l)                 m the median library size of the reference
    q(z|x) = N(f_mean(h), diag exp f_log_variance(h)),   h = hidden layers of u
    a      = g(z_I, z_S [, e])              the likelihood makes counts of it

An encoder sees counts and nothing else: no covariate ever enters it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invatlas.data.minibatch import SparseCounts
from invatlas.model.kernels import sparse_linear
from invatlas.model.priors import DiagonalGaussian


class Hidden(nn.Module):
    """Batch normalisation, rectifier and dropout after a linear map."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(width, eps=1e-3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Float[Tensor, "cell hidden"]) -> Float[Tensor, "cell hidden"]:
        """Apply to the output of a linear map."""
        activated: Tensor = self.dropout(torch.relu(self.normalise(y)))
        return activated


class Encoder(nn.Module):
    """Posterior of one set of latents given the counts of a cell."""

    median_library_size: Tensor

    def __init__(
        self,
        n_genes: int,
        n_latents: int,
        hidden: int,
        layers: int,
        dropout: float,
        median_library_size: float,
    ) -> None:
        super().__init__()
        self.register_buffer("median_library_size", torch.tensor(median_library_size))
        self.first = nn.Parameter(torch.empty(n_genes, hidden))
        nn.init.uniform_(self.first, -1 / math.sqrt(n_genes), 1 / math.sqrt(n_genes))
        self.first_hidden = Hidden(hidden, dropout)
        rest: list[nn.Module] = []
        for _ in range(layers - 1):
            rest += [nn.Linear(hidden, hidden), Hidden(hidden, dropout)]
        self.rest = nn.Sequential(*rest)
        self.mean = nn.Linear(hidden, n_latents)
        self.log_variance = nn.Linear(hidden, n_latents)

    def forward(
        self, counts: SparseCounts, library_size: Float[Tensor, " cell"]
    ) -> DiagonalGaussian:
        """Posterior of the latents of each cell."""
        scale = self.median_library_size / library_size
        u = torch.log1p(counts.values * scale[counts.cells])
        h = self.rest(self.first_hidden(sparse_linear(u, self.first, counts)))
        return DiagonalGaussian(self.mean(h), self.log_variance(h).clamp(-10.0, 4.0))


class Decoder(nn.Module):
    """Logits of the genes given latents and, where wanted, the technical values.

    Each technical value adds a vector to the first hidden layer; a missing value (-1) adds
    nothing, which is also what an unknown donor gets. Training drops values at random
    (``forget``), so that this absence is something the decoder has met.
    """

    def __init__(
        self,
        n_latents: int,
        technical_sizes: list[int],
        n_genes: int,
        hidden: int,
        layers: int,
        dropout: float,
        forget: float = 0.1,
    ) -> None:
        super().__init__()
        self.forget = forget
        self.first = nn.Linear(n_latents, hidden)
        self.technical = nn.ParameterList(torch.zeros(size, hidden) for size in technical_sizes)
        self.first_hidden = Hidden(hidden, dropout)
        rest: list[nn.Module] = []
        for _ in range(layers - 1):
            rest += [nn.Linear(hidden, hidden), Hidden(hidden, dropout)]
        self.rest = nn.Sequential(*rest)
        self.logits = nn.Linear(hidden, n_genes)

    def forward(
        self,
        z: Float[Tensor, "cell latent"],
        technical: Int[Tensor, "cell technical"],
    ) -> Float[Tensor, "cell gene"]:
        """Logits of the expected share of every gene."""
        y = self.first(z)
        for c, embedding in enumerate(self.technical):
            code = technical[:, c]
            known = code >= 0
            if self.training:
                known = known & (torch.rand(code.shape, device=code.device) >= self.forget)
            y = y + embedding[code.clamp_min(0)] * known[:, None]
        logits: Tensor = self.logits(self.rest(self.first_hidden(y)))
        return logits
