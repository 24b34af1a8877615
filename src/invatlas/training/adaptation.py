"""Learn what new technical values do, and change nothing else.

    minimise  - E_q log p(x | z_I, z_S, e) + w KL(q(z_S | x) || p(z_S | e)) + w rows^2 / (2 n tau^2)

over what is said of new values alone, for the n cells that have one: a new value is a draw from
the population of the old ones (see random_effects.py), from which few cells take it less far.

The decoder's technical vectors, and the effects and factors of p(z_S | e), gain rows. Encoders,
biology and every row there was before keep their bits: their gradient is zero, and Adam moves
nothing without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from invatlas.data.minibatch import Cells, prefetched, shuffled
from invatlas.model.invae import Model
from invatlas.model.objective import divergence
from invatlas.processor import repeatable

STEPS = 300
MINIBATCH = 256
LEARNING_RATE = 0.02


@dataclass(frozen=True)
class Growth:
    """How many technical values there were and are.

    Attributes
    ----------
    before, after
        Number of categories of each technical covariate.
    """

    before: list[int]
    after: list[int]

    def kept(self, name: str, rows: int) -> Bool[Tensor, " row"] | None:
        """Which rows of a parameter were there before; None where the parameter does not grow."""
        stem, _, last = name.rpartition(".")
        if stem in ("decode.technical", "prior_spurious.factors"):
            return torch.arange(rows) < self.before[int(last)]
        if name.startswith("prior_spurious.") and name.endswith(("effects", "effects.cells")):
            sizes = zip(self.before, self.after, strict=True)
            return torch.cat([torch.arange(new) < old for old, new in sizes])
        return None


def grow(old: Model, new: Model, growth: Growth) -> None:
    """Give a larger model the weights of a smaller one, and its new rows a neutral start.

    A new value begins as what the others of its covariate have in common: no vector in the
    decoder, no effect in the prior.
    """
    before = old.state_dict()
    with torch.no_grad():
        for name, value in new.state_dict().items():
            kept = growth.kept(name, len(value)) if value.dim() else None
            if kept is not None:
                value.zero_()
                value[kept] = before[name]
            elif name in ("prior_spurious.combinations", "prior_spurious.weights"):
                value[: len(before[name])] = before[name]
            elif not name.startswith(("prior_spurious.admits_", "prior_spurious.has_value")):
                value.copy_(before[name])


@repeatable()
def adapt_rows(
    model: Model, cells: Cells, growth: Growth, divergence_weight: float, seed: int
) -> tuple[float, float]:
    """Fit the new rows to some cells.

    Returns
    -------
    Nats by which the counts of a cell were missed before and after, on average.
    """
    model.eval()
    growing = {}
    for name, parameter in model.named_parameters():
        kept = growth.kept(name, len(parameter))
        parameter.requires_grad_(kept is not None)
        if kept is not None:
            growing[parameter] = kept.view(-1, *[1] * (parameter.dim() - 1))
    before = _mean_reconstruction(model, cells)
    share = model.prior_spurious.random_effects.n_cells / cells.source.n_cells
    optimiser = torch.optim.Adam(list(growing), lr=LEARNING_RATE)
    rows = _draw_minibatches(cells.source.n_cells, np.random.default_rng(seed))
    for step, minibatch in enumerate(prefetched(rows, cells.read)):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        explanation = model(minibatch)
        loss = -explanation.counts.log_prob(minibatch.counts).mean()
        departure = divergence(explanation.spurious).mean() + share * explanation.random_effects
        loss = loss + divergence_weight * departure
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for parameter, kept in growing.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(kept, 0.0)
        optimiser.step()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    return before, _mean_reconstruction(model, cells)


def _draw_minibatches(n_cells: int, generator: np.random.Generator) -> list[np.ndarray]:
    drawn: list[np.ndarray] = []
    while len(drawn) < STEPS:
        drawn += shuffled(np.arange(n_cells), MINIBATCH, generator)
    return drawn[:STEPS]


@torch.no_grad()
def _mean_reconstruction(model: Model, cells: Cells) -> float:
    """Mean negative log-likelihood of up to 2,048 cells, the same and with the same noise."""
    rows = np.random.default_rng(0).permutation(cells.source.n_cells)[:2048]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        minibatch = cells.read(rows)
        return -float(model(minibatch).counts.log_prob(minibatch.counts).mean())
