"""Effects on many genes from few donors: variances and effects both learn from all genes.

    y_g ~ N(b_g, v s_g^2)        b effect, v = 1 / n_1 + 1 / n_2, d degrees of freedom
    s_g^2 | sigma_g^2 ~ sigma_g^2 chi^2_d / d,   1 / sigma_g^2 ~ chi^2_{d_0} / (d_0 s_0^2)
    b_g ~ sum_k pi_k N(0, tau_k^2)

The variances are moderated (Smyth 2004, Statistical Applications in Genetics and Molecular
Biology 3, equations 6 to 10): s~^2 = (d s^2 + d_0 s_0^2) / (d + d_0), and given b,
(y - b) / (s~ sqrt v) is taken to have a t distribution with d degrees of freedom. There it would
have d + d_0, were the genes independent; but a donor who is unlike the others is so in many
genes at once. The weights pi are those that make all effects likeliest (Stephens 2017,
Biostatistics 18), so few donors or few true effects make every probability smaller. Integrals
over b are sums over a grid.

    P_g   = P(|b_g| > threshold | y)
    FDR_j = mean over the j genes of largest P of (1 - P)      posterior expected

(Mueller et al. 2004, JASA 99; Boyeau et al. 2023, PNAS 120, for single cells).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

SCALES = 16
GRID = 801
FINEST_GRID = 6401
ROUNDS = 200
MOST_DEGREES = 2000.0
NULL_PENALTY = 10.0  # genes of a Dirichlet prior: pi_0 is not estimated too small


@dataclass(frozen=True)
class Effects:
    """What is known of each effect, each (gene,).

    Attributes
    ----------
    estimate, error
        y and s~ sqrt v.
    mean, sd
        Of b given all genes.
    probability
        P(|b| > threshold).
    """

    estimate: np.ndarray
    error: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    probability: np.ndarray


def moderate(variance: np.ndarray, degrees: float) -> np.ndarray:
    """Moderated variances s~^2, shape (gene,)."""
    s2 = np.maximum(variance, 1e-12)
    e = np.log(s2) - digamma(degrees / 2) + np.log(degrees / 2)
    excess = e.var(ddof=1) - polygamma(1, degrees / 2)
    if excess <= polygamma(1, MOST_DEGREES / 2):
        return np.full_like(s2, np.exp(e.mean()))
    least, most = 1e-3, MOST_DEGREES / 2
    d_0 = 2 * brentq(lambda half: polygamma(1, half) - excess, least, most)
    s_0 = np.exp(e.mean() + digamma(d_0 / 2) - np.log(d_0 / 2))
    moderated: np.ndarray = (degrees * s2 + d_0 * s_0) / (degrees + d_0)
    return moderated


def shrink(estimate: np.ndarray, error: np.ndarray, degrees: float, threshold: float) -> Effects:
    """Posterior of each effect, given estimates and standard errors (gene,) of all."""
    top = 1.5 * max(np.abs(estimate).max(), 2 * threshold, 3 * np.median(error))
    fine = 8 * top / max(threshold, np.finfo(float).tiny)  # four points on the way to it
    b = np.linspace(-top, top, 2 * int(np.clip(fine, GRID, FINEST_GRID) // 2) + 1)
    tau = np.concatenate(
        [
            [b[1] - b[0]],
            np.geomspace(max(2 * (b[1] - b[0]), 0.1 * np.median(error)), top, SCALES - 1),
        ]
    )
    prior = np.exp(-0.5 * (b / tau[:, None]) ** 2)
    prior /= prior.sum(1, keepdims=True)
    log_l = stats.t.logpdf((estimate[:, None] - b) / error[:, None], degrees)
    likelihood = np.exp(log_l - log_l.max(1, keepdims=True))
    evidence = likelihood @ prior.T
    pi = np.full(SCALES, 1 / SCALES)
    for _ in range(ROUNDS):
        counts = (evidence * pi / (evidence @ pi)[:, None]).sum(0)
        counts[0] += NULL_PENALTY
        pi = counts / counts.sum()
    posterior = likelihood * (pi @ prior)
    posterior /= posterior.sum(1, keepdims=True)
    mean = posterior @ b
    sd = np.sqrt(np.maximum(posterior @ b**2 - mean**2, 0))
    return Effects(estimate, error, mean, sd, posterior[:, np.abs(b) > threshold].sum(1))


def expected_false_discoveries(probability: np.ndarray) -> np.ndarray:
    """Posterior expected FDR of the list that ends with each gene, shape (gene,)."""
    order = np.argsort(-probability, kind="stable")
    rate = np.empty(len(order))
    rate[order] = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    return rate
