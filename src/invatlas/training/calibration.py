"""What held-out cells say of how far calls can be trusted.

    a           minimises  - mean log sum_{d in A} p_a(d | x)             (see model/calls.py)
    s(x, d)     1 - p_a(d | x), how badly combination d fits a cell        (Sadinle et al.
                2019, JASA 114)
    n(x)        how new a cell is                                     (see novelty.py)

The means are over held-out cells of which something is known, A what they may be then: one
combination, or several where a label is missing or coarse. The scores s of the true combination,
where it is known, and n of all held-out cells are kept. A later cell is judged
by its rank among them (Vovk et al. 2005, Algorithmic Learning in a Random World).

Calls of a new donor are to be trusted, so the cells must be of donors nobody trained on. Where
there are at least 20 donors, training spares some. With fewer, a second fit spares a quarter of
them: its scores stand for those of the first, whose own held-out cells, drawn at random, give
the means and spreads of D and H only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from invatlas.data.minibatch import Cells
from invatlas.model.calls import call_parts, sharpen
from invatlas.model.invae import Model
from invatlas.training.alignment import FEWEST_ALIGNED, find_shift
from invatlas.training.novelty import LANDMARKS, landmark_distance, pooled, standardised_sum
from invatlas.training.posterior import Calls, call_cells, encode_cells
from invatlas.training.split import Split

FEWEST_CELLS = 20
EXPONENTS = (1e-3, 3.0)  # more than 0, so that the likeliest value of a covariate stays so
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Held-out cells of known biology, as the fitted model sees them.

    Attributes
    ----------
    exponents
        a_0, then a_c of each biological covariate c, shape (part,).
    expected_calibration_error, brier
        Of the joint calls of these cells, each judged by exponents the other half gave; None where
        too few have all labels.
    whole_donors
        Whether the cells are of donors that training never met.
    call_scores
        s of the true combination, shape (cell,); NaN where a label is missing or coarse.
    novelty_scores, pooled_scores
        n of each cell alone, and pooled over its neighbours, shape (cell,).
    called
        Combination each cell is called before the exponents, shape (cell,).
    landmarks
        z_I of reference cells that distances are taken to, shape (landmark, latent).
    standard
        Means (first row) and spreads of D and H, shape (2, 2).
    usual_shift
        Farthest that one of these donors lies from the reference (training/alignment.py); 0 where
        no donor has cells enough.
    """

    exponents: Float[Tensor, " part"]
    expected_calibration_error: float | None
    brier: float | None
    whole_donors: bool
    call_scores: Float[Tensor, " cell"]
    novelty_scores: Float[Tensor, " cell"]
    pooled_scores: Float[Tensor, " cell"]
    called: Int[Tensor, " cell"]
    landmarks: Float[Tensor, "landmark latent"]
    standard: Float[Tensor, "2 2"]
    usual_shift: float

    def novelty(self, z: Float[Tensor, "cell latent"], calls: Calls) -> Float[Tensor, " cell"]:
        """Score n of cells that were encoded and called, each alone."""
        return standardised_sum(_novelty_parts(z, calls, self.landmarks), self.standard)


@torch.inference_mode()
def calibrate(
    model: Model, cells: Cells, split: Split, generator: np.random.Generator
) -> Calibration | None:
    """Measure calls on the held-out cells whose biology is known, and distances on all of them.

    Returns None where something is known of fewer than 20.
    """
    chosen = np.sort(generator.permutation(split.train)[:LANDMARKS])
    landmarks = encode_cells(model, cells.source, "invariant", chosen).mean
    return _measure(model, cells, split.held_out, landmarks, None, split.covariate)


@torch.inference_mode()
def calibrate_on_donors(
    calibration: Calibration,
    second: Model,
    second_split: Split,
    cells: Cells,
    spared: Split,
    generator: np.random.Generator,
) -> Calibration:
    """Exchange the scores of a calibration for those of donors that a second fit spared.

    Parameters
    ----------
    calibration
        Of the model itself, on cells drawn at random.
    second, second_split
        A model fitted without the spared donors, and what it was trained on and watched.
    cells
        All cells.
    spared
        Holds out the cells of the spared donors.
    generator
        Chooses landmarks.
    """
    inner = calibrate(second, cells, second_split, generator)
    if inner is None:
        return calibration
    outer = _measure(
        second, cells, spared.held_out, inner.landmarks, inner.standard, spared.covariate
    )
    if outer is None:
        return calibration
    return replace(outer, landmarks=calibration.landmarks, standard=calibration.standard)


def _measure(
    model: Model,
    cells: Cells,
    rows: np.ndarray,
    landmarks: Tensor,
    standard: Tensor | None,
    donors: int | None,
) -> Calibration | None:
    """Measure held-out cells; ``donors`` is the technical column whose values they are all of."""
    prior = model.prior_invariant
    combinations, place = prior.joint()
    allowed = prior.allowed(torch.from_numpy(cells.biological[rows]))
    among = torch.zeros(len(rows), len(combinations)).index_add_(1, place, allowed.float()) > 0
    something = ~among.all(1)  # a combination the prior does not speak of tells nothing
    if something.sum() < FEWEST_CELLS:
        return None
    q = encode_cells(model, cells.source, "invariant", rows)
    calls = call_cells(q, prior)
    log_p = calls.log_p
    exponents = fit_exponents(log_p[something], combinations, among[something])
    score, error, brier = _judge(log_p, combinations, among, exponents)
    parts = _novelty_parts(q.mean, calls, landmarks)
    if standard is None:
        standard = torch.stack([parts.mean(0), parts.std(0).clamp_min(1e-6)])
    scores = standardised_sum(parts, standard)
    return Calibration(
        exponents,
        error,
        brier,
        donors is not None,
        score,
        scores,
        pooled(scores, q.mean),
        log_p.argmax(1),
        landmarks,
        standard,
        0.0 if donors is None else find_usual_shift(model, cells, rows, donors),
    )


def _judge(
    log_p: Float[Tensor, "cell combination"],
    combinations: Int[Tensor, "combination covariate"],
    among: Bool[Tensor, "cell combination"],
    exponents: Float[Tensor, " part"],
) -> tuple[Float[Tensor, " cell"], float | None, float | None]:
    """Score s of each cell, calibration error and Brier score, of the cells with all labels."""
    told, truth = among.sum(1) == 1, among.long().argmax(1)
    p = sharpen(log_p, combinations, exponents).exp()
    score = (1 - p.gather(1, truth[:, None])[:, 0]).where(told, torch.nan)
    if told.sum() < FEWEST_CELLS:
        return score, None, None
    crossed, truth = _cross_fitted(log_p[told], combinations, among[told]), truth[told]
    return score, expected_calibration_error(crossed, truth), brier_score(crossed, truth)


def find_usual_shift(model: Model, cells: Cells, rows: np.ndarray, column: int) -> float:
    """Farthest that any donor, a value of a technical column, lies from the reference."""
    codes = cells.technical[rows, column]
    values, times = np.unique(codes[codes >= 0], return_counts=True)
    donors = [rows[codes == value] for value in values[times >= FEWEST_ALIGNED]]
    return max((find_shift(model, cells.source, some)[1] for some in donors), default=0.0)


def _novelty_parts(z: Tensor, calls: Calls, landmarks: Tensor) -> Tensor:
    """D and H of each cell, side by side."""
    return torch.stack([landmark_distance(z, landmarks), calls.entropy], 1)


def fit_exponents(
    log_p: Float[Tensor, "cell combination"],
    combinations: Int[Tensor, "combination covariate"],
    among: Bool[Tensor, "cell combination"],
) -> Float[Tensor, " part"]:
    """Exponents that make what is known of some cells likeliest.

    ``among`` says which combinations a cell may have; with one for each the problem is convex.
    """
    parts = call_parts(log_p, combinations)

    def loss(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean of -log sum_{d in A} p_a(d | x), and its gradient."""
        logits = torch.einsum("pnd,p->nd", parts, torch.from_numpy(exponents))
        known = logits.masked_fill(~among, -torch.inf)
        value = (torch.logsumexp(logits, 1) - torch.logsumexp(known, 1)).mean()
        surplus = torch.softmax(logits, 1) - torch.softmax(known, 1)
        return float(value), (torch.einsum("pnd,nd->p", parts, surplus) / len(among)).numpy()

    bounds = [EXPONENTS] * len(parts)
    found = minimize(loss, np.ones(len(parts)), jac=True, method="L-BFGS-B", bounds=bounds)
    return torch.from_numpy(found.x).float()


def expected_calibration_error(
    p: Float[Tensor, "cell combination"], truth: Int[Tensor, " cell"]
) -> float:
    """Mean gap of confidence and accuracy over 15 bins of confidence (Naeini et al. 2015)."""
    confidence, called = p.max(1)
    right = (called == truth).to(p.dtype)
    place = (confidence * BINS).long().clamp_max(BINS - 1)
    gaps = torch.zeros(BINS, dtype=p.dtype).index_add_(0, place, confidence - right)
    return float(gaps.abs().sum() / len(p))


def brier_score(p: Float[Tensor, "cell combination"], truth: Int[Tensor, " cell"]) -> float:
    """Mean squared distance of the posterior from the truth (Brier 1950), 0 to 2."""
    of_truth = p.gather(1, truth[:, None])[:, 0]
    return float((p.square().sum(1) - 2 * of_truth + 1).mean())


def _cross_fitted(log_p: Tensor, combinations: Tensor, among: Tensor) -> Tensor:
    """Posteriors of each half of the cells, by the exponents of the other half."""
    p = torch.empty_like(log_p)
    for half in (0, 1):
        found = fit_exponents(log_p[1 - half :: 2], combinations, among[1 - half :: 2])
        p[half::2] = sharpen(log_p[half::2], combinations, found).exp()
    return p
