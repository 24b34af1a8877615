"""Penalties on the dependence of z_I on e given d, each in the place of the one that ships.

energy       what ships: 2 E|X - Y| - E|X - X'| - E|Y - Y'|         (invatlas/model/independence.py)
mmd          E k(X, X') - 2 E k(X, Y) + E k(Y, Y'),  k of five widths (Gretton et al. 2012, JMLR 13)
hsic         E k(z, z') (1[e = e'] - p(e' | d)) over pairs of one class    (conditional HSIC,
             Fukumizu et al. 2008, NeurIPS; delta kernel on e, centred within d; times
             the number of values of e, so that many values weigh as much as few)
adversary    E log a(e | z, d) - log p(e | d), a trained against the encoder  (Ganin et al. 2016)
total_correlation   E log q(z_I, z_S) - log q(z_I) - log q(z_S), minibatch-weighted sampling
             (Chen et al. 2018, NeurIPS), as the published inVAE: not given d, and of z_S, not e

X are latents of class d in one laboratory, Y those elsewhere. All but the last two compare a cell
with the 32 + 32 remembered ones that the shipped penalty draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invatlas.model import objective
from invatlas.model.independence import COMPARED_CELLS, RecentCells, dependence, draw_partners
from invatlas.training import loop

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernel, in units of the spread of a class


def energy(z: Tensor, d: Tensor, e: Tensor, recent: RecentCells) -> Tensor:
    """What ships."""
    return dependence(z, d, e, recent)


def mmd(z: Tensor, d: Tensor, e: Tensor, recent: RecentCells) -> Tensor:
    """Maximum mean discrepancy within classes."""
    total = z.new_zeros(())
    for c in range(e.shape[1] if len(recent.z) else 0):
        drawn, enough = draw_partners(d, e[:, c], recent.d, recent.e[:, c])
        similar = _kernel(z, recent.z[drawn], enough) * enough[:, None]
        here, elsewhere = similar.chunk(2, 1)
        total = total + (here.mean(1) - elsewhere.mean(1)).mean()
    return total


def hsic(z: Tensor, d: Tensor, e: Tensor, recent: RecentCells) -> Tensor:
    """Conditional Hilbert-Schmidt independence criterion, frequent values of e weighing more."""
    total = z.new_zeros(())
    for c in range(e.shape[1] if len(recent.z) else 0):
        drawn, enough = draw_partners(d, e[:, c], recent.d, recent.e[:, c])
        same = (recent.d == d[:, None]) & (recent.e[:, c] >= 0)
        here = same & (recent.e[:, c] == e[:, c, None])
        share = here.sum(1) / same.sum(1).clamp_min(1)
        similar = _kernel(z, recent.z[drawn], enough) * enough[:, None]
        inside, outside = (part.mean(1) for part in similar.chunk(2, 1))
        # pairs alike in e have weight 1 - p and number p, the others -p and 1 - p
        total = total + (share * (1 - share) * (inside - outside)).mean() * e[:, c].unique().numel()
    return total


def _kernel(z: Tensor, partners: Tensor, enough: Tensor) -> Tensor:
    distance = (z[:, None] - partners).square().sum(2)
    spread = (distance.detach() * enough[:, None]).mean().clamp_min(1e-12)
    return torch.stack([torch.exp(-distance / (2 * width * spread)) for width in WIDTHS]).mean(0)


class Adversary:
    """A classifier of e from z_I and d, trained a step for each step of the encoder."""

    def __init__(self) -> None:
        self.network: nn.Module | None = None
        self.sizes: list[int] = []

    def __call__(self, z: Tensor, d: Tensor, e: Tensor, recent: RecentCells) -> Tensor:
        """Mutual information the classifier has found, in nats, summed over the columns of e."""
        if not len(recent.z):
            return z.new_zeros(())
        if self.network is None:
            self.sizes = [int(recent.e[:, c].max()) + 1 for c in range(e.shape[1])]
            self.n_classes = int(recent.d.max()) + 1
            self._build(z.shape[1])
        if torch.is_grad_enabled():
            for _ in range(2):
                some = torch.randint(len(recent.z), (COMPARED_CELLS,))
                loss = self._tell(recent.z[some], recent.d[some], recent.e[some])
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
        guess = sum(
            _entropy_given(recent.d, recent.e[:, c], self.n_classes) for c in range(e.shape[1])
        )
        return guess - self._tell(z, d, e)

    def _build(self, n_latents: int) -> None:
        wide = n_latents + self.n_classes
        self.network = nn.Sequential(
            nn.Linear(wide, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, sum(self.sizes)),
        )
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=2e-3)

    def _tell(self, z: Tensor, d: Tensor, e: Tensor) -> Tensor:
        told = nn.functional.one_hot(d.clamp_max(self.n_classes - 1), self.n_classes).float()
        parts = self.network(torch.cat([z, told], 1)).split(self.sizes, 1)
        total = z.new_zeros(())
        for c, part in enumerate(parts):
            known = (e[:, c] >= 0) & (e[:, c] < self.sizes[c])
            each = nn.functional.cross_entropy(part, e[:, c] * known, reduction="none")
            total = total + (each * known).sum() / known.sum().clamp_min(1)
        return total


def _entropy_given(d: Tensor, e: Tensor, n_classes: int) -> Tensor:
    joint = torch.zeros(n_classes, int(e.max()) + 2).index_put_(
        (d.clamp_max(n_classes - 1), e + 1), torch.ones(len(d)), accumulate=True
    )[:, 1:]
    p = joint / joint.sum()
    given = joint / joint.sum(1, keepdim=True).clamp_min(1)
    return -(p * given.clamp_min(1e-12).log()).sum()


def total_correlation(view_i: objective.LatentView, view_s: objective.LatentView) -> Tensor:
    """Minibatch-weighted total correlation between z_I and z_S; the number of cells cancels."""
    log_i, log_s = (
        _log_density(view.sample, view.posterior.mean, view.posterior.log_variance)
        for view in (view_i, view_s)
    )
    n = math.log(len(log_i))
    joint = (log_i + log_s).logsumexp(1) - n
    return (joint - (log_i.logsumexp(1) - n) - (log_s.logsumexp(1) - n)).mean()


def _log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log q(z_i | x_j) of every pair of cells, but for a constant."""
    distance = (z[:, None] - mean).square() * (-log_variance).exp()
    return -0.5 * (distance + log_variance).sum(2)


PENALTIES = {"energy": energy, "mmd": mmd, "hsic": hsic, "adversary": Adversary}


def install(name: str, invariant_latents: int) -> None:
    """Put a penalty on z_I in the place of the shipped one; z_S keeps that."""
    if name == "total_correlation":
        loop.objective_terms = _with_total_correlation
        return
    loop.objective_terms = objective.objective_terms
    chosen = PENALTIES[name]() if name == "adversary" else PENALTIES[name]

    def choose(z: Tensor, d: Tensor, e: Tensor, recent: RecentCells) -> Tensor:
        some = slice(COMPARED_CELLS)
        if z.shape[1] != invariant_latents:
            return dependence(z, d, e, recent)
        return chosen(z[some], d[some], e[some], recent)

    objective.dependence = choose


_terms = objective.objective_terms


def _with_total_correlation(explanation, minibatch, recent):
    terms, recent = _terms(explanation, minibatch, recent)
    terms["invariant_dependence"] = total_correlation(explanation.invariant, explanation.spurious)
    return terms, recent
