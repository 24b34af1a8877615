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

from itertools import product

import numpy as np

from invatlas.data.covariates import MISSING, Schema
from invatlas.data.crossing import Crossing, Level, find_rows, number_rows
from invatlas.training.combinations import find_members, settle
from invatlas.training.strata import FEWEST_CELLS

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
    named = [b for b, covariate in enumerate(schema.biological) if not covariate.knots]
    places = [c for c, covariate in enumerate(schema.technical) if not covariate.knots]
    crossed = np.zeros((technical.shape[1], biological.shape[1]), dtype=bool)
    for c, b in product(places, named):
        crossed[c, b] = _crosses(technical[:, [c]], biological[:, b])
    apart = ~crossed & crossed.any(0)
    apart[[c for c in range(len(apart)) if c not in places]] = False
    columns, told = _choose_columns(schema, crossed, biological, technical)
    known = np.where(np.isin(np.arange(biological.shape[1]), told), biological, MISSING)
    levels: list[Level] = []
    for end in range(1, len(columns) + 1):
        level = _tell(schema, columns[:end], known, technical, combinations, p, levels[-1:])
        levels.append(level)
    return Crossing(levels, len(combinations), apart)


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
        if crossed[c].any() and all(_crosses(together, biological[:, b]) for b in told):
            columns.append(c)
    return sorted(columns, key=lambda c: sizes[c]), told


def _tell(
    schema: Schema,
    columns: list[int],
    biological: np.ndarray,
    technical: np.ndarray,
    combinations: np.ndarray,
    p: np.ndarray,
    above: list[Level],
) -> Level:
    """What the laboratories of some columns say, from what those above them do."""
    known = (technical[:, columns] >= 0).all(1) & (biological != MISSING).any(1)
    biological, technical = biological[known], technical[known]
    e, laboratories = _number(technical[:, columns])
    log_ratio = np.zeros((len(laboratories), len(combinations)), dtype=np.float32)
    for level in above:
        log_ratio = level.log_ratio[find_rows(laboratories[:, :-1], level.laboratories)]
    for row, cells in enumerate(np.split(np.argsort(e, kind="stable"), _ends(e))):
        trust = K * p * np.exp(log_ratio[row])
        members = find_members(schema.biological, biological[cells], combinations)
        log_ratio[row] = np.log(settle(*members, trust, trust) / p)
    for column in biological.T:
        log_ratio[_stands_apart(e, column, len(laboratories))] = 0
    return Level(columns, laboratories, log_ratio)


def _crosses(technical: np.ndarray, biological: np.ndarray) -> bool:
    """Whether most cells are in combinations of codes (cell, covariate) with several values."""
    known = (technical >= 0).all(1) & (biological >= 0)
    e, laboratories = _number(technical[known])
    n = _count(e, biological[known], len(laboratories))
    return bool(n[(n >= FEWEST_CELLS).sum(1) > 1].sum() > MOST * n.sum())


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


def _number(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the combinations of codes (cell, column), and their codes, in rising order."""
    keys = number_rows(codes, codes.max(0, initial=0) + 1)
    _, first, e = np.unique(keys, return_index=True, return_inverse=True)
    return e.ravel(), codes[first]


def _ends(e: np.ndarray) -> np.ndarray:
    """Where the cells of one laboratory end and those of the next begin, once they are sorted."""
    return np.cumsum(np.bincount(e))[:-1]
