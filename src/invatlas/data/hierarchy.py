"""Coarse values of a covariate, and the finer ones each stands for, as a user writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from invatlas.data.columns import text_values
from invatlas.errors import CovariateError
from invatlas.wording import suggest

Hierarchy = Mapping[str, Sequence[str]]


def read_hierarchy(hierarchy: object, biological: Sequence[str]) -> dict[str, Hierarchy | None]:
    """Find the hierarchy of each biological column, under its name with or without its kind.

    Raises
    ------
    CovariateError
        If it is not one, or of a column that is not named.
    """
    shape = 'column = {coarse value = [finer values]}, such as cell_type = {"T cell" = ["CD4 T"]}'
    if not isinstance(hierarchy, Mapping):
        raise CovariateError(f"The hierarchy is {hierarchy!r}; it is written {shape}.")
    names = [*biological, *map(_name, biological)]
    for column, groups in hierarchy.items():
        if column not in names:
            raise CovariateError(
                f"The hierarchy speaks of {column!r}, which is no biological covariate; "
                f"they are {', '.join(names)}."
            )
        lists = groups.values() if isinstance(groups, Mapping) else [None]
        if not all(isinstance(finer, list | tuple) for finer in lists):
            raise CovariateError(
                f"The hierarchy of {column!r} is {groups!r}; it is written {shape}."
            )
    return {column: hierarchy.get(column, hierarchy.get(_name(column))) for column in biological}


def resolve(
    hierarchy: Hierarchy, categories: Sequence[str], met: set[str], name: str
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Follow every coarse value that was met down to categories.

    Raises
    ------
    CovariateError
        If one leads to no category.
    """
    groups = []
    for group in sorted(set(hierarchy) & met):
        finer, waiting, passed = set(), [group], set()
        while waiting:
            value = waiting.pop()
            if value in passed:
                continue
            passed.add(value)
            if value in hierarchy:
                waiting += map(str, hierarchy[value])
            else:
                finer.add(value)
        if not finer & set(categories):
            raise CovariateError(
                f"The hierarchy lets {name} {group!r} stand for "
                f"{', '.join(sorted(finer)) or 'itself alone'}; none of them is a value of the "
                f"column, whose values are {', '.join(categories[:20])}."
            )
        groups.append((group, tuple(sorted(finer & set(categories)))))
    return tuple(groups)


def describe_unmet(hierarchy: Mapping[str, Hierarchy], obs: pd.DataFrame) -> list[str]:
    """Say which names of a hierarchy no cell has: a wider hierarchy is fine, a misspelt one not."""
    messages = []
    for column, groups in hierarchy.items():
        met = set(text_values(obs, column).dropna())
        named = {*groups, *(str(value) for finer in groups.values() for value in finer)}
        for name in sorted(named - met):
            hint = suggest(name, met)
            messages.append(f"The hierarchy names {column} {name!r}, which no cell has.{hint}")
    return messages


def _name(column: str) -> str:
    return column.removesuffix(":categorical").removesuffix(":continuous")
