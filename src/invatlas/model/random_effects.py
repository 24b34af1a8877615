"""Effects of values that are draws from a population: random effects, empirical Bayes.

    row_k ~ N(0, diag tau_c^2)         row_k = (M_c[k], S_c[k]) of priors.py, k a value of c

Effects add up. A donor who belongs to one batch has its mean at M_batch + M_donor, which is
N(M_batch, tau_donor^2): what is nested needs no other equation than what is crossed, and a donor
with few cells shrinks to its batch, a batch to its platform, a platform to 0.

Rows are learnt as modes. Modes alone would make tau vanish, so a row counts with its variance too,

    q(row_k) = N(row_k, diag s_k^2)    s_k^-2 = tau_c^-2 + n_k i,    i = 1 / v for M, 1/2 for S

with n_k the cells of k and i what one cell tells (Fisher information). The term

    sum_k KL(q(row_k) || N(0, diag tau_c^2)) / n

is a cell's share; it is least in tau where tau_c^2 = mean_k (row_k^2 + s_k^2), the step of
expectation and maximisation for random effects (Laird and Ware 1982, Biometrics 38, 963). s_k
takes the other covariates as known, so the tau of a batch is a little small where donors vary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FIRST_SPREAD = (1.0, 0.3)  # tau of means and of log-variances


class RandomEffects(nn.Module):
    """The populations that the values of some covariates are drawn from.

    Attributes
    ----------
    populations
        Rows of each such covariate, all covariates below each other.
    cells
        n_k, how many cells of the reference have each value.
    log_spread
        log tau_c of each covariate in ``populations``.
    """

    cells: Tensor

    def __init__(
        self, populations: list[slice], cells: Float[Tensor, " value"], n_latents: int
    ) -> None:
        super().__init__()
        self.populations = populations
        self.register_buffer("cells", cells)
        first = torch.tensor(FIRST_SPREAD).log().repeat_interleave(n_latents)
        self.log_spread = nn.Parameter(first.repeat(len(populations), 1))

    @property
    def n_cells(self) -> Float[Tensor, ""]:
        """Cells of the reference: those of the covariate that most cells have a value of."""
        sums = [self.cells[rows].sum() for rows in self.populations]
        return torch.stack([self.cells.new_ones(()), *sums]).max()

    def divergence(
        self, effects: Float[Tensor, "value effect"], precision: Float[Tensor, "value latent"]
    ) -> Float[Tensor, ""]:
        """Nats a cell that departing from the populations costs; ``precision`` is 1 / v."""
        one_cell = torch.cat([precision, torch.full_like(precision, 0.5)], 1)
        told = (self.cells[:, None] * one_cell).detach()
        total = effects.new_zeros(())
        for rows, log_spread in zip(self.populations, self.log_spread, strict=True):
            variance = (2 * log_spread).exp()
            uncertainty = (1 / (1 / variance + told[rows])).detach()
            ratio = (effects[rows].square() + uncertainty) / variance
            total = total + 0.5 * (ratio - 1 + (variance / uncertainty).log()).sum()
        return total / self.n_cells
