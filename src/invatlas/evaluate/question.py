"""A question to the latents: which value of a covariate a cell has, beyond what is given anyway.

Within each stratum s (a combination of what is given) the balanced accuracy of predictions is the
mean recall of the values; the score is the mean of the strata::

    score(t, p) = mean_s mean_v  #(t = v, p = v, stratum = s) / #(t = v, stratum = s)

Its null distribution comes from exchanges of t that leave everything true but the tie between t
and the latents (Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 1):

- a value that whole donors carry (disease, batch) is exchanged between donors, within what is
  given of a donor; cells of one donor are no independent witnesses of it;
- a value that varies within donors (cell type) is exchanged between cells of one donor;
- the donor itself is exchanged between cells of one stratum.

Predictions for a cell are learnt from other donors, or from other cells where the donor is asked
for: nobody can know a donor never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.special import gammaln

from invatlas.errors import DataError

FEWEST_CELLS = 8  # of a value in a stratum
MOST_STRATA = 60


class UnanswerableError(DataError):
    """The cells at hand cannot answer a question; the message says why."""


@dataclass(frozen=True)
class Question:
    """Which value of a covariate a cell has, with all that a fair answer needs.

    Attributes
    ----------
    rows
        Cells that are asked, as positions (cell,).
    t
        Code of the value of each of them (cell,).
    stratum
        Code of what is given (cell,).
    carrier
        What carries a value as a whole (cell,): codes of donors, or of the cells themselves.
    block
        Carriers of the same block are exchangeable (carrier,).
    fold
        A cell is judged by what was learnt from other folds (cell,).
    apart
        Cells with the same code never learn from each other (cell,).
    carriers
        What the carriers are called.
    note
        What a reader should know of it.
    """

    rows: np.ndarray
    t: np.ndarray
    stratum: np.ndarray
    carrier: np.ndarray
    block: np.ndarray
    fold: np.ndarray
    apart: np.ndarray
    carriers: str
    note: str

    def score(self, t: np.ndarray, predicted: np.ndarray) -> float:
        """Balanced accuracy within strata, of the values with enough cells; NaN without any."""
        total = self._tally(t, np.ones(len(t)))
        recall = self._tally(t, predicted == t) / np.maximum(total, 1)
        counted = total >= FEWEST_CELLS
        several = counted.sum(1) >= 2
        by_stratum = (recall * counted).sum(1)[several] / counted.sum(1)[several]
        return float(by_stratum.mean()) if several.any() else float("nan")

    @property
    def scored(self) -> np.ndarray:
        """Number of values that are told apart in each stratum that counts (stratum,)."""
        values = (self._tally(self.t, np.ones(len(self.t))) >= FEWEST_CELLS).sum(1)
        return np.asarray(values[values >= 2])

    @property
    def arrangements(self) -> float:
        """In how many ways the values can be dealt to their carriers."""
        value = self.t[self._first]
        both = np.unique(np.c_[self.block, value], axis=0, return_counts=True)[1]
        each = np.bincount(self.block)
        return float(np.exp(min(gammaln(each + 1).sum() - gammaln(both + 1).sum(), 700.0)))

    def exchange(self, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Deal the values anew within blocks; each takes its fold along, as folds know values."""
        first, n = self._first, len(self.block)
        place, order = np.argsort(self.block, kind="stable"), np.empty(n, dtype=np.int64)
        order[place] = np.lexsort((generator.random(n), self.block))
        source = first[order][self.carrier]
        return self.t[source], self.fold[source]

    def shuffle(self, generator: Generator) -> np.ndarray:
        """Draw a permutation of the cells within strata."""
        n, order = len(self.t), np.empty(len(self.t), dtype=np.int64)
        order[np.argsort(self.stratum, kind="stable")] = np.lexsort(
            (generator.random(n), self.stratum)
        )
        return order

    @property
    def _first(self) -> np.ndarray:
        return np.unique(self.carrier, return_index=True)[1]

    def _tally(self, t: np.ndarray, weights: np.ndarray) -> np.ndarray:
        shape = (int(self.stratum.max()) + 1, int(self.t.max()) + 1)
        place = np.ravel_multi_index((self.stratum, t), shape)
        tally = np.bincount(place, weights=weights.astype(float), minlength=shape[0] * shape[1])
        return np.asarray(tally).reshape(shape)


def ask(
    labels: pd.DataFrame,
    covariate: str,
    given: Sequence[str],
    donor: str | None,
    folds: int,
    generator: Generator,
) -> Question:
    """Ask for a covariate within strata of others, judged on donors nobody learnt from.

    Parameters
    ----------
    labels
        Values of the covariates (cell, covariate) as text, missing ones as None.
    covariate
        The one asked for.
    given
        Those whose combinations are the strata.
    donor
        The column of donors; cells stand for themselves without one.
    folds
        Into how many parts donors, or cells, are dealt.
    generator
        Of the folds.

    Raises
    ------
    UnanswerableError
        If too few cells, values or donors are left.
    """
    known = labels[list(dict.fromkeys([covariate, *given, *([donor] if donor else [])]))]
    known = known.set_axis(pd.RangeIndex(len(known))).dropna()
    by_donor = donor is not None and donor != covariate
    if known.empty or known[covariate].nunique() < 2:
        raise UnanswerableError(
            f"{known[covariate].nunique()} value of {covariate} in {len(known)} cells "
            f"with all values needed"
        )
    carried = by_donor and bool((known.groupby(donor)[covariate].nunique() == 1).all())
    kept = _keep(known, covariate, given, donor if by_donor else None, carried)
    stratum, t = _code(kept, given), _code(kept, [covariate])
    unit = _code(kept, [donor]) if by_donor else np.arange(len(kept))
    first = np.unique(unit, return_index=True)[1]
    if carried:
        fold = deal(t[first], folds, generator)[unit]
        block = _code(kept.iloc[first], _constant(kept, given, donor))
    elif by_donor:
        fold = deal(np.zeros(len(first), dtype=np.int64), folds, generator)[unit]
        block = _number(stratum, unit)
    else:
        fold = deal(_number(stratum, t), folds, generator)
        block = _number(stratum, fold)
    lost = sorted(set(known[covariate]) - set(kept[covariate]))
    notes = [f"left out for want of cells or donors: {', '.join(lost)}"] if lost else []
    fixed = kept.groupby(donor)[covariate].nunique().eq(1).mean() if by_donor else 0.0
    if not carried and fixed > 0.5:
        notes.append(f"{fixed:.0%} of the values of {donor} have one {covariate}, never exchanged")
    return Question(
        rows=kept.index.to_numpy(),
        t=t,
        stratum=stratum,
        carrier=unit if carried else np.arange(len(kept)),
        block=block,
        fold=fold,
        apart=unit,
        carriers=str(donor) if carried else "cell",
        note="; ".join(notes),
    )


def deal(key: np.ndarray, folds: int, generator: Generator) -> np.ndarray:
    """Deal things to folds so that each key is spread evenly: fold of each (thing,)."""
    fold = np.empty(len(key), dtype=np.int64)
    fold[np.lexsort((generator.random(len(key)), key))] = np.arange(len(key)) % folds
    return fold


def _keep(
    known: pd.DataFrame, covariate: str, given: Sequence[str], donor: str | None, carried: bool
) -> pd.DataFrame:
    """Keep what can be told; no rule may depend on which carrier has which value."""
    kept = known
    if donor is not None:
        kept = kept[kept.groupby(covariate)[donor].transform("nunique") >= 2]
        if kept[covariate].nunique() < 2:
            raise UnanswerableError(
                f"fewer than two values of {covariate} are seen in two values of {donor}, "
                f"so that none can be told in a {donor} never seen"
            )
    if given:
        kept = kept[kept.groupby(list(given))[covariate].transform("size") >= 2 * FEWEST_CELLS]
        if kept.empty:
            raise UnanswerableError(
                f"no value of {' and '.join(given)} has {2 * FEWEST_CELLS} cells"
            )
        largest = kept.groupby(list(given)).size().nlargest(MOST_STRATA).index
        kept = kept[kept.set_index(list(given)).index.isin(largest)]
        if donor is not None:
            kept = kept[kept.groupby(list(given))[donor].transform("nunique") >= 2]
    if not carried:
        cells = kept.groupby([*given, covariate])[covariate].transform("size")
        kept = kept[cells >= FEWEST_CELLS]
    sizes = kept.groupby([*given, covariate]).size() if len(kept) else pd.Series(dtype=int)
    strata = sizes[sizes >= FEWEST_CELLS].groupby(list(given)).size() if given else sizes
    if sizes.empty or (strata.max() < 2 if given else len(sizes) < 2):
        raise UnanswerableError(
            f"no value of {' and '.join(given)} has two values of {covariate} with "
            f"{FEWEST_CELLS} cells each: what both tell cannot be told apart"
            if given
            else f"no two values of {covariate} have {FEWEST_CELLS} cells"
        )
    return kept


def _constant(kept: pd.DataFrame, given: Sequence[str], donor: str | None) -> list[str]:
    return [name for name in given if (kept.groupby(donor)[name].nunique() == 1).all()]


def _code(frame: pd.DataFrame, columns: Sequence[str | None]) -> np.ndarray:
    """Code of each combination of values (row,), in sorted order; 0 without columns."""
    if not columns:
        return np.zeros(len(frame), dtype=np.int64)
    return np.asarray(frame.groupby(list(columns), sort=True).ngroup(), dtype=np.int64)


def _number(*codes: np.ndarray) -> np.ndarray:
    """Number the combinations of several codes."""
    return np.asarray(np.unique(np.c_[codes], axis=0, return_inverse=True)[1]).ravel()
