"""What cells are and what they are to become, as weights on the values an atlas knows.

    category v          1 on v
    number              linear in the two knots beside it
    "reference"         the share of cells each technical category had

The weight of a combination d is prod_c w_c[d_c]. What a cell is, and what it is to become, are the
sums of means and log-variances over combinations with these weights. Where a prior speaks of the
combinations of the reference alone and the wanted one is not among them, they are weighed such
that every value has its weight, with the least sum of squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from invatlas.data.columns import text_values
from invatlas.data.covariates import MISSING, REFERENCE, Covariate
from invatlas.data.knots import locate, read_numbers
from invatlas.errors import CovariateError
from invatlas.model.invae import Model
from invatlas.model.measured import Additive
from invatlas.model.priors import Prior, one_hot
from invatlas.model.transport import Transport
from invatlas.wording import suggest

TOLERANCE = 1e-4  # of a sum of weights that is 1 where all combinations are there

Change = Mapping[str, str | float]


@dataclass(frozen=True)
class Values:
    """What the cells are, each kind of cell once.

    Attributes
    ----------
    weights
        Of the values of each covariate, one array (kind, value) each.
    kind
        Kind of each cell, shape (cell,).
    known
        Whether the atlas knows what a cell is, shape (cell,).
    """

    weights: tuple[np.ndarray, ...]
    kind: np.ndarray
    known: np.ndarray


def read_values(
    covariates: Sequence[Covariate], obs: pd.DataFrame, called: pd.DataFrame | None = None
) -> Values:
    """Values of cells from obs; those missing there as they were called, where they were.

    A cell whose value the atlas does not know takes the call too, but does not count as known; nor
    does one whose call is none of the finer values that its coarse one stands for.
    """
    tables, codes, known = [], [], np.ones(len(obs), dtype=bool)
    for covariate in covariates:
        table, code = _look_up(covariate, obs)
        if called is not None:
            column = called[f"predicted_{covariate.name}"].rename(covariate.name).to_frame()
            guess, guessed = _look_up(covariate, column)
            code = np.where((table != 0).any(1)[code], code, len(table) + guessed)
            known &= ~_contradicts(covariate, obs, called[f"predicted_{covariate.name}"])
            table = np.vstack([table, guess])
        table, place = np.unique(table, axis=0, return_inverse=True)
        tables.append(table)
        codes.append(place.ravel()[code])
        known &= (table != 0).any(1)[codes[-1]] & ~find_strange(covariate, obs)
    kinds, kind = np.unique(np.stack(codes, 1), axis=0, return_inverse=True)
    weights = tuple(table[kinds[:, c]] for c, table in enumerate(tables))
    return Values(weights, kind.ravel(), known)


def apply_change(
    covariates: Sequence[Covariate],
    values: Values,
    change: Change,
    laboratories: Prior | None = None,
) -> Values:
    """Values of the same cells after a change.

    ``laboratories`` is the prior of technical covariates, of which ``reference`` may be asked for;
    where one has a value of that name, the value is meant.

    Raises
    ------
    CovariateError
        If a value is not one the atlas can be asked for.
    """
    weights = list(values.weights)
    for c, covariate in enumerate(covariates):
        if covariate.name not in change:
            continue
        wanted = str(change[covariate.name]).strip()
        if wanted in covariate.categories and not covariate.knots:
            row = np.eye(len(covariate.categories))[covariate.categories.index(wanted)]
        elif covariate.knots:
            row = _between_knots(np.array([_read_number(covariate, wanted)]), covariate)[0]
        elif wanted == REFERENCE and laboratories is not None:
            codes = laboratories.combinations[:, c].numpy()
            row = np.bincount(codes, laboratories.weights.numpy(), len(covariate.categories))
            row = row / row.sum()
        else:
            also = f", or {REFERENCE!r}" if laboratories is not None else ""
            raise CovariateError(
                f"{covariate.name} is to become {wanted!r}; the atlas knows "
                f"{', '.join(covariate.categories[:20])}{also}. Several of these are written A+B."
                f"{suggest(wanted, covariate.categories)}"
            )
        weights[c] = np.tile(row, (len(weights[c]), 1))
    return replace(values, weights=tuple(weights))


def technical_codes(
    covariates: Sequence[Covariate], codes: np.ndarray, change: Change
) -> np.ndarray:
    """Codes (cell, covariate) the decoder is told after a change: none where it is a mixture."""
    told = codes.copy()
    for c, covariate in enumerate(covariates):
        if covariate.name in change:
            told[:, c] = covariate.encode(pd.DataFrame({covariate.name: [change[covariate.name]]}))
    return told


@dataclass(frozen=True)
class Moves:
    """Where the latents of cells go.

    Attributes
    ----------
    transport
        Of each kind of cell.
    kind
        Kind of each cell, shape (cell,); -1 where nothing changes or the cell is not known.
    departures
        Directions (direction, latent) in which combinations leave the sum of their values, each
        with its standard deviation.
    unknown
        How much of that the target of each kind may do unseen, shape (kind, 1).
    error
        Standard error of how far the mean of each kind moves, shape (kind, latent).
    """

    transport: Transport
    kind: torch.Tensor
    departures: torch.Tensor
    unknown: torch.Tensor
    error: torch.Tensor

    def draw(self, generator: np.random.Generator) -> Moves:
        """The same moves, their targets as far off as they may be."""
        sides = (len(self.unknown), len(self.departures)), self.error.shape
        own, few = (torch.from_numpy(generator.standard_normal(side)).float() for side in sides)
        shift = self.unknown * (own @ self.departures) + self.error * few
        return replace(self, transport=self.transport.shifted(shift))


def split_moments(model: Model, values: Values) -> Additive:
    """Part what the cells of the reference are into what each value adds and the rest."""
    sizes = [part.shape[1] for part in values.weights]
    return model.measured.additive(one_hot(model.prior_invariant.combinations, sizes))


def move_biology(model: Model, added: Additive, before: Values, after: Values) -> Moves:
    """Moves of z_I, between what the cells of the reference are (model/measured.py)."""
    old, new, kind = _kinds(before, after)
    prior, sizes = model.prior_invariant, [part.shape[1] for part in before.weights]
    p, q = (_weigh_combinations(prior, side, sizes) for side in (old, new))
    unknown = 1 - added.coverage(q)
    source = added.weights(old, p)
    target = added.weights(new, q) + unknown * (p @ added.own)
    transport = Transport.between(model.measured.at(source), model.measured.at(target))
    error = model.measured.error(target - source)
    return Moves(transport, kind, added.departures, (2 * unknown).sqrt(), error)


def move_technique(model: Model, before: Values, after: Values) -> Moves:
    """Moves of z_S, between the priors of technical values."""
    old, new, kind = _kinds(before, after)
    prior, sizes = model.prior_spurious, [part.shape[1] for part in before.weights]
    given, has_value = prior(), one_hot(prior.combinations, sizes)
    blends = []
    for side in (old, new):
        weights = _weigh_combinations(prior, side, sizes)
        absent = (weights.sum(1) - 1).abs() > TOLERANCE
        weights[absent] = side[absent] @ torch.linalg.pinv(has_value)
        blends.append(given.blend(weights))
    transport = Transport.between(*blends)
    exact = torch.zeros_like(transport.source)
    return Moves(transport, kind, exact[:0], exact[:, :1], exact)


def _kinds(before: Values, after: Values) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of the values (kind, value) before and after, and the kind of each cell."""
    old, new = (np.concatenate(side.weights, axis=1) for side in (before, after))
    complete = np.all([part.any(1) for part in before.weights], axis=0)
    moves = (old != new).any(1) & complete
    kind = np.where(moves[before.kind], before.kind, -1)
    return torch.from_numpy(old).float(), torch.from_numpy(new).float(), torch.from_numpy(kind)


def _weigh_combinations(prior: Prior, weights: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Weights of the combinations (kind, combination): products over the covariates."""
    product = weights.new_ones(len(weights), len(prior.combinations))
    for c, part in enumerate(weights.split(list(sizes), 1)):
        product = product * part[:, prior.combinations[:, c]]
    return product


def _look_up(covariate: Covariate, obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Weights (text, value) of what a column says, none last, and which of it each cell has."""
    nothing = np.zeros((1, len(covariate.categories)))
    if covariate.name not in obs.columns:
        return nothing, np.zeros(len(obs), dtype=np.int64)
    code, texts = pd.factorize(text_values(obs, covariate.name))
    table = np.vstack([_weigh(covariate, pd.DataFrame({covariate.name: texts})), nothing])
    return table, code % len(table)


def _weigh(covariate: Covariate, obs: pd.DataFrame) -> np.ndarray:
    """Weights (row, value) of a column; all 0 where the value is unknown."""
    if covariate.knots:
        return _between_knots(read_numbers(obs[covariate.name]), covariate)
    codes = covariate.encode(obs)
    return np.asarray(np.eye(len(covariate.categories))[codes] * (codes >= 0)[:, None])


def _between_knots(numbers: np.ndarray, covariate: Covariate) -> np.ndarray:
    """Weights (number, knot) whose sum over the knots interpolates linearly; 0 where missing."""
    distance = np.abs(locate(numbers, covariate.knots)[:, None] - np.arange(len(covariate.knots)))
    return np.asarray(np.nan_to_num(np.clip(1 - distance, 0, None)))


def _beyond(covariate: Covariate, numbers: np.ndarray) -> np.ndarray:
    return np.asarray((numbers < covariate.knots[0]) | (numbers > covariate.knots[-1]))


def find_strange(covariate: Covariate, obs: pd.DataFrame) -> np.ndarray:
    """Which cells have a value of a column that the atlas never met."""
    if covariate.name not in obs.columns:
        return np.zeros(len(obs), dtype=bool)
    values = text_values(obs, covariate.name)
    if covariate.knots:
        return _beyond(covariate, read_numbers(values))
    met = [*covariate.categories, *(group for group, _ in covariate.groups)]
    return np.asarray(values.notna() & ~values.isin(met))


def _contradicts(covariate: Covariate, obs: pd.DataFrame, called: pd.Series) -> np.ndarray:
    """Which cells have a coarse value that does not stand for what they were called."""
    own = covariate.encode(obs)
    coarse, wrong = own < MISSING, np.zeros(len(obs), dtype=bool)
    call = pd.Categorical(called[coarse], categories=covariate.categories).codes
    wrong[coarse] = ~covariate.members[-2 - own[coarse], call]
    return wrong


def _read_number(covariate: Covariate, wanted: str) -> np.ndarray:
    low, high = covariate.knots[0], covariate.knots[-1]
    if wanted == REFERENCE:
        raise CovariateError(
            f"{covariate.name} is to become {wanted!r}, but it is a scale, which has none; name a "
            f"number from {low:g} to {high:g}."
        )
    number = read_numbers(pd.Series([wanted]))
    if np.isnan(number).any() or _beyond(covariate, number).any():
        raise CovariateError(
            f"{covariate.name} is to become {wanted!r}; the atlas knows numbers from {low:g} to "
            f"{high:g}."
        )
    return number
