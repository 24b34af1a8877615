"""Genes averaged over cells, before a change and in every draw of what came after it.

    m_g         counts per 10,000 as measured, averaged over the cells
    m'_sg       the same in draw s of the model (prediction.py)
    d_sg        = log2 (m'_sg + c) / (m_g + c)
    d_g         ~ N(mean_s d_sg, (w sd_s d_sg)^2)

The cells are the same, so their scatter drops out of d. w was chosen on one simulated screen. What
no draw knows, such as a decoder that learnt too weak a response, is not in it: a false discovery
is a gene of which the model itself does not hold that it changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from invatlas.data.counts import CHUNK, CountSource, take_rows
from invatlas.tasks.gene_effects import expected_false_discoveries

PER = 1e4
ADDED = 0.1  # c
WIDENING = 1.6  # w: what the draws do not know, the decoder's errors
HALF_WIDTH = 1.645  # of an interval that holds 90 % of a normal distribution, in deviations


@dataclass(frozen=True)
class Averages:
    """Averages over some cells, in counts per 10,000.

    Attributes
    ----------
    before
        m, NaN of genes that were not counted, (gene,).
    after
        m', (draw, gene).
    noise
        Variance of m' for want of cells, (gene,).
    """

    before: np.ndarray
    after: np.ndarray
    noise: np.ndarray

    def describe(self, genes: pd.Index, threshold: float) -> pd.DataFrame:
        """Tabulate averages with 90 % intervals, and changes beyond a threshold in log2."""
        average = self.after.mean(0)
        deviation = np.sqrt(self.after.var(0, ddof=1) + self.noise) / (1 + average)
        low, high = (
            np.log1p(average) + side * HALF_WIDTH * WIDENING * deviation for side in (-1, 1)
        )
        change = np.log2((self.after + ADDED) / (self.before + ADDED))
        mean, sd = change.mean(0), WIDENING * change.std(0, ddof=1)
        least = np.maximum(sd, np.finfo(float).tiny)
        p = stats.norm.sf((threshold - mean) / least) + stats.norm.cdf((-threshold - mean) / least)
        rate = np.full(len(p), np.nan)
        rate[np.isfinite(p)] = expected_false_discoveries(p[np.isfinite(p)])
        return pd.DataFrame(
            {
                "measured_mean": self.before,
                "counterfactual_mean": average,
                "counterfactual_mean_low": np.expm1(low).clip(0),
                "counterfactual_mean_high": np.expm1(high),
                "log2_fold_change": mean,
                "log2_fold_change_sd": sd,
                "probability": p,
                "false_discovery_rate": rate,
            },
            index=genes,
        )


def average_counts(source: CountSource, chosen: np.ndarray) -> np.ndarray:
    """Counts per 10,000 averaged over the chosen cells, m (gene,)."""
    total = np.zeros(source.matrix.shape[1])
    for start in range(0, len(chosen), CHUNK):
        some = slice(start, start + CHUNK)
        counts = take_rows(source.matrix, some)
        total += (chosen[some] * PER / source.library_size[some]) @ counts
    average: np.ndarray = total / chosen.sum()
    return average
