"""Which values occur only together, so that no method can tell what each of them does.

:mod:`invatlas.data.connectedness` finds biological values that share no, or hardly any, technical
value with the others. What that means depends on how many technical values hold them. One: the
two effects cannot be told apart ("full", "near"). Several: they are nested, as donors are in a
disease, and the technical effects can be taken as random. :mod:`invatlas.data.scales` asks the
same of numbers.

Pairs of columns are looked at, one technical column at a time; cells without a value of either,
or with a coarse one, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.data.connectedness import (
    NEARLY_ALL,
    find_groups,
    find_lonely,
    is_apart,
    measure_explained,
)
from invatlas.data.covariates import Covariate, Schema
from invatlas.data.findings import KINDS, Finding, Match, conclude, tell_finding
from invatlas.data.hierarchy import Hierarchy
from invatlas.data.scales import compare_scales, compare_with_categories
from invatlas.errors import ConfoundingError


def confounding(
    adata: AnnData,
    biological: Sequence[str],
    technical: Sequence[str] = (),
    *,
    hierarchy: Mapping[str, Hierarchy] | None = None,
) -> pd.DataFrame:
    """Say which questions a study cannot answer, because values occur only together.

    Parameters
    ----------
    adata
        Cells with the covariates in obs. Never changed; counts are not read.
    biological, technical, hierarchy
        As for :func:`invatlas.fit`.

    Returns
    -------
    One row a pair of columns and kind, the gravest first: ``kind``, ``alarm`` (bool),
    ``biological`` and ``beside`` (columns), ``values`` (which goes with which), ``cells``,
    ``explained`` (share of the membership, or of the variation of a scale, that the other column
    explains, the highest), and ``sentence``. No rows where nothing was found.

    Raises
    ------
    CovariateError
        If a column is unusable.

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> index = [f"cell{i}" for i in range(60)]
    >>> obs = pd.DataFrame({"disease": ["ill", "well"] * 30, "run": ["1", "2"] * 30}, index)
    >>> print(confounding(AnnData(obs=obs), ["disease"], ["run"])["sentence"][0])
    What disease=ill does cannot be told from what run=1 does: all 30 cells of ill have run=1, \
and no others have. So it is with well and 2 (30 cells).
    """
    findings = check_design(adata.obs, biological, technical, hierarchy)
    columns = "kind", "alarm", "biological", "beside", "values", "cells", "explained", "sentence"
    return pd.DataFrame([tell_finding(finding) for finding in findings], columns=list(columns))


def check_design(
    obs: pd.DataFrame,
    biological: Sequence[str],
    technical: Sequence[str],
    hierarchy: Mapping[str, Hierarchy] | None = None,
) -> list[Finding]:
    """Find what is confounded in columns of obs; see :func:`confounding`."""
    schema = Schema.learn(obs, biological, technical, hierarchy)
    return find_confounding(schema, *schema.encode(obs), schema.numbers(obs))


def find_confounding(
    schema: Schema,
    biological: np.ndarray,
    technical: np.ndarray,
    numbers: Mapping[str, np.ndarray],
) -> list[Finding]:
    """Find what is confounded in codes (cell, covariate), the gravest first.

    ``numbers`` holds those of each scale, by column, NaN where missing.
    """
    found: list[Finding] = []
    d_columns, e_columns = (
        list(zip(covariates, codes.T, strict=True))
        for covariates, codes in ((schema.biological, biological), (schema.technical, technical))
    )
    for (d, d_codes), (e, e_codes) in product(d_columns, e_columns):
        if d.knots and e.knots:
            found += compare_scales(d.name, numbers[d.name], e.name, numbers[e.name])
        elif d.knots:
            found += compare_with_categories(d.name, numbers[d.name], e, e_codes, biological=True)
        elif e.knots:
            found += compare_with_categories(e.name, numbers[e.name], d, d_codes, biological=False)
        else:
            found += _compare_with_technical(d, e, _count(d, e, d_codes, e_codes))
    for (a, a_codes), (b, b_codes) in combinations(d_columns, 2):
        if not (a.knots or b.knots):
            found += _compare_biological(a, b, _count(a, b, a_codes, b_codes))
    return sorted(found, key=lambda finding: KINDS.index(finding.kind))


def refuse_confounding(findings: Sequence[Finding]) -> None:
    """Refuse a design in which an effect cannot be told, or hardly.

    Raises
    ------
    ConfoundingError
        If a finding is an alarm.
    """
    alarms = [finding for finding in findings if finding.alarm]
    if alarms:
        more = f" As grave: {len(alarms) - 1} more." if alarms[1:] else ""
        raise ConfoundingError(
            f"The design is confounded. {alarms[0].sentence}{more} Leave one of the two columns "
            "out, add cells that link their values, or fit without strict=True."
        )


def _count(a: Covariate, b: Covariate, a_codes: np.ndarray, b_codes: np.ndarray) -> np.ndarray:
    """Cells of each pair of values (value of a, value of b) among those with both."""
    known = (a_codes >= 0) & (b_codes >= 0)
    shape = len(a.categories), len(b.categories)
    flat = np.bincount(a_codes[known] * shape[1] + b_codes[known], minlength=shape[0] * shape[1])
    return flat.reshape(shape)


def _compare_with_technical(d: Covariate, e: Covariate, table: np.ndarray) -> Iterator[Finding]:
    groups: dict[str, list[Match]] = {kind: [] for kind in KINDS}
    apart = np.zeros(len(table), dtype=bool)
    for rows, columns in find_groups(table):
        held = table[rows].sum(axis=0)
        if held.max() < NEARLY_ALL * held.sum():
            groups["nested"].append(_match(d, e, table, rows, columns))
            continue
        kind = "full" if len(columns) == 1 and is_apart(table, rows, columns) else "near"
        groups[kind].append(_match(d, e, table, rows, np.array([held.argmax()])))
        apart[rows] = True
    if len(groups["nested"]) < 2:  # a single one is apart only from what is confounded
        groups["nested"] = []
    for i, j in find_lonely(table):
        if not apart[i]:
            groups["single"].append(_match(d, e, table, np.array([i]), np.array([j])))
    for kind, matches in groups.items():
        yield from conclude(kind, d.name, e.name, matches)


def _compare_biological(a: Covariate, b: Covariate, table: np.ndarray) -> Iterator[Finding]:
    there = find_lonely(table)
    back = [(j, i) for j, i in find_lonely(table.T) if (i, j) not in there]
    for d, e, counts, pairs in ((a, b, table, there), (b, a, table.T, back)):
        matches = [_match(d, e, counts, np.array([i]), np.array([j])) for i, j in pairs]
        yield from conclude("together", d.name, e.name, matches)


def _match(
    d: Covariate, e: Covariate, table: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> Match:
    return Match(
        tuple(d.categories[i] for i in rows),
        tuple(e.categories[j] for j in columns),
        int(table[rows].sum()),
        int(table[:, columns].sum()),
        int(table[np.ix_(rows, columns)].sum()),
        measure_explained(table, rows),
    )
