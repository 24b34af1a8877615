"""The columns of obs that a fit knows of: what they are called and which values they take.

A covariate is biological (it moves z_I) or technical (it moves z_S). Categories are learnt
from the reference, once, and kept in alphabetical order; those an
adaptation adds come after them. A missing value is no category: its code
is -1, and the model sums it out. Nor is a coarse value, such as "T cell" where others are called
"CD4 T" and "CD8 T": the k-th of them has the code -2 - k, and the model sums over what it stands
for. A continuous covariate has knots in place of categories (see knots.py): its code is the
nearest knot, its offset how far from it the number lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from invatlas.data.columns import NOTHING_SPELLINGS, text_values
from invatlas.data.hierarchy import Hierarchy, read_hierarchy, resolve
from invatlas.data.knots import check_numbers, choose_knots, locate, name_knots, read_numbers
from invatlas.errors import CovariateError

MISSING = -1
KINDS = ("categorical", "continuous")
REFERENCE = "reference"  # of a technical covariate: none of its values, but their average
JOINT = "joint"  # all covariates with categories, called together


@dataclass(frozen=True)
class Covariate:
    """One column of obs.

    Attributes
    ----------
    name
        Column of obs.
    kind
        ``categorical`` or ``continuous``.
    categories
        Values it takes, in alphabetical order, added ones last; names of the knots where it is
        continuous.
    groups
        Coarse values, in alphabetical order, each with the categories it stands for.
    knots
        Numbers the model interpolates between, rising; none where it is categorical.
    """

    name: str
    kind: str
    categories: tuple[str, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    knots: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse categories or a scale that are none: what a file says may be anything."""
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"a category of {self.name!r} is there twice")
        rising = all(low < high for low, high in pairwise(self.knots))
        if self.knots and not (rising and np.isfinite(self.knots).all()):
            raise ValueError(f"knots of {self.name!r} do not rise")
        continuous = self.kind == "continuous"
        if len(self.knots) != (len(self.categories) if continuous else 0):
            raise ValueError(f"{self.name!r} has {len(self.knots)} knots for its categories")

    @classmethod
    def learn(cls, obs: pd.DataFrame, column: str, hierarchy: Hierarchy | None = None) -> Covariate:
        """Learn the values of a column, given as ``name`` or ``name:kind``.

        ``hierarchy`` names the coarse values among them, with the finer ones they stand for.

        Raises
        ------
        CovariateError
            If the column is absent, wholly missing, constant, categorical and different in
            every cell, or continuous and no number.
        """
        name, _, kind = column.rpartition(":")
        if column in obs.columns or not name:
            name, kind = column, "categorical"
        if kind not in KINDS:
            raise CovariateError(
                f"{column!r} asks for kind {kind!r}; it may be {' or '.join(KINDS)}."
            )
        if kind == "continuous":
            if hierarchy:
                raise CovariateError(f"{name!r} is continuous; it has no hierarchy of values.")
            knots = choose_knots(
                check_numbers(text_values(obs, name, NOTHING_SPELLINGS), name), name
            )
            return cls(name, kind, name_knots(knots), knots=knots)
        every = text_values(obs, name).dropna()
        values = every[~every.isin(list(hierarchy or {}))]
        categories = tuple(sorted(values.unique()))
        groups = resolve(hierarchy or {}, categories, set(every.unique()), name)
        if not categories and len(every):
            raise CovariateError(
                f"obs column {name!r} holds coarse values only ({every.iloc[0]!r}, ...); some "
                "cells must have the finer ones they stand for."
            )
        if not categories:
            raise CovariateError(f"obs column {name!r} has no value in any of {len(obs)} cells.")
        if len(categories) == 1:
            where = "every cell" if len(values) == len(obs) else "every cell that has any"
            raise CovariateError(
                f"obs column {name!r} has one value, {categories[0]!r}, in {where}; "
                "a covariate needs at least two. Leave it out."
            )
        if len(categories) == len(values) > 2:
            raise CovariateError(
                f"obs column {name!r} has another value in each of {len(values)} cells "
                f"({categories[0]!r}, {categories[1]!r}, ...): an identifier, or a number. "
                "A categorical covariate needs values that several cells share."
            )
        return cls(name, kind, categories, groups)

    @property
    def column(self) -> str:
        """How :meth:`learn` is told of it."""
        return f"{self.name}:continuous" if self.knots else self.name

    @property
    def members(self) -> np.ndarray:
        """Which categories each coarse value stands for, bool (group, category)."""
        rows = [np.isin(self.categories, list(finer)) for _, finer in self.groups]
        return np.array(rows, dtype=bool).reshape(len(rows), len(self.categories))

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Codes of a column, shape (cell,); -1 where missing or never seen in the reference."""
        if self.name not in obs.columns:
            return np.full(len(obs), MISSING, dtype=np.int64)
        if self.knots:
            positions = self.positions(obs)
            return np.asarray(np.nan_to_num(np.rint(positions), nan=MISSING), dtype=np.int64)
        coarse = [group for group, _ in self.groups]
        found = pd.Categorical(text_values(obs, self.name), categories=[*self.categories, *coarse])
        codes = np.asarray(found.codes, dtype=np.int64)
        return np.where(codes < len(self.categories), codes, len(self.categories) - 2 - codes)

    def numbers(self, obs: pd.DataFrame) -> np.ndarray:
        """Numbers of a continuous column, shape (cell,); NaN where missing."""
        return read_numbers(text_values(obs, self.name, NOTHING_SPELLINGS))

    def positions(self, obs: pd.DataFrame) -> np.ndarray:
        """Where the numbers of a continuous column lie among the knots; NaN where missing."""
        return locate(self.numbers(obs), self.knots)

    def offsets(self, obs: pd.DataFrame) -> np.ndarray:
        """How far each value lies from its code, -1/2 to 1/2; 0 where categorical or missing."""
        if not self.knots or self.name not in obs.columns:
            return np.zeros(len(obs), dtype=np.float32)
        positions = np.nan_to_num(self.positions(obs))
        return np.asarray(positions - np.rint(positions), dtype=np.float32)


@dataclass(frozen=True)
class Schema:
    """The covariates of an atlas.

    Attributes
    ----------
    biological, technical
        Covariates that move z_I and z_S.
    """

    biological: tuple[Covariate, ...]
    technical: tuple[Covariate, ...]

    @classmethod
    def learn(
        cls,
        obs: pd.DataFrame,
        biological: Sequence[str],
        technical: Sequence[str],
        hierarchy: Mapping[str, Hierarchy] | None = None,
    ) -> Schema:
        """Learn names and values from the obs of a reference.

        ``hierarchy`` gives the coarse values of biological columns, by column.

        Raises
        ------
        CovariateError
            If no biological column is named, one is named twice, or one is unusable.
        """
        for role, columns in (("biological", biological), ("technical", technical)):
            if isinstance(columns, str) or not isinstance(columns, Sequence):
                raise CovariateError(f"{role} is {columns!r}; it takes a list of obs columns.")
            if odd := [column for column in columns if not isinstance(column, str)]:
                raise CovariateError(f"{role} names {odd[0]!r}; an obs column is named by text.")
        if not biological:
            raise CovariateError(
                "No biological covariate is named; name at least one of the obs columns "
                f"{', '.join(map(str, obs.columns))}."
            )
        hierarchies = read_hierarchy(hierarchy or {}, biological)
        schema = cls(
            tuple(Covariate.learn(obs, column, hierarchies[column]) for column in biological),
            tuple(Covariate.learn(obs, column) for column in technical),
        )
        if not schema.called:
            raise CovariateError(
                f"{', '.join(biological)}: calls need at least one categorical biological "
                "covariate beside continuous ones."
            )
        if JOINT in [covariate.name for covariate in schema.biological]:
            raise CovariateError(
                f"A biological covariate cannot be called {JOINT!r}: predicted_{JOINT} is the call "
                "of all of them together. Rename the column."
            )
        names = [covariate.name for covariate in schema.covariates]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CovariateError(
                f"obs column {', '.join(map(repr, twice))} is named more than once; "
                "a covariate is either biological or technical."
            )
        return schema

    @property
    def covariates(self) -> tuple[Covariate, ...]:
        """Biological and technical covariates, in this order."""
        return self.biological + self.technical

    @property
    def called(self) -> tuple[Covariate, ...]:
        """Biological covariates with categories, which calls name together."""
        return tuple(covariate for covariate in self.biological if not covariate.knots)

    def encode(self, obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Codes of the biological and the technical columns, each (cell, covariate)."""
        return encode(self.biological, obs), encode(self.technical, obs)

    def numbers(self, obs: pd.DataFrame) -> dict[str, np.ndarray]:
        """Numbers of each continuous column, shape (cell,); NaN where missing."""
        return {c.name: c.numbers(obs) for c in self.covariates if c.knots}

    def keep_categories(
        self, biological: np.ndarray, technical: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes in which scales are missing: which cells belong together, numbers do not tell."""
        pairs = (self.biological, biological), (self.technical, technical)
        found = [np.where([bool(c.knots) for c in some], MISSING, codes) for some, codes in pairs]
        return found[0], found[1]

    def offsets(self, obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Distances of the values from their codes, as :meth:`encode` orders them."""
        found = [
            np.stack([c.offsets(obs) for c in covariates], 1)
            if covariates
            else np.zeros((len(obs), 0), dtype=np.float32)
            for covariates in (self.biological, self.technical)
        ]
        return found[0], found[1]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``atlas.json``."""
        return {
            role: [
                {
                    "name": c.name,
                    "kind": c.kind,
                    "categories": list(c.categories),
                    "groups": {group: list(finer) for group, finer in c.groups},
                    "knots": list(c.knots),
                }
                for c in covariates
            ]
            for role, covariates in (
                ("biological", self.biological),
                ("technical", self.technical),
            )
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Schema:
        """Read what :meth:`to_json` wrote."""

        def covariates(role: str) -> tuple[Covariate, ...]:
            return tuple(
                Covariate(
                    str(c["name"]),
                    str(c["kind"]),
                    tuple(map(str, c["categories"])),
                    tuple((str(k), tuple(map(str, v))) for k, v in c["groups"].items()),
                    tuple(map(float, c["knots"])),
                )
                for c in values[role]
            )

        return cls(covariates("biological"), covariates("technical"))


def encode(covariates: Sequence[Covariate], obs: pd.DataFrame) -> np.ndarray:
    """Codes of several columns, shape (cell, covariate)."""
    codes = [covariate.encode(obs) for covariate in covariates]
    return np.stack(codes, 1) if codes else np.zeros((len(obs), 0), dtype=np.int64)
