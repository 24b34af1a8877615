"""Expression with the technical side removed, summed over the cells of each sample.

    r_e(z_I)  = softmax f(z_I, m_e, e)             m_e the mean of p(z_S | e)
    r(z_I)    ~ exp mean_e log r_e(z_I)            e spread over p(e); rows sum to 1
    B_s       = sum_{i in s} l_i r(z_I i)          what biology alone would count
    E_s       = sum_{i in s} l_i softmax f(z_I i, z_S i, e_i)     what the model expects
    X_s       = sum_{i in s} x_i                   what was counted
    y_s       = log B_s / sum_i l_i + log (X_s + c) / (E_s + c)

A technical effect that is additive in the logits drops out of B, and the last term puts back
what the model missed: a decoder smooths over donors, so B alone would make them look more alike
than they are. With c counts added, a gene seldom counted stays near what the model says; small c
is bare counts, large c the model alone. Where a type is rare, z_I was learnt from the cells that
are compared, and what they have in common by chance is in B for all of their donors. So the mean
of y over the samples of a group is not trusted more than a Poisson count of the group would be:

    var(mean_{s in G} y_s) >= 1 / (c + sum_{s in G} X_s)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invatlas.atlas import Atlas
from invatlas.data.counts import CountSource, sum_counts
from invatlas.errors import DataError
from invatlas.processor import quick_products
from invatlas.training.posterior import encode_cells

TECHNICAL_VALUES = 16  # that expression is averaged over
ADDED_COUNTS = 5.0  # c
CHUNK = 512
LATENTS = ("invariant", "spurious")


@dataclass(frozen=True)
class Profiles:
    """Sums over the cells of each sample, each (sample, gene), and l summed (sample,)."""

    biological: np.ndarray
    expected: np.ndarray
    counted: np.ndarray
    library_size: np.ndarray

    def log_expression(self, added: float = ADDED_COUNTS) -> np.ndarray:
        """y, natural logarithm of shares without technique, shape (sample, gene)."""
        missed = np.log((self.counted + added) / (self.expected + added))
        log_y: np.ndarray = np.log(self.biological / self.library_size[:, None]) + missed
        return log_y

    def least_variance(self, group: np.ndarray, added: float = ADDED_COUNTS) -> np.ndarray:
        """Bound on the variance of the mean of y over some samples, (sample,) bool; (gene,)."""
        least: np.ndarray = 1 / (self.counted[group].sum(0) + added)
        return least


@torch.inference_mode()
def profile(
    atlas: Atlas, source: CountSource, technical: np.ndarray, sample: np.ndarray, n_samples: int
) -> Profiles:
    """Sum measured and technique-free expression over samples.

    Parameters
    ----------
    atlas
        A fitted atlas of counts.
    source
        Counts of its genes.
    technical
        Codes of the technical covariates, shape (cell, covariate).
    sample
        Sample of each cell, shape (cell,); -1 for none.
    n_samples
        How many there are.

    Raises
    ------
    DataError
        If the likelihood is Gaussian, whose mean is no expected count.
    """
    if atlas.settings.likelihood == "gaussian":
        raise DataError(
            "The atlas has a gaussian likelihood; expected counts take negative_binomial or "
            "poisson."
        )
    rows = np.flatnonzero(sample >= 0)
    z = {which: encode_cells(atlas.model, source, which, rows).mean for which in LATENTS}
    biological, expected = np.zeros((2, n_samples, len(atlas.genes)))
    with quick_products():
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            z_i, z_s = (z[which][start : start + CHUNK] for which in LATENTS)
            measured = atlas.model.decode(
                torch.cat([z_i, z_s], 1), torch.from_numpy(technical[some])
            )
            weighted = _deal(sample[some], n_samples) * source.library_size[some]
            biological += weighted @ decode_biology(atlas, z_i).numpy()
            expected += weighted @ measured.softmax(1).numpy()
    total = np.bincount(sample[rows], source.library_size[rows], n_samples)
    return Profiles(biological, expected, sum_counts(source, sample, n_samples), total)


def decode_biology(atlas: Atlas, z: Tensor) -> Tensor:
    """r(z_I), shares of the genes with the technical side averaged out, shape (cell, gene)."""
    prior = atlas.model.prior_spurious
    means = prior().mean
    mass = np.cumsum(prior.weights.numpy(), dtype=np.float64)
    spread = (np.arange(TECHNICAL_VALUES) + 0.5) / TECHNICAL_VALUES * mass[-1]
    chosen, times = np.unique(np.searchsorted(mass, spread), return_counts=True)
    log_r = torch.zeros(len(z), len(atlas.genes))
    for e, n in zip(torch.from_numpy(chosen), times, strict=True):
        z_s, codes = means[e], prior.combinations[e]
        both = torch.cat([z, z_s.expand(len(z), -1)], 1)
        log_r += n * atlas.model.decode(both, codes.expand(len(z), -1)).log_softmax(1)
    return (log_r / TECHNICAL_VALUES).softmax(1)


def _deal(sample: np.ndarray, n_samples: int) -> np.ndarray:
    """Which cells each sample has, (sample, cell)."""
    return np.asarray(np.arange(n_samples)[:, None] == sample, dtype=float)
