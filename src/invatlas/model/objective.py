"""What training makes small, one named term at a time, in nats a cell.

    reconstruction         - E_q log p(x | z_I, z_S)
    invariant_divergence   - log sum_{d in A} p(d | A) exp(-KL(q(z_I | x) || p(z_I | d)))
    spurious_divergence    the same for z_S and e
    classification         - w log sum_{d in A} p(d | x),  p(d | x) ~ p(d) E_q p(z_I | d)
    dependence             of z_I on e given d (see independence.py)
    shrinkage              squared interaction of the priors

A holds the combinations that agree with the values a cell has; a cell without any value
has them all, and its classification term is zero by itself. w is the mean of p(d)^(-1/2)
over what the cell may be, scaled to mean 1 over the labelled cells of the minibatch: half
way, on a log scale, between counting cells and counting classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.data.minibatch import Minibatch
from invatlas.model.independence import RecentCells, dependence
from invatlas.model.invae import Explanation, LatentView
from invatlas.model.priors import summed_out
from invatlas.settings import Settings


def divergence(view: LatentView) -> Float[Tensor, " cell"]:
    """Divergence of each posterior from the prior of the combinations its cell may have."""
    log_weight = view.prior.log_weight.expand(view.allowed.shape)
    evidence = summed_out(log_weight - view.prior.divergence(view.posterior), view.allowed)
    return summed_out(log_weight, view.allowed) - evidence


def call_log_probabilities(view: LatentView) -> Float[Tensor, "cell combination"]:
    """Log-posterior over combinations, given the counts alone."""
    logits = view.prior.log_evidence(view.posterior) + view.prior.log_weight
    return torch.log_softmax(logits, 1)


def classification(view: LatentView, calls: Float[Tensor, "cell combination"]) -> Float[Tensor, ""]:
    """Class-balanced cross entropy of the prior's posterior, over the labelled cells."""
    among_allowed = torch.softmax(calls.detach().masked_fill(~view.allowed, -torch.inf), 1)
    labelled = ~view.allowed.all(1)
    balance = among_allowed @ (-0.5 * view.prior.log_weight).exp() * labelled
    balance = balance * labelled.sum() / balance.sum().clamp_min(1e-12)
    return -(summed_out(calls, view.allowed) * balance).mean()


def objective_terms(
    explanation: Explanation, minibatch: Minibatch, recent: RecentCells
) -> tuple[dict[str, Float[Tensor, ""]], RecentCells]:
    """Mean of every term over the minibatch, and the memory with its cells added."""
    invariant = explanation.invariant
    calls = call_log_probabilities(invariant)
    called = calls.detach().masked_fill(~invariant.allowed, -torch.inf).argmax(1)
    cells = (invariant.posterior.mean, called, minibatch.technical)
    terms = {
        "reconstruction": -explanation.counts.log_prob(minibatch.counts).mean(),
        "invariant_divergence": divergence(invariant).mean(),
        "spurious_divergence": divergence(explanation.spurious).mean(),
        "classification": classification(invariant, calls),
        "dependence": dependence(*cells, recent),
        "shrinkage": explanation.shrinkage,
    }
    return terms, recent.joined(*cells)


def weigh(
    terms: dict[str, Float[Tensor, ""]], settings: Settings, ramp: float = 1.0
) -> Float[Tensor, ""]:
    """Weighted sum of the terms; ``ramp`` (0 to 1) is how far the dependence already counts."""
    weights = {
        "reconstruction": 1.0,
        "invariant_divergence": settings.divergence_weight,
        "spurious_divergence": settings.divergence_weight,
        "classification": settings.classification_weight,
        "dependence": settings.dependence_weight * ramp,
        "shrinkage": settings.shrinkage_weight,
    }
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
