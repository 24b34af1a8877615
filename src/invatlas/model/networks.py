"""Encoders from counts to a posterior, and the decoder from latents to the counts.

    u      = log1p(m x / l)                 m the median library size of the reference
    q(z|x) = N(f_mean(h), diag exp f_log_variance(h)),   h = hidden layers of u
    a      = g(z_I, z_S [, e])              the likelihood makes counts of it

An encoder sees counts and nothing else: no covariate ever enters it. While it trains it is
shown each nonzero of u with probability 1 - input_dropout only, and has to denoise (Vincent
et al. 2008, ICML).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invatlas.data.minibatch import SparseCounts
from invatlas.model.kernels import sparse_linear
from invatlas.model.priors import DiagonalGaussian


class Dropout(nn.Module):
    """Zero a share of the entries, and scale the others so that the mean stays.

    Random bytes decide, eight from each draw, so the share is rounded to 1 / 256: on a
    processor this takes a fifth of the time of one uniform number for every entry.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.zeroed = round(256 * share)

    def forward(self, y: Tensor) -> Tensor:
        """Apply while training; return the input as it is otherwise."""
        if not self.training or not self.zeroed:
            return y
        draws = torch.empty(-(-y.numel() // 8), dtype=torch.int64, device=y.device)
        random_bytes = draws.random_(-(2**63), None).view(torch.uint8)[: y.numel()]
        kept = (random_bytes >= self.zeroed).view(y.shape)
        return y * kept * (256 / (256 - self.zeroed))


class Hidden(nn.Module):
    """Batch normalisation, rectifier and dropout after a linear map."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(width, eps=1e-3)
        self.dropout = Dropout(dropout)

    def forward(self, y: Float[Tensor, "cell hidden"]) -> Float[Tensor, "cell hidden"]:
        """Apply to the output of a linear map."""
        activated: Tensor = self.dropout(torch.relu(self.normalise(y)))
        return activated


def stack(hidden: int, layers: int, dropout: float) -> nn.Sequential:
    """Hidden layers that begin where a linear map ended."""
    parts: list[nn.Module] = [Hidden(hidden, dropout)]
    for _ in range(layers - 1):
        parts += [nn.Linear(hidden, hidden), Hidden(hidden, dropout)]
    return nn.Sequential(*parts)


class Encoder(nn.Module):
    """Posterior of both sets of latents given the counts of a cell.

    The two encoders share nothing but the pass over the nonzeros: the columns of ``first``
    are split between them.
    """

    median_library_size: Tensor

    def __init__(
        self,
        n_genes: int,
        n_latents: dict[str, int],
        hidden: int,
        layers: int,
        dropout: float,
        input_dropout: float,
        median_library_size: float,
    ) -> None:
        super().__init__()
        self.register_buffer("median_library_size", torch.tensor(median_library_size))
        self.forget_genes = Dropout(input_dropout)
        self.hidden = hidden
        bound = 1 / math.sqrt(n_genes)
        self.first = nn.Parameter(
            torch.empty(n_genes, hidden * len(n_latents)).uniform_(-bound, bound)
        )
        self.heads = nn.ModuleDict(
            {which: Head(n, hidden, layers, dropout) for which, n in n_latents.items()}
        )

    def forward(
        self, counts: SparseCounts, library_size: Float[Tensor, " cell"]
    ) -> dict[str, DiagonalGaussian]:
        """Posterior of each set of latents of each cell, by the name of the set."""
        scale = self.median_library_size / library_size
        u = self.forget_genes(torch.log1p(counts.values * scale[counts.cells]))
        y = sparse_linear(u, self.first, counts)
        return {
            which: head(part)
            for (which, head), part in zip(self.heads.items(), y.split(self.hidden, 1), strict=True)
        }


class Head(nn.Module):
    """What follows the first linear map in one encoder."""

    def __init__(self, n_latents: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = stack(hidden, layers, dropout)
        self.mean = nn.Linear(hidden, n_latents)
        self.log_variance = nn.Linear(hidden, n_latents)

    def forward(self, y: Float[Tensor, "cell hidden"]) -> DiagonalGaussian:
        """Posterior of one set of latents."""
        h = self.layers(y)
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
        self.layers = stack(hidden, layers, dropout)
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
        logits: Tensor = self.logits(self.layers(y))
        return logits
