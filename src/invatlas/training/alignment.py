"""Move the encoder of z_I to cells counted under conditions that the reference lacks.

    y_l(x)    what batch normalisation l of the encoder is given for a cell x
    n_d       sum_x p(d | x)                        cells of combination d, called by their counts
    m_dl      sum_x p(d | x) y_l(x) / n_d           in the query;  M_dl  the same in the reference
    shift_l   sum_d sqrt(n_d) (m_dl - M_dl) / sum_d sqrt(n_d)

over the d that the reference has and n_d >= 1 cells of the query are called,

is added to the mean that the normalisation takes away: adaptive batch normalisation (Li et al.
2018, Pattern Recognition 80), but class by class, so that a query is not moved for having other
cell types than the reference. Before a first layer, which is linear in the log-normalised counts,
it takes away what a laboratory or a condition adds to every cell's expression. sqrt(n_d) is half
way, on a log scale, between counting cells and counting classes. Layers are moved in order, and
all of them again as the calls get better.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.data.counts import CountSource
from invatlas.model.calls import call_log_probabilities
from invatlas.model.invae import Model
from invatlas.model.priors import DiagonalGaussian
from invatlas.training.posterior import mean_hidden

ROUNDS = 3
FEWEST_ALIGNED = 30  # cells from which a shift can be told
WHICH = "invariant"


@torch.inference_mode()
def find_shift(
    model: Model, source: CountSource, rows: np.ndarray | None = None
) -> tuple[Float[Tensor, "layer hidden"], float]:
    """Find what some cells, by default all, have beyond the reference before each normalisation.

    Returns
    -------
    Shift of each layer, and their root mean square in units of the spread that is normalised.
    """
    encode, given, measured = model.encode.alone(WHICH), model.prior_invariant(), model.measured
    means, variances = zip(*encode.taken_away(), strict=True)
    before = [mean.clone() for mean in means]
    shift = torch.zeros(len(means), encode.hidden)

    def call(_: slice, q: DiagonalGaussian) -> Tensor:
        return call_log_probabilities(q, given).exp()

    for _ in range(ROUNDS):
        for layer, mean in enumerate(means):
            _, n, hidden = mean_hidden(encode, source, call, rows)
            weight = n.sqrt() * (n >= 1) * (measured.cells > 0)
            moved = (hidden[:, layer] - measured.hidden[:, layer]) * weight[:, None]
            shift[layer] = moved.sum(0) / weight.sum().clamp_min(1)
            mean.copy_(before[layer] + shift[layer])
    return shift, float((shift.square() / torch.stack(variances)).mean().sqrt())


@torch.inference_mode()
def apply_shift(model: Model, shift: Float[Tensor, "layer hidden"]) -> None:
    """Move the means that the encoder of z_I takes away, in place."""
    place = list(model.encode.heads).index(WHICH)
    for (mean, _), by in zip(model.encode.taken_away(), shift, strict=True):
        mean.view(-1, shift.shape[1])[place].add_(by)
