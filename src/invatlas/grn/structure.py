"""Edges that are open or shut: gates of the hard concrete distribution (Louizos et al. 2018).

    s   = sigmoid((log u - log(1 - u) + log_odds) / beta),      u ~ Uniform(0, 1)
    g   = min(1, max(0, s (zeta - gamma) + gamma))               gate of an edge, in [0, 1]
    P(g > 0) = sigmoid(log_odds - beta log(-gamma / zeta))       what a penalty on edges counts

arXiv 1712.01312, equations 10 to 13, with their constants. A gate belongs to one edge (regulator,
target); a gene has no gate to itself.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SHIFT = BETA * math.log(-GAMMA / ZETA)


class Gates(nn.Module):
    """One gate for each pair of a regulator and a target.

    Parameters
    ----------
    allowed
        Which edges may be, bool (regulator, target).
    """

    allowed: Tensor

    def __init__(self, allowed: Tensor) -> None:
        super().__init__()
        self.register_buffer("allowed", allowed)
        self.log_odds = nn.Parameter(torch.zeros(allowed.shape))

    def sample(self, generator: torch.Generator) -> Float[Tensor, "regulator target"]:
        """Draw every gate once; gradients pass to the log odds."""
        u = torch.rand(self.log_odds.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        return self._stretch(torch.logit(u) + self.log_odds, BETA)

    def middle(self) -> Float[Tensor, "regulator target"]:
        """Gates without noise."""
        return self._stretch(self.log_odds, 1.0)

    def probability(self) -> Float[Tensor, "regulator target"]:
        """Chance that a gate is not shut."""
        return torch.sigmoid(self.log_odds - SHIFT) * self.allowed

    def _stretch(self, logits: Tensor, beta: float) -> Tensor:
        s = torch.sigmoid(logits / beta)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1) * self.allowed
