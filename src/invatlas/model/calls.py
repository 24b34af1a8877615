"""What a cell may be, given its counts alone.

    p(d | x)     ~  p(d) E_q[p(z_I | d)],   q = q(z_I | x)
    p_T(d | x)   ~  p(d | x)^(1 / T)                          calibrated (Guo et al. 2017, ICML)
    p_w(d | x)   ~  p_T(d | x) w(d) / p(d)                    where labels have frequencies w

The frequencies w of an unlabelled query maximise its likelihood by expectation and
maximisation (Saerens et al. 2002, Neural Computation 14):  w(d) <- mean_x p_w(d | x).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invatlas.model.priors import ConditionalGaussians, DiagonalGaussian

MOST_ROUNDS = 200
SETTLED = 1e-6


def call_log_probabilities(
    q: DiagonalGaussian, prior: ConditionalGaussians, temperature: float = 1.0
) -> Float[Tensor, "cell combination"]:
    """Log-posterior over combinations, with the label frequencies of the reference."""
    logits = prior.log_evidence(q) + prior.log_weight
    return torch.log_softmax(logits / temperature, 1)


def reweigh(
    log_probabilities: Float[Tensor, "cell combination"],
    log_weight: Float[Tensor, " combination"],
    new_log_weight: Float[Tensor, " combination"],
) -> Float[Tensor, "cell combination"]:
    """Exchange the label frequencies behind some posteriors; -inf forbids a combination."""
    return torch.log_softmax(log_probabilities + new_log_weight - log_weight, 1)


def estimate_frequencies(
    log_probabilities: Float[Tensor, "cell combination"],
    log_weight: Float[Tensor, " combination"],
    allowed: Bool[Tensor, " combination"],
) -> Float[Tensor, " combination"]:
    """Log-frequencies of the allowed combinations among unlabelled cells.

    One cell, spread as in the reference, is added: a combination nobody saw keeps a chance.
    """
    start = log_weight.masked_fill(~allowed, -torch.inf).log_softmax(0)
    frequencies = start
    for _ in range(MOST_ROUNDS):
        posterior = reweigh(log_probabilities, log_weight, frequencies).exp()
        mean = (posterior.sum(0) + start.exp()) / (len(posterior) + 1)
        moved = float((mean - frequencies.exp()).abs().max())
        frequencies = mean.log()
        if moved < SETTLED:
            break
    return frequencies
