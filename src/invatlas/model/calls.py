"""What a cell may be, given its counts alone.

    p(d | x)     ~  p(d) E_q[p(z_I | d)],   q = q(z_I | x)
    p_w(d | x)   ~  p(d | x) w(d) / p(d)                      where labels have frequencies w
    r(d | x)     =  p_w(d | x) / prod_c p_w(d_c | x)          what covariates say together only
    p_a(d | x)   ~  r(d | x)^a_0 prod_c p_w(d_c | x)^a_c      calibrated by the exponents a

An exponent is one over a temperature (Guo et al. 2017, ICML): 1 trusts the posterior, 0 ignores
it. A single one cannot serve a cell type that is sure and a disease that is not.

The frequencies w of an unlabelled query maximise its likelihood by expectation and
maximisation (Saerens et al. 2002, Neural Computation 14):  w(d) <- mean_x p_w(d | x). They are
estimated and exchanged before the posterior is flattened. That measured better (docs/decisions.md):
a flattened posterior leaves every cell some chance of being rare, which many undecided cells
together make a frequency of. But p_a then need not average to w, and where the posterior is far
too sure w is drawn towards what the reference has.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
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


def collapse(
    log_probabilities: Float[Tensor, "cell combination"],
    place: Int[Tensor, " combination"],
    size: int | None = None,
) -> Float[Tensor, "cell group"]:
    """Log of the sums over the combinations that have one place, such as those of a cell type.

    ``size`` is the number of places, one more than the largest by default.
    """
    top = log_probabilities.max(1, keepdim=True).values
    p = (log_probabilities - top).double().exp()
    sums = p.new_zeros(len(p), size or int(place.max()) + 1).index_add_(1, place, p)
    return (sums.clamp_min(1e-300).log() + top).to(log_probabilities.dtype)


def call_parts(
    log_probabilities: Float[Tensor, "cell combination"],
    combinations: Int[Tensor, "combination covariate"],
) -> Float[Tensor, "part cell combination"]:
    """Log r(d | x), then log p(d_c | x) for each covariate c; they sum to log p(d | x)."""
    log_p = log_probabilities.double()
    marginals = [collapse(log_p, codes)[:, codes] for codes in combinations.T]
    together = log_p - torch.stack(marginals).sum(0)
    return torch.stack([together, *marginals])


def sharpen(
    log_probabilities: Float[Tensor, "cell combination"],
    combinations: Int[Tensor, "combination covariate"],
    exponents: Float[Tensor, " part"],
) -> Float[Tensor, "cell combination"]:
    """Log p_a; the exponents are a_0, then a_c for each covariate c."""
    parts = call_parts(log_probabilities, combinations)
    logits = torch.einsum("pnd,p->nd", parts, exponents.double())
    return torch.log_softmax(logits, 1).to(log_probabilities.dtype)


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
