"""How biology and laboratories cross, so that z_I need not say what the laboratory says.

    p(d | x, e)  ~  p(d | e) p(z_I | d)             what classification asks for while training
    p(d | e)     =  (n_ed + K p(d | f)) / (n_e + K)

Of the n_e cells of laboratory e, n_ed have biology d, expected ones where labels are coarse or
missing; f is the laboratory that e belongs to, as a plate to its batch, and p(d | f) is p(d) for
those that belong to none. Where most patients of one disease are in one batch, the batch tells the
disease. A classifier p(d) p(z_I | d) gains by having the batch in z_I; one that is given p(d | e),
where all that the batch says stands already, gains nothing (logit adjustment, Menon et al. 2021,
ICLR). Its logits get log p(d | e) - log p(d).

A technical covariate crosses a biological one if most cells are in values of it that have met
several values of the other. Only what crosses is told: given a donor, who has one disease, nothing
would be left to learn of diseases. The covariate that crosses most biological ones makes the
laboratories, together with others, those of many values first, as long as their combinations cross
the same. A laboratory whose cells all have a value that no mixed laboratory has is told nothing,
since that value could be learnt from no other.

A cell whose disease is missing has the one it is called. Calls err for whole donors, and comparing
donors within calls would make the errors last. So it is compared between batches, which cross the
disease, and not between donors, which do not; where nothing crosses the disease, between both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from invatlas.data.covariates import MISSING, Schema
from invatlas.data.crossing import Crossing, Level, number_rows
from invatlas.training.combinations import find_members, settle
from invatlas.training.strata import FEWEST_CELLS, count_comparable

K = 20.0
MOST = 0.5


def find_crossing(
    schema: Schema,
    biological: np.ndarray,
    technical: np.ndarray,
    combinations: np.ndarray,
    p: np.ndarray,
) -> Crossing:
    """Look at the codes of cells, (cell, covariate), with the prior's combinations and p(d)."""
    scale = [[bool(c.knots) for c in some] for some in (schema.technical, schema.biological)]
    crossed = np.zeros((technical.shape[1], biological.shape[1]), dtype=bool)
    for c in np.flatnonzero(~np.array(scale[0], dtype=bool)):
        crossed[c] = _crosses(technical[:, [c]], biological)
    crossed[:, scale[1]] = False
    apart = ~crossed & crossed.any(0)
    apart[scale[0]] = False
    columns, told = _choose_columns(schema, crossed, biological, technical)
    known = np.where(np.isin(np.arange(biological.shape[1]), told), biological, MISSING)
    found = Crossing([], len(combinations), apart)
    for end in range(1, len(columns) + 1):
        level = _tell(schema, columns[:end], known, technical, combinations, p, found)
        found = replace(found, levels=[*found.levels, level])
    return found


def _choose_columns(
    schema: Schema, crossed: np.ndarray, biological: np.ndarray, technical: np.ndarray
) -> tuple[list[int], list[int]]:
    """Technical covariates that make laboratories, coarse ones first, and what they tell of."""
    if not crossed.any():
        return [], []
    sizes = [len(covariate.categories) for covariate in schema.technical]
    first, *others = sorted(range(len(sizes)), key=lambda c: (-crossed[c].sum(), -sizes[c]))
    columns, told = [first], np.flatnonzero(crossed[first]).tolist()
    for c in others:
        together = technical[:, [*columns, c]]
        if crossed[c].any() and _crosses(together, biological[:, told]).all():
            columns.append(c)
    return sorted(columns, key=lambda c: sizes[c]), told


def _tell(
    schema: Schema,
    columns: list[int],
    biological: np.ndarray,
    technical: np.ndarray,
    combinations: np.ndarray,
    p: np.ndarray,
    above: Crossing,
) -> Level:
    """What the laboratories of some columns say, from what those above them do."""
    known = (technical[:, columns] >= 0).all(1) & (biological != MISSING).any(1)
    biological, technical = biological[known], technical[known]
    keys = number_rows(technical[:, columns], technical[:, columns].max(0) + 1)
    _, first, e = np.unique(keys, return_index=True, return_inverse=True)
    sets, of = np.unique(biological, axis=0, return_inverse=True)
    n = _count(e, of.ravel(), len(first))
    members, met = find_members(schema.biological, sets, combinations)
    log_ratio = above.expect(technical[first])
    for row, times in enumerate(n[:, met]):
        trust = K * p * np.exp(log_ratio[row])
        log_ratio[row] = np.log(settle(members, times, trust, trust) / p)
    for column in biological.T:
        log_ratio[_stands_apart(e, column, len(first))] = 0
    return Level(columns, technical[first][:, columns], log_ratio)


def _crosses(technical: np.ndarray, biological: np.ndarray) -> np.ndarray:
    """Whether most cells are in combinations of codes with several values, (biological,)."""
    known = (technical >= 0).all(1, keepdims=True) & (biological >= 0)
    return np.asarray(count_comparable(technical, biological) > MOST * known.sum(0))


def _stands_apart(e: np.ndarray, d: np.ndarray, n_laboratories: int) -> np.ndarray:
    """Laboratories that have one value, which no mixed one has."""
    has = _count(e[d >= 0], d[d >= 0], n_laboratories) >= FEWEST_CELLS
    mixed = has.sum(1) > 1
    return np.asarray(~mixed & has[:, ~has[mixed].any(0)].any(1))


def _count(e: np.ndarray, d: np.ndarray, n_laboratories: int) -> np.ndarray:
    """How many cells have each value in each laboratory, (laboratory, value)."""
    width = int(d.max(initial=-1)) + 1
    n = np.bincount(e * width + d, minlength=n_laboratories * width)
    return n.reshape(n_laboratories, width)
