"""What training makes small, one named term at a time, in nats a cell.

    reconstruction         - E_q log p(x | z_I, z_S)
    invariant_divergence   - log sum_{d in A} p(d | A) exp(-KL(q(z_I | x) || p(z_I | d)))
    spurious_divergence    the same for z_S and e
    classification         - w log sum_{d in A} p(d | x, e)              (see calls.py and below)
    invariant_dependence   of z_I on e given d (see independence.py)
    spurious_dependence    of z_S on d given e
    score_matching         of what in a prior is fitted so (see exponential_family.py)
    shrinkage              squared interaction of the priors
    random_effects         of technical values from their populations (see random_effects.py)

p(d | x, e) is p(d | x) after what the laboratory e of a cell says (training/crossing.py).
A holds the combinations that agree with the values a cell has; a cell without any value
has them all, and its classification term is zero by itself. w is the mean of p(d)^(-1/2)
over what the cell may be, scaled to mean 1 over the labelled cells of the minibatch: half
way, on a log scale, between counting cells and counting classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invatlas.data.minibatch import Minibatch
from invatlas.model.calls import call_log_probabilities
from invatlas.model.independence import RecentCells, dependence, nobody
from invatlas.model.invae import Explanation, LatentView
from invatlas.model.priors import summed_out
from invatlas.settings import Settings


def divergence(view: LatentView) -> Float[Tensor, " cell"]:
    """Divergence of each posterior from the prior of the combinations its cell may have."""
    log_weight = view.prior.log_weight.expand(view.allowed.shape)
    evidence = summed_out(log_weight - view.prior.divergence(view.posterior), view.allowed)
    return summed_out(log_weight, view.allowed) - evidence


def classification(
    view: LatentView, logits: Float[Tensor, "cell combination"]
) -> Float[Tensor, ""]:
    """Class-balanced cross entropy of logits, over the labelled cells."""
    calls = torch.log_softmax(logits, 1)
    among_allowed = torch.softmax(calls.detach().masked_fill(~view.allowed, -torch.inf), 1)
    labelled = ~view.allowed.all(1)
    balance = among_allowed @ (-0.5 * view.prior.log_weight).exp() * labelled
    balance = balance * labelled.sum() / balance.sum().clamp_min(1e-12)
    return -(summed_out(calls, view.allowed) * balance).mean()


def mismatch(view: LatentView, combination: Int[Tensor, " cell"]) -> Float[Tensor, ""]:
    """Mean of what score matching makes small, each cell being of one combination."""
    return view.prior.mismatch(view.sample, combination).mean()


@dataclass(frozen=True)
class Recent:
    """Cells met lately, as each set of latents saw them."""

    invariant: RecentCells
    spurious: RecentCells

    def without(self, rows: Int[Tensor, " cell"]) -> Recent:
        """Those that are none of some cells."""
        others = self.invariant.find_others(rows)  # both sets of latents remember the same cells
        return Recent(self.invariant.at(others), self.spurious.at(others))


def nobody_yet(invariant_latents: int, spurious_latents: int, n_technical: int) -> Recent:
    """The memory before the first minibatch."""
    return Recent(nobody(invariant_latents, n_technical), nobody(spurious_latents, 1))


def objective_terms(
    explanation: Explanation, minibatch: Minibatch, recent: Recent
) -> tuple[dict[str, Float[Tensor, ""]], Recent]:
    """Mean of every term over the minibatch, and the memory with its cells added."""
    invariant, spurious = explanation.invariant, explanation.spurious
    calls = call_log_probabilities(invariant.posterior, invariant.prior)
    d = likeliest(calls, invariant)
    e = likeliest(spurious.prior.log_prob(spurious.posterior.mean), spurious)
    rows = torch.from_numpy(minibatch.rows)
    recent = recent.without(rows)
    stratum = invariant.strata[d]
    z_i = (invariant.embedding, stratum, minibatch.compared)
    z_s = (spurious.embedding, e, stratum[:, None])
    terms = {
        "reconstruction": -explanation.counts.log_prob(minibatch.counts).mean(),
        "invariant_divergence": divergence(invariant).mean(),
        "spurious_divergence": divergence(spurious).mean(),
        "classification": classification(invariant, calls + minibatch.expected),
        "invariant_dependence": dependence(*z_i, recent.invariant),
        "spurious_dependence": dependence(*z_s, recent.spurious),
        "score_matching": mismatch(invariant, d) + mismatch(spurious, e),
        "shrinkage": explanation.shrinkage,
        "random_effects": explanation.random_effects,
    }
    return terms, Recent(recent.invariant.joined(rows, *z_i), recent.spurious.joined(rows, *z_s))


def likeliest(
    log_terms: Float[Tensor, "cell combination"], view: LatentView
) -> Int[Tensor, " cell"]:
    """The likeliest combination among those that agree with what is known of a cell."""
    return log_terms.detach().masked_fill(~view.allowed, -torch.inf).argmax(1)


def weigh(
    terms: dict[str, Float[Tensor, ""]], settings: Settings, ramp: float = 1.0
) -> Float[Tensor, ""]:
    """Weighted sum of the terms; ``ramp`` (0 to 1) is how far the dependences already count."""
    weights = {
        "reconstruction": 1.0,
        "invariant_divergence": settings.divergence_weight,
        "spurious_divergence": settings.divergence_weight,
        "classification": settings.classification_weight,
        "invariant_dependence": settings.dependence_weight * ramp,
        "spurious_dependence": settings.spurious_dependence_weight * ramp,
        "score_matching": 1.0,
        "shrinkage": settings.shrinkage_weight,
        "random_effects": settings.divergence_weight,
    }
    values = torch.stack(list(terms.values()))
    return values @ values.new_tensor([weights[name] for name in terms])
