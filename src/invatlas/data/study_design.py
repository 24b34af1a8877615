"""Which donors a simulated study has: disease, severity and batch, as correlated as wanted."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]
Codes = NDArray[np.intp]


def draw_design(
    rng: Generator, diseases: int, donors: int, batches: int, correlation: float
) -> tuple[Codes, Array, Codes]:
    """Give each donor a disease, a severity (spread over 0.3 to 1 if ill) and a batch.

    Donors move one by one from a balanced to a nested placement in batches. Of the placements
    passed that leave no batch empty, the one whose Cramer's V with disease is nearest to
    `correlation` is returned, so that V never falls as `correlation` rises.
    """
    disease = np.arange(donors) % diseases
    severity = np.zeros(donors, np.float32)
    place, nested = np.empty(donors, np.intp), disease % batches
    place[np.argsort(disease, kind="stable")] = np.arange(donors) % batches
    for code in range(diseases):
        (rows,) = np.nonzero(disease == code)
        if code > 0:
            severity[rows] = 0.3 + 0.7 * (rng.permutation(rows.size) + rng.random()) / rows.size
        if batches > diseases:
            nested[rows] = np.resize(np.arange(code, batches, diseases), rows.size)
    passed = [place.copy()]
    for donor in rng.permutation(donors):
        place[donor] = nested[donor]
        if np.unique(place).size == batches:
            passed.append(place.copy())
    distance = [abs(measure_association(disease, batch) - correlation) for batch in passed]
    return disease, severity, passed[int(np.argmin(distance))]


def measure_association(a: Codes, b: Codes) -> float:
    """Cramer's V of two codes: sqrt(chi^2 / (n min(rows - 1, columns - 1))); 0 if one is constant.

    Source: Cramer (1946), Mathematical Methods of Statistics, section 21.9.
    """
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1.0)
    if min(table.shape) < 2:
        return 0.0
    margins = np.outer(table.sum(axis=1), table.sum(axis=0))
    return float(np.sqrt(max(0.0, (table**2 / margins).sum() - 1) / (min(table.shape) - 1)))
