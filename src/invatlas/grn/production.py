"""How regulators make the production of a gene.

    u_i = (p_i - centre_i) / unit_i           regulator i, beside its usual level
    sigmoid         f_j = o_j + L_j c_j 2 sigmoid(2 a_j),   a_j = b_j + sum_i g_ij W_ij u_i
    network         the same, a_j = b_j + sum_h V_jh tanh(B_jh + sum_i g_ij W_ijh u_i)
    additive        f_j = o_j + L_j c_j softplus(k (1 + a_j)) / softplus(k), a_j as in sigmoid
                    with sigmoid(2 u_i) - 1/2 for u_i: regulators that do not know of each other
    multiplicative  f_j = o_j + L_j c_j exp(a_j), a_j as in sigmoid with
                    log((p_i - o_i + 0.05 L_i) / (centre_i - o_i + 0.05 L_i)) for u_i: powers that
                    multiply, the log-space branch of PHOENIX (Hossain et al. 2024,
                    Genome Biol 25:127)

L_j is the usual level of gene j above its floor o_j (0 unless expression is negative), or the
typical size of its changes if that is more; c_j is
learned. g_ij is the gate of an edge; every family is 0 in a shut one. A shift moves a_j.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

HIDDEN = 8
SHARPNESS = 4.0
MOST_LOG_CHANGE = 3.0
PSEUDO_LEVEL = 0.05
MOST_ROWS_OF_SLOPES = 200


class Production(nn.Module, ABC):
    """Production f(p) of every gene from the proteins p of all, in units of expression over decay.

    Parameters
    ----------
    centre, unit, floor
        Usual level, typical size of a change and lowest level of each gene, (gene,).
    generator
        Draws initial weights, where a family needs them.
    """

    centre: Tensor
    unit: Tensor
    floor: Tensor
    level: Tensor

    def __init__(
        self, centre: Tensor, unit: Tensor, floor: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__()
        n = len(centre)
        self.register_buffer("centre", centre)
        self.register_buffer("unit", unit)
        self.register_buffer("floor", floor)
        self.register_buffer("level", torch.maximum(centre - floor, unit))
        self.offset = nn.Parameter(torch.zeros(n))
        self.log_size = nn.Parameter(torch.zeros(n))
        self.weight = nn.Parameter(torch.zeros(n, n))

    def forward(
        self,
        p: Float[Tensor, "*row gene"],
        gates: Float[Tensor, "gene gene"],
        shift: Tensor | float = 0.0,
    ) -> Float[Tensor, "*row gene"]:
        """Production of every gene."""
        size = self.level * self.log_size.exp()
        return self.floor + size * self.respond(self.activate(p, gates) + shift)

    def activate(self, p: Tensor, gates: Tensor) -> Tensor:
        """What regulators say to each target, (row, gene)."""
        return self.offset + self.read(p) @ (self.weight * gates)

    def read(self, p: Tensor) -> Tensor:
        """Regulators beside their usual level, (row, gene)."""
        return (p - self.centre) / self.unit

    def weigh(self, gates: Tensor) -> Tensor:
        """Sum of the sizes of all weights, through their gates."""
        return (self.weight.abs() * gates).sum()

    def slope(self, p: Float[Tensor, "row gene"], gates: Tensor) -> Float[Tensor, "gene gene"]:
        """Mean over rows of |df_j / dp_i|, with the sign of its mean, (regulator, target)."""
        p = p.detach().requires_grad_(True)
        (inward,) = torch.autograd.grad(self.read(p).sum(), p)
        a = self.activate(p, gates).detach().requires_grad_(True)
        (outward,) = torch.autograd.grad(self.respond(a).sum(), a)
        size = self.level * self.log_size.exp()
        return (inward.T @ outward / len(p) * self.weight * gates * size).detach()

    @abstractmethod
    def respond(self, activation: Tensor) -> Tensor:
        """Production in units of the usual one, 1 at an activation of 0."""


class Sigmoid(Production):
    """Regulators add up, production saturates."""

    def respond(self, activation: Tensor) -> Tensor:
        """Production in units of the usual one."""
        return 2 * torch.sigmoid(2 * activation)


class Additive(Production):
    """Each regulator saturates for itself."""

    def read(self, p: Tensor) -> Tensor:
        """Regulators as this family hears them."""
        return torch.sigmoid(2 * super().read(p)) - 0.5

    def respond(self, activation: Tensor) -> Tensor:
        """Production in units of the usual one."""
        return softplus(SHARPNESS * (1 + activation)) / softplus(torch.tensor(SHARPNESS))


class Multiplicative(Production):
    """Powers of regulators multiply."""

    def read(self, p: Tensor) -> Tensor:
        """Regulators as this family hears them."""
        little = PSEUDO_LEVEL * self.level
        here = (p - self.floor).clamp_min(0) + little
        return torch.log(here / ((self.centre - self.floor).clamp_min(0) + little))

    def respond(self, activation: Tensor) -> Tensor:
        """Production in units of the usual one."""
        return torch.exp(activation.clamp(-MOST_LOG_CHANGE, MOST_LOG_CHANGE))


class Network(Production):
    """Regulators meet in a small network of each target, behind the gates of its edges."""

    def __init__(
        self, centre: Tensor, unit: Tensor, floor: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__(centre, unit, floor, generator)
        n = len(centre)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.weight = nn.Parameter(draw(n, n, HIDDEN) * (0.3 / n**0.5))
        self.hidden_offset = nn.Parameter(draw(n, HIDDEN) * 0.5)
        self.out = nn.Parameter((1 + draw(n, HIDDEN)) / HIDDEN)

    def activate(self, p: Tensor, gates: Tensor) -> Tensor:
        """What regulators say to each target, (row, gene)."""
        weight = self.weight * gates[..., None]
        hidden = torch.einsum("...r,rgh->...gh", self.read(p), weight) + self.hidden_offset
        return self.offset + (torch.tanh(hidden) * self.out).sum(-1)

    def weigh(self, gates: Tensor) -> Tensor:
        """Sum of the sizes of all weights, through their gates."""
        return (self.weight.abs() * gates[..., None]).sum()

    def slope(self, p: Float[Tensor, "row gene"], gates: Tensor) -> Float[Tensor, "gene gene"]:
        """Mean over rows of |df_j / dp_i|, with the sign of its mean."""
        n = p.shape[1]
        size, total = torch.zeros(n, n), torch.zeros(n, n)
        for row in p[:MOST_ROWS_OF_SLOPES]:
            jacobian = torch.func.jacrev(lambda q: self(q, gates))(row).detach().T
            size, total = size + jacobian.abs(), total + jacobian
        return size * total.sign() / min(len(p), MOST_ROWS_OF_SLOPES)

    def respond(self, activation: Tensor) -> Tensor:
        """Production in units of the usual one."""
        return 2 * torch.sigmoid(2 * activation)


FAMILIES: dict[str, type[Production]] = {
    "sigmoid": Sigmoid,
    "additive": Additive,
    "multiplicative": Multiplicative,
    "network": Network,
}
