"""What the laboratory of a cell says of its biology, and what a cell may be compared between.

Laboratories stand in levels, coarse ones first: batches, then the plates of each batch. A cell is
told what the finest level says that knows its codes. How it comes to be known stands in
training/crossing.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Level:
    """Laboratories by the codes of some technical covariates.

    Attributes
    ----------
    columns
        Those covariates.
    laboratories
        Their codes, (laboratory, column), in rising order.
    log_ratio
        log p(d | e) - log p(d), (laboratory, combination).
    """

    columns: list[int]
    laboratories: np.ndarray
    log_ratio: np.ndarray

    def find(self, technical: np.ndarray) -> np.ndarray:
        """Number of the laboratory of cells with some codes (cell, technical); -1 for no one."""
        codes, sizes = technical[:, self.columns], self.laboratories.max(0) + 1
        inside = ((codes >= 0) & (codes < sizes)).all(1)
        key = number_rows(np.where(inside[:, None], codes, 0), sizes)
        keys = number_rows(self.laboratories, sizes)
        place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        return np.where(inside & (keys[place] == key), place, -1)


@dataclass(frozen=True)
class Crossing:
    """How biology and laboratories cross.

    Attributes
    ----------
    levels
        Laboratories, coarse ones first.
    n_combinations
        Combinations of biological values.
    apart
        Whether cells that lack a biological value are left out where cells of different technical
        values are compared, (technical, biological).
    """

    levels: list[Level]
    n_combinations: int
    apart: np.ndarray

    def expect(self, technical: np.ndarray) -> np.ndarray:
        """What cells with some codes are told, (cell, combination)."""
        told = np.zeros((len(technical), self.n_combinations), dtype=np.float32)
        for level in self.levels:
            place = level.find(technical)
            told[place >= 0] = level.log_ratio[place[place >= 0]]
        return told

    def leave_out(self, biological: np.ndarray) -> np.ndarray:
        """Which technical covariates cells are not compared by, (cell, technical)."""
        return np.asarray((biological < 0) @ self.apart.T)


def number_rows(codes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """One number for the codes (cell, column) of each cell, rising as rows do."""
    return np.asarray(np.ravel_multi_index(tuple(codes.T), tuple(sizes)))
