"""What was done to the genes of a row: which genes, and how.

    do(x_g = 0)         knockout
    production of g / 2 knockdown
    production of g up  overexpression

As DREAM4 has them (Marbach et al. 2009, J Comput Biol 16:229). ``multifactorial`` rows are steady
states in which every gene is perturbed a little, by nobody knows how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from invatlas.data.columns import NOTHING_SPELLINGS, text_values
from invatlas.errors import CovariateError, GeneError
from invatlas.grn.names import find_genes

NAMED = ("knockout", "knockdown", "overexpression")
UNNAMED = ("wildtype", "timeseries", "multifactorial")


@dataclass(frozen=True)
class Intervention:
    """What was done to some genes.

    Attributes
    ----------
    genes
        Places of the genes among those of the experiments, rising; none where none is known.
    kind
        ``none``, ``knockout``, ``knockdown``, ``overexpression`` or ``multifactorial``.
    """

    genes: tuple[int, ...] = ()
    kind: str = "none"


def read_experiment_kinds(obs: pd.DataFrame, experiment: str | None) -> pd.Series:
    """Kind of experiment of every row, in lower case; missing where the column is silent.

    Raises
    ------
    CovariateError
        If the column is absent or names an unknown kind.
    """
    if experiment is None:
        return pd.Series(None, index=obs.index, dtype=object)
    kinds = text_values(obs, experiment, NOTHING_SPELLINGS).str.strip().str.lower()
    odd = kinds[kinds.notna() & ~kinds.isin([*NAMED, *UNNAMED])]
    if len(odd):
        raise CovariateError(
            f"obs column {experiment!r} holds {odd.iloc[0]!r} (row {odd.index[0]!r}); an "
            f"experiment is one of {', '.join([*NAMED, *UNNAMED])}, or none."
        )
    return kinds


def read_interventions(
    targets: pd.Series, kinds: pd.Series, genes: Sequence[str]
) -> list[Intervention]:
    """Intervention of every row, from its genes ("A+B" for several) and its kind of experiment.

    A row that names genes and no kind is a knockout.

    Raises
    ------
    GeneError
        If an intervened gene is none of ``genes``.
    CovariateError
        If a kind needs genes and none is named, or the other way round.
    """
    known: dict[tuple[str, str], Intervention] = {}
    found = []
    rows = zip(targets.index, targets.fillna(""), kinds.fillna(""), strict=True)
    for row, target, kind in rows:
        if (target, kind) not in known:
            known[target, kind] = _interpret(target, kind, genes, row)
        found.append(known[target, kind])
    return found


def _interpret(target: str, kind: str, genes: Sequence[str], row: object) -> Intervention:
    names = [name.strip() for name in target.split("+") if name.strip()]
    places, unknown = find_genes(names, genes)
    if unknown:
        raise GeneError(f"Row {row!r} intervenes on {unknown}.")
    if names and kind in UNNAMED:
        raise CovariateError(
            f"Row {row!r} is called {kind} and names the intervened gene {target!r}; with a gene "
            f"it may be {', '.join(NAMED)}, and a {kind} row names none."
        )
    if kind in NAMED and not names:
        raise CovariateError(
            f"Row {row!r} is called {kind} and names no intervened gene; name it, or call the row "
            f"{', '.join(UNNAMED[:-1])} or {UNNAMED[-1]}."
        )
    if names:
        return Intervention(tuple(sorted(set(places))), kind or "knockout")
    return Intervention((), "multifactorial" if kind == "multifactorial" else "none")
