"""What a column of obs holds, as text."""

from __future__ import annotations

import numpy as np
import pandas as pd

from invatlas.errors import CovariateError
from invatlas.wording import suggest

MISSING_SPELLINGS = frozenset({"", "nan", "na", "n/a", "<na>", "null", "unknown"})
# of a number, or of what was intervened on; of a disease "none" is a value
NOTHING_SPELLINGS = MISSING_SPELLINGS | {"none"}


def text_values(
    obs: pd.DataFrame, name: str, missing: frozenset[str] = MISSING_SPELLINGS
) -> pd.Series:
    """Values of a column as text, missing where the column says so in any common spelling."""
    if name not in obs.columns:
        columns = ", ".join(map(str, obs.columns)) or "none"
        raise CovariateError(f"obs has no column {name!r}; it has {columns}.{_advise(name, obs)}")
    if isinstance(obs[name], pd.DataFrame):
        times = "twice" if obs[name].shape[1] == 2 else f"{obs[name].shape[1]} times"
        raise CovariateError(f"obs has the column {name!r} {times}; a column is named once.")
    text = _spell(obs[name])
    return text.where(~_says(text, missing))


def _advise(name: str, obs: pd.DataFrame) -> str:
    known = list(map(str, obs.columns))
    parts = [part.strip() for part in name.split(",")]
    if len(parts) > 1 and set(parts) <= set(known):
        return (
            f" {' and '.join(map(repr, parts))} are columns of their own: name each by itself; on "
            "the command line, repeat the option for each column."
        )
    return suggest(name, known)


def missing_spellings(obs: pd.DataFrame, name: str) -> pd.Series:
    """Texts of a column that are taken as missing, and how many cells have each."""
    text = _spell(obs[name])
    return text[_says(text, MISSING_SPELLINGS)].value_counts()


def holds_fractions(column: pd.Series) -> bool:
    """Whether a column holds floating-point numbers that are not all whole."""
    return pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 != 0).any())


def _spell(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), None).map(as_text, na_action="ignore")


def _says(text: pd.Series, spellings: frozenset[str]) -> pd.Series:
    return text.str.strip().str.lower().isin(spellings)


def as_text(value: object) -> str:
    """Spell a value of a column; 2.0 is the category 2."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)  # type: ignore[call-overload]
