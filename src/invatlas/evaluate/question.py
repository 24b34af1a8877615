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
for: nobody can know a donor never seen. Nor can anyone tell a value that only the donor left out
has in a stratum: v counts in s if cells of two folds have it, and carriers alone with their value
in their block are left out.

Values that lie alike can change names and a probe will tell them as well, so that with few
carriers an exchange often equals the truth. No p-value is below::

    p >= prod_alike #values! / arrangements of values

where alike values have as many carriers as each other in every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.special import gammaln

from invatlas.evaluate.witnesses import (
    FEWEST_CELLS,
    UnanswerableError,
    drop_lone,
    keep,
    list_constant,
    refuse_unseen,
)
from invatlas.wording import count_noun


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

    def score(self, t: np.ndarray, predicted: np.ndarray, fold: np.ndarray | None = None) -> float:
        """Balanced accuracy within strata, of the values that count; NaN without any.

        Values that were exchanged (:meth:`exchange`) come with the folds they took along.
        """
        recall = self._tally(t, predicted == t) / np.maximum(self._tally(t, np.ones(len(t))), 1)
        counted = self._count(t, self.fold if fold is None else fold)
        several = counted.sum(1) >= 2
        by_stratum = (recall * counted).sum(1)[several] / counted.sum(1)[several]
        return float(by_stratum.mean()) if several.any() else float("nan")

    @property
    def scored(self) -> np.ndarray:
        """Number of values that are told apart in each stratum that counts (stratum,)."""
        values = self._count(self.t, self.fold).sum(1)
        return np.asarray(values[values >= 2])

    @property
    def arrangements(self) -> float:
        """In how many ways the values can be dealt to their carriers."""
        return float(np.exp(min(_count_deals(self._carried), 700.0)))

    @property
    def least_p(self) -> float:
        """Below which no p-value can be, however plain the latents are."""
        alike = np.unique(self._carried, axis=1, return_counts=True)[1]
        return float(np.exp(gammaln(alike + 1).sum() - _count_deals(self._carried)))

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

    @property
    def _carried(self) -> np.ndarray:
        """How many carriers have each value (block, value)."""
        value, shape = self.t[self._first], (int(self.block.max()) + 1, int(self.t.max()) + 1)
        place = np.ravel_multi_index((self.block, value), shape)
        return np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)

    def _count(self, t: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Which values count in each stratum (stratum, value): enough cells, in two folds."""
        folds = sum(self._tally(t, fold == number) > 0 for number in np.unique(fold))
        return np.asarray((self._tally(t, np.ones(len(t))) >= FEWEST_CELLS) & (folds >= 2))

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
            f"{count_noun(known[covariate].nunique(), 'value')} of {covariate} in {len(known)} "
            f"cells with all values needed"
        )
    carried = by_donor and bool((known.groupby(donor)[covariate].nunique() == 1).all())
    enough = keep(known, covariate, given, donor if by_donor else None, carried)
    constant = list_constant(enough, given, donor) if carried else []
    kept = drop_lone(enough, covariate, constant, str(donor)) if carried else enough
    stratum, t = _code(kept, given), _code(kept, [covariate])
    unit = _code(kept, [donor]) if by_donor else np.arange(len(kept))
    first = np.unique(unit, return_index=True)[1]
    if carried:
        block = _code(kept.iloc[first], constant)
        fold = deal(_number(t[first], block), folds, generator)[unit]
    elif by_donor:
        fold = deal(np.zeros(len(first), dtype=np.int64), folds, generator)[unit]
        block = _number(stratum, unit)
    else:
        fold = deal(_number(stratum, t), folds, generator)
        block = _number(stratum, fold)
    lost = sorted(set(known[covariate]) - set(kept[covariate]))
    notes = [f"left out for want of cells or donors: {', '.join(lost)}"] if lost else []
    if constant and len(kept) < len(enough):
        pairs = [len(frame.groupby([*constant, covariate])) for frame in (enough, kept)]
        notes.append(
            f"{pairs[0] - pairs[1]} of {pairs[0]} combinations of {' and '.join(constant)} with "
            f"{covariate} left out, which one {donor} each has"
        )
    fixed = kept.groupby(donor)[covariate].nunique().eq(1).mean() if by_donor else 0.0
    if not carried and fixed > 0.5:
        notes.append(f"{fixed:.0%} of the values of {donor} have one {covariate}, never exchanged")
    question = Question(
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
    if not len(question.scored):
        refuse_unseen(covariate, given, donor)
    return question


def deal(key: np.ndarray, folds: int, generator: Generator) -> np.ndarray:
    """Deal things to folds so that each key is spread evenly: fold of each (thing,)."""
    fold = np.empty(len(key), dtype=np.int64)
    fold[np.lexsort((generator.random(len(key)), key))] = np.arange(len(key)) % folds
    return fold


def _count_deals(carried: np.ndarray) -> float:
    """Logarithm of the ways to deal values to carriers, from their numbers (block, value)."""
    return float(gammaln(carried.sum(1) + 1).sum() - gammaln(carried + 1).sum())


def _code(frame: pd.DataFrame, columns: Sequence[str | None]) -> np.ndarray:
    """Code of each combination of values (row,), in sorted order; 0 without columns."""
    if not columns:
        return np.zeros(len(frame), dtype=np.int64)
    return np.asarray(frame.groupby(list(columns), sort=True).ngroup(), dtype=np.int64)


def _number(*codes: np.ndarray) -> np.ndarray:
    """Number the combinations of several codes."""
    return np.asarray(np.unique(np.c_[codes], axis=0, return_inverse=True)[1]).ravel()
