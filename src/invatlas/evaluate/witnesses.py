"""Witnesses: the cells that may answer a question, and why there may be none.

A value v of a covariate can be told in a stratum s (a combination of what is given) if
two values have, in that stratum::

    #{cells: v, s} >= 8,  #{donors: v, s} >= 2    one donor to learn from, one to judge by

The second is not asked of cells that stand for themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pandas as pd

from invatlas.errors import DataError

FEWEST_CELLS = 8  # of a value in a stratum
MOST_STRATA = 60


class UnanswerableError(DataError):
    """The cells at hand cannot answer a question; the message says why."""


def keep(
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


def drop_lone(
    kept: pd.DataFrame, covariate: str, constant: Sequence[str], donor: str
) -> pd.DataFrame:
    """Drop carriers alone with their value among those they are exchanged with.

    The others keep theirs in every exchange, so that what is left stays exchangeable.
    """
    peers = kept.groupby([*constant, covariate])[donor].transform("nunique")
    if (peers < 2).all():
        refuse_unseen(covariate, constant, donor)
    return kept[peers >= 2]


def refuse_unseen(covariate: str, given: Sequence[str], donor: str | None) -> NoReturn:
    """Say that what a donor left out has was nowhere to be learnt."""
    within = f" of {' and '.join(given)}" if given else ""
    raise UnanswerableError(
        f"in no stratum{within} are two values of {covariate} seen in two values of {donor} "
        f"each, so that none can be told in a {donor} never seen"
    )


def list_constant(kept: pd.DataFrame, given: Sequence[str], donor: str | None) -> list[str]:
    """List what is given of a donor as a whole."""
    return [name for name in given if (kept.groupby(donor)[name].nunique() == 1).all()]
