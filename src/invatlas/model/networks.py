"""Encoders from counts to a posterior, and the decoder from latents to the counts.

    u      = log1p(m x / l)                 m the median library size of the reference
    q(z|x) = N(f_mean(h), diag exp f_log_variance(h)),   h = hidden layers of u
    a      = A z + g(z [, e])               z = (z_I, z_S); the likelihood makes counts of a

An encoder sees counts and nothing else: no covariate ever enters it. While it trains it is
shown each nonzero of u with probability 1 - input_dropout only, and has to denoise (Vincent
et al. 2008, ICML). It is also shown each cell as if sequenced at another depth: m x / l is
multiplied by exp(depth_noise eps), eps ~ N(0, 1), one draw for each cell. Laboratories differ
in depth first of all, and dividing by l does not undo it where most counts are 0 or 1. And it is
shown each cell as if the cell had gone from one laboratory to another, x_g r_eg / r_e'g, both drawn
for each cell and neither its own but by chance (r: training/laboratories.py). z_I's encoder does
not look along directions in which laboratories differ (V_k: training/nuisance.py).

Programmes of genes multiply first of all, so the way from latents to logits has a straight part,
A z (Svensson et al. 2020, Bioinformatics 36, 3418), beside the hidden layers g that bend it. A
begins at 0.
"""

from __future__ import annotations

import copy
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


class SideBySide(nn.Module):
    """Linear maps of several networks of one width, each on its own share of the columns.

    No bias: the batch normalisation that follows would take it away.
    """

    def __init__(self, networks: int, hidden: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)
        self.weight = nn.Parameter(torch.empty(networks, hidden, hidden).uniform_(-bound, bound))

    def forward(self, y: Float[Tensor, "cell wide"]) -> Float[Tensor, "cell wide"]:
        """Apply each map to its columns."""
        networks, hidden, _ = self.weight.shape
        parts = torch.bmm(y.view(-1, networks, hidden).transpose(0, 1), self.weight)
        return parts.transpose(0, 1).reshape(-1, networks * hidden)


def stack(networks: int, hidden: int, layers: int, dropout: float) -> nn.Sequential:
    """Hidden layers, side by side, that begin where a linear map ended."""
    parts: list[nn.Module] = [Hidden(networks * hidden, dropout)]
    for _ in range(layers - 1):
        parts += [SideBySide(networks, hidden), Hidden(networks * hidden, dropout)]
    return nn.Sequential(*parts)


class Encoder(nn.Module):
    """Posterior of both sets of latents given the counts of a cell.

    The encoders of the two sets share no weight. They have one width, so that one operation
    does for both what each would do alone.
    """

    median_library_size: Tensor
    laboratories: Tensor  # log r (laboratory, gene), known while training alone
    nuisance: Tensor  # V_k (gene, direction), orthonormal, known while training alone

    def __init__(
        self,
        n_genes: int,
        n_latents: dict[str, int],
        hidden: int,
        layers: int,
        dropout: float,
        input_dropout: float,
        depth_noise: float,
        median_library_size: float,
    ) -> None:
        super().__init__()
        self.register_buffer("median_library_size", torch.tensor(median_library_size))
        self.register_buffer("laboratories", torch.zeros(0, n_genes), persistent=False)
        self.register_buffer("nuisance", torch.zeros(n_genes, 0), persistent=False)
        self.forget_genes = Dropout(input_dropout)
        self.depth_noise = depth_noise
        self.hidden = hidden
        bound = 1 / math.sqrt(n_genes)
        self.first = nn.Parameter(
            torch.empty(n_genes, hidden * len(n_latents)).uniform_(-bound, bound)
        )
        self.layers = stack(len(n_latents), hidden, layers, dropout)
        self.heads = nn.ModuleDict(
            {which: nn.Linear(hidden, 2 * n) for which, n in n_latents.items()}
        )

    def forward(
        self, counts: SparseCounts, library_size: Float[Tensor, " cell"]
    ) -> dict[str, DiagonalGaussian]:
        """Posterior of each set of latents of each cell, by the name of the set."""
        return self._leave(self.layers(self._enter(counts, library_size)))

    def look(
        self, counts: SparseCounts, library_size: Float[Tensor, " cell"]
    ) -> tuple[dict[str, DiagonalGaussian], Float[Tensor, "layer cell wide"]]:
        """Posteriors, and what each batch normalisation on the way to them is given."""
        y, given = self._enter(counts, library_size), []
        for part in self.layers:
            if isinstance(part, Hidden):
                given.append(y)
            y = part(y)
        return self._leave(y), torch.stack(given)

    @torch.no_grad()
    def look_away(self, weight: Float[Tensor, "gene wide"]) -> None:
        """Take from the first layer, or its gradient, what z_I's share has along nuisance."""
        some = weight.split(self.hidden, 1)[list(self.heads).index("invariant")]
        some.addmm_(self.nuisance, self.nuisance.T @ some, alpha=-1)

    def forget_laboratories(self) -> None:
        """Forget what is known while training alone."""
        self.laboratories, self.nuisance = self.laboratories[:0], self.nuisance[:, :0]

    def taken_away(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance of each batch normalisation, each (wide,), from counts to latents."""
        norms = [part.normalise for part in self.layers if isinstance(part, Hidden)]
        return [(n.get_buffer("running_mean"), n.get_buffer("running_var")) for n in norms]

    def _enter(
        self, counts: SparseCounts, library_size: Float[Tensor, " cell"]
    ) -> Float[Tensor, "cell wide"]:
        x = counts.values * (self.median_library_size / library_size).index_select(0, counts.cells)
        if self.training:
            x = x * self._draw_noise(counts).exp()
        u = self.forget_genes(torch.log1p(x))
        return sparse_linear(u, self.first, counts)

    def _leave(self, h: Float[Tensor, "cell wide"]) -> dict[str, DiagonalGaussian]:
        posteriors = {}
        for (which, head), part in zip(self.heads.items(), h.split(self.hidden, 1), strict=True):
            mean, log_variance = head(part).chunk(2, 1)
            posteriors[which] = DiagonalGaussian(mean, log_variance.clamp(-10.0, 4.0))
        return posteriors

    def _draw_noise(self, counts: SparseCounts) -> Float[Tensor, " nonzero"]:
        """Log of the factors by which other laboratories might have counted each nonzero."""
        depth = self.depth_noise * counts.values.new_empty(counts.n_cells).normal_()
        noise = depth.index_select(0, counts.cells)
        if n := len(self.laboratories):
            ratios = self.laboratories.view(-1)
            starts = counts.n_genes * torch.randint(n, (2, counts.n_cells), device=noise.device)
            here, there = (row.index_select(0, counts.cells).add_(counts.genes) for row in starts)
            noise = noise + (ratios.index_select(0, here) - ratios.index_select(0, there))
        return noise

    def alone(self, which: str) -> Encoder:
        """The encoder of one set of latents, with a copy of its share of the weights."""
        one, k = copy.deepcopy(self), list(self.heads).index(which)
        one.heads = nn.ModuleDict({which: one.heads[which]})
        one.first = nn.Parameter(self.first.split(self.hidden, 1)[k].contiguous())
        for part in (*one.layers.parameters(), *one.layers.buffers()):
            if part.ndim:
                part.data = part.data.unflatten(0, (len(self.heads), -1))[k]
        return one


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
        self.first = nn.Linear(n_latents, hidden, bias=False)
        self.technical = nn.ParameterList(torch.zeros(size, hidden) for size in technical_sizes)
        self.layers = stack(1, hidden, layers, dropout)
        self.logits = nn.Linear(hidden + n_latents, n_genes)
        nn.init.zeros_(self.logits.weight[:, hidden:])

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
        logits: Tensor = self.logits(torch.cat([self.layers(y), z], 1))
        return logits
