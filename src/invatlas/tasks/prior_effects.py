"""A Bayesian linear model of the prior means: what is known of combinations nobody measured.

    m_d = u_0 + sum_{a in d} u_a + sum_{a < b in d} w_ab      a, b: values that make a combination d
    u_0 ~ N(0, t_0)   u_a ~ N(0, t_c)   w_ab ~ N(0, t_w)      for each latent on its own
    y_d = m_d + N(0, r_d)      r_d = (o + mean_i 1 / n_di) / D_d

y_d is the mean of the cells of D_d donors with n_di cells each, and o the variance between donors,
all in units of the variance within combinations. With W the weights of the values (combination,
value; 0 or 1, or between two knots of a scale),

    Cov(m) = t_0 + sum_c t_c W_c W_c^T + t_w ((W W^T)^2 - W^2 (W^2)^T) / 2        squares by entry

in which the last bracket counts the pairs of values that two combinations share. The variances t
maximise the marginal likelihood of the measured y (MacKay 1992, Neural Computation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

MOST_FITTED = 400  # measured combinations that variances are learnt from
BOUNDS = (np.log(1e-4), np.log(1e4))

Weights = Sequence[np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Combinations that were measured.

    Attributes
    ----------
    weights
        W_c of each covariate, (combination, value).
    means
        y in units of the standard deviation within combinations, (combination, latent).
    noise
        r_d, (combination,).
    donor_variance
        o.
    """

    weights: Weights
    means: np.ndarray
    noise: np.ndarray
    donor_variance: float


@dataclass(frozen=True)
class Effects:
    """Variances t_0, t_c of each covariate, and t_w last: (latent, covariate + 2)."""

    variances: np.ndarray

    def covariance(self, a: Weights, b: Weights) -> np.ndarray:
        """Prior covariance of the means of two sets of combinations, for each latent."""
        return np.tensordot(self.variances, _kernels(a, b), 1)


def fit_effects(measured: Measured) -> Effects:
    """Learn how large effects and interactions are, from the combinations with least noise."""
    rows = np.argsort(measured.noise, kind="stable")[:MOST_FITTED]
    kernels = _kernels(*[[w[rows] for w in measured.weights]] * 2)
    noise = measured.noise[rows]
    return Effects(np.stack([_fit_one(y, kernels, noise) for y in measured.means[rows].T]))


def _fit_one(y: np.ndarray, kernels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Variances of one latent, y (combination,)."""

    def loss(log_t: np.ndarray) -> tuple[float, np.ndarray]:
        t = np.exp(log_t)
        factor = cho_factor(np.tensordot(t, kernels, 1) + np.diag(noise), lower=True)
        inverse, a = cho_solve(factor, np.eye(len(y))), cho_solve(factor, y)
        slope = (kernels * (inverse - np.outer(a, a))).sum((1, 2))
        return float(np.log(np.diag(factor[0])).sum() + 0.5 * y @ a), 0.5 * t * slope

    start = np.full(len(kernels), np.log(max(1e-2, y.var() / len(kernels))))
    found = minimize(loss, start, jac=True, bounds=[BOUNDS] * len(kernels), method="L-BFGS-B")
    return np.asarray(np.exp(found.x))


def predict(
    effects: Effects, measured: Measured, weights: Weights
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means (combination, latent) and covariances (latent, combination, combination)."""
    across = effects.covariance(weights, measured.weights)
    known = effects.covariance(measured.weights, measured.weights) + np.diag(measured.noise)
    left = effects.covariance(weights, weights)
    mean = np.zeros((len(left[0]), len(left)))
    for k, (k_across, k_known) in enumerate(zip(across, known, strict=True)):
        factor = cho_factor(k_known, lower=True)
        left[k] -= k_across @ cho_solve(factor, k_across.T)
        mean[:, k] = k_across @ cho_solve(factor, measured.means[:, k])
    return mean, left


def _kernels(a: Weights, b: Weights) -> np.ndarray:
    """What t_0, every t_c and t_w multiply, (covariate + 2, combination, combination)."""
    shared = np.stack([of_a @ of_b.T for of_a, of_b in zip(a, b, strict=True)])
    alike = sum(of_a**2 @ (of_b**2).T for of_a, of_b in zip(a, b, strict=True))
    pairs = (shared.sum(0) ** 2 - alike) / 2
    return np.concatenate([np.ones_like(pairs)[None], shared, pairs[None]])
