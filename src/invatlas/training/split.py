"""Which cells are kept aside to tell when training should stop.

Cells of one donor are not independent, so whole donors are held out where there are at
least 20 of them; with fewer, a donor is too much to lose and cells are drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ENOUGH_DONORS = 20
ENOUGH_CELLS = 20


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to watch.

    Attributes
    ----------
    train, held_out
        Positions of cells; nothing is held out where there are too few.
    covariate
        Technical covariate whose whole values were held out, or None for single cells.
    """

    train: np.ndarray
    held_out: np.ndarray
    covariate: int | None


def split_cells(
    biological: np.ndarray, technical: np.ndarray, share: float, generator: np.random.Generator
) -> Split:
    """Hold out about ``share`` of the cells.

    The technical covariate with the most values (the donor, as a rule) decides. A donor
    without whom a biological value would vanish from training stays.
    """
    n_cells = len(biological)
    everything = np.arange(n_cells)
    n_held = round(share * n_cells)
    if n_held < ENOUGH_CELLS:
        return Split(everything, everything[:0], None)
    if max(_count_values(technical), default=0) >= ENOUGH_DONORS:
        spared = split_donors(biological, technical, share, generator)
        if spared is not None:
            return spared
    order = generator.permutation(n_cells)
    return Split(np.sort(order[n_held:]), np.sort(order[:n_held]), None)


def split_donors(
    biological: np.ndarray, technical: np.ndarray, share: float, generator: np.random.Generator
) -> Split | None:
    """Hold out whole donors, about ``share`` of the cells, however few donors there are.

    None where no donor can be spared.
    """
    sizes = _count_values(technical)
    if not sizes:
        return None
    covariate = int(np.argmax(sizes))
    n_held = round(share * len(biological))
    held = _held_out_values(biological, technical[:, covariate], n_held, generator)
    if held.sum() < ENOUGH_CELLS:
        return None
    return Split(np.flatnonzero(~held), np.flatnonzero(held), covariate)


def _count_values(technical: np.ndarray) -> list[int]:
    return [len(np.unique(codes[codes >= 0])) for codes in technical.T]


def _held_out_values(
    biological: np.ndarray, codes: np.ndarray, n_held: int, generator: np.random.Generator
) -> np.ndarray:
    held = np.zeros(len(codes), dtype=bool)
    needed = [set(np.unique(column[column >= 0])) for column in biological.T]
    for value in generator.permutation(np.unique(codes[codes >= 0])):
        candidate = held | (codes == value)
        if candidate.sum() > 1.5 * n_held:
            continue
        kept = [set(np.unique(column[~candidate])) for column in biological.T]
        if all(need <= keep for need, keep in zip(needed, kept, strict=True)):
            held = candidate
        if held.sum() >= n_held:
            break
    return held
