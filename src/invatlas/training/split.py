"""Which cells are kept aside to tell when training should stop.

Cells of one donor are not independent, so whole donors are held out where there are at
least 20 of them; with fewer, a donor is too much to lose and cells are drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from invatlas.settings import Settings

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


def draw_split(biological: np.ndarray, technical: np.ndarray, settings: Settings) -> Split:
    """Choose the cells a fit holds out, from codes in which scales are missing."""
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    return split_cells(biological, technical, settings.held_out, np.random.default_rng(seed))


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
    if not max(sizes, default=0):
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
    """Mask (cell,) of the donors held out, about ``n_held`` cells.

    In random order, but first those that bring biological values no donor held out has.
    """
    cells = np.bincount(codes[codes >= 0])
    has = np.concatenate([_occurrence(codes, column) for column in biological.T], axis=1)
    needed, held = has.any(0), np.zeros(len(cells), dtype=bool)
    waiting = [int(donor) for donor in generator.permutation(np.flatnonzero(cells))]
    while waiting:
        brought = (has[waiting] & ~has[held].any(0)).sum(1)
        if cells[held].sum() >= n_held and not brought.any():
            break
        donor = waiting.pop(int(np.argmax(brought)))
        candidate = held.copy()
        candidate[donor] = True
        few = cells[candidate].sum() <= 1.5 * n_held
        if few and (has[(cells > 0) & ~candidate].any(0) == needed).all():
            held = candidate
    return np.asarray((codes >= 0) & held[codes])


def _occurrence(codes: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Which values of a column each donor has, shape (donor, value)."""
    known = (codes >= 0) & (column >= 0)
    found = np.zeros((codes.max() + 1, max(0, column.max()) + 1), dtype=bool)
    found[codes[known], column[known]] = True
    return found
