"""What the laboratory of a cell says of its biology, so that z_I need not say it.

    p(d | x, e)  ~  p(d | e) p(z_I | d)             what classification asks for while training
    p(d | e)     =  (n_ed + K p(d)) / (n_e + K)     n_ed labelled cells of laboratory e have d

Where most patients of one disease are in one batch, the batch tells the disease. A classifier
p(d) p(z_I | d) gains by having the batch in z_I; one that is given p(d | e), where all that the
batch says stands already, gains nothing (logit adjustment, Menon et al. 2021, ICLR). What is added
to its logits is log p(d | e) - log p(d), d being the categories of a combination.

A technical covariate crosses a biological one if most cells are in values of it that have met
several values of the other. Laboratories are the combinations of technical covariates that cross
all of biology: given a donor, who has one disease, nothing would be left to learn of diseases. Nor
would there be where all cells of a laboratory have a value that no mixed laboratory has; its row is
0.

A cell whose disease is missing has the one it is called. Calls err for whole donors, and comparing
donors within calls would make the errors last. So it is compared between batches, where errors
mix, and not between donors that its disease does not cross, if there is anything else to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from invatlas.data.covariates import Schema

K = 20.0
MOST = 0.5  # of the cells
FEWEST_CELLS = 3  # of a value in a laboratory, for it to count there


@dataclass(frozen=True)
class Crossing:
    """Which technical covariates cross biology, and what laboratories say of it.

    Attributes
    ----------
    crossed
        Whether each technical covariate crosses each biological one, (technical, biological).
    columns
        The technical covariates whose combinations are the laboratories.
    laboratories
        Their codes, (laboratory, column).
    log_ratio
        log p(d | e) - log p(d), (laboratory + 1, combination); the last row, of laboratories that
        nobody knows, is 0.
    """

    crossed: np.ndarray
    columns: list[int]
    laboratories: np.ndarray
    log_ratio: np.ndarray

    def expect(self, technical: np.ndarray) -> np.ndarray:
        """What is added to the logits of cells with some codes, (cell, combination)."""
        is_of = (technical[:, None, self.columns] == self.laboratories).all(2)
        nobody = np.ones((len(technical), 1), dtype=bool)
        return np.asarray(self.log_ratio[np.concatenate([is_of, nobody], 1).argmax(1)])

    def doubt(self, biological: np.ndarray) -> np.ndarray:
        """Which technical covariates cells are not compared between, (cell, technical)."""
        return np.asarray((biological < 0) @ ~self.crossed.T)


def find_crossing(
    schema: Schema, biological: np.ndarray, technical: np.ndarray, combinations: np.ndarray
) -> Crossing:
    """Look at the codes of cells, (cell, covariate); combinations are those of the prior of z_I."""
    named = [b for b, covariate in enumerate(schema.biological) if not covariate.knots]
    places = [c for c, covariate in enumerate(schema.technical) if not covariate.knots]
    crossed = np.ones((technical.shape[1], biological.shape[1]), dtype=bool)
    for c, b in product(places, named):
        crossed[c, b] = _crosses(technical[:, [c]], biological[:, b])
    columns: list[int] = []
    for c in sorted(places, key=lambda c: -len(schema.technical[c].categories)):
        if all(_crosses(technical[:, [*columns, c]], biological[:, b]) for b in named):
            columns.append(c)
    if not columns:
        crossed[:] = True
    known = (biological[:, named] >= 0).all(1) & (technical[:, columns] >= 0).all(1)
    laboratories, e = _number(technical[known][:, columns])
    joint, place = _number(combinations[:, named])
    biology = biological[known][:, named]
    d = _number(np.concatenate([joint, biology]))[1][len(joint) :]
    log_ratio = _compare(_count(e, d, len(joint)))
    for column in biology.T:
        log_ratio[_stands_apart(_count(e, column))] = 0
    log_ratio = np.pad(log_ratio[:, place], ((0, 1), (0, 0)))
    return Crossing(crossed, columns, laboratories, log_ratio.astype(np.float32))


def _crosses(technical: np.ndarray, biological: np.ndarray) -> bool:
    """Whether most cells are in combinations of codes (cell, covariate) with several values."""
    known = (technical >= 0).all(1) & (biological >= 0)
    n = _count(_number(technical[known])[1], biological[known])
    return bool(n[(n >= FEWEST_CELLS).sum(1) > 1].sum() > MOST * n.sum())


def _stands_apart(n: np.ndarray) -> np.ndarray:
    """Laboratories with one value, which no mixed one has, from cells (laboratory, value)."""
    mixed = (n > 0).sum(1) > 1
    return np.asarray(~mixed & (n[:, ~(n[mixed] > 0).any(0)].sum(1) > 0))


def _compare(n: np.ndarray) -> np.ndarray:
    """Log p(d | e) - log p(d) from cells (laboratory, d); 0 where nobody has d."""
    p = n.sum(0) / max(n.sum(), 1)
    p_e = (n + K * p) / (n.sum(1, keepdims=True) + K)
    return np.asarray(np.log(np.where(p > 0, p_e, 1)) - np.log(np.where(p > 0, p, 1)))


def _count(e: np.ndarray, d: np.ndarray, values: int = 0) -> np.ndarray:
    """How many cells have each pair of codes (laboratory, value)."""
    n = np.zeros((e.max(initial=-1) + 1, max(values, d.max(initial=-1) + 1)))
    np.add.at(n, (e, d), 1)
    return n


def _number(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The combinations among codes (cell, covariate), and the number of each cell's."""
    met, number = np.unique(codes, axis=0, return_inverse=True)
    return met, number.ravel()
