"""What a fit of a network can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np

from invatlas.errors import SettingsError

MOST_SEED = 2**32 - 1
PRODUCTIONS = ("sigmoid", "additive", "multiplicative", "network")


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of :func:`invatlas.grn.fit`.

    Attributes
    ----------
    production
        How regulators make a gene's production: ``sigmoid``, ``additive``, ``multiplicative``
        or ``network``; the equations stand in :mod:`invatlas.grn.production`. None decides:
        ``sigmoid`` and ``network`` by turns for at most 40 genes nobody intervened on, else
        ``sigmoid``.
    proteins
        Whether a gene acts through a protein that follows its expression with a delay. None
        decides: where there are series in time.
    steps
        Steps of gradient descent, for each member.
    refine_steps
        Further steps in which whole trajectories are solved from their first time, with the
        edges kept. None decides: 150 where there are 2 to 64 series.
    members
        Fits of the ensemble, each with other weights of donors, series or rows (a Bayesian
        bootstrap); the share that agrees is an edge's stability.
    edge_cost
        How much an edge that the evidence prefers must raise the log likelihood, in nats.
    evidence
        How many times dearer than that an edge is which no evidence speaks for.
    series_weight
        How much series count beside interventions. None decides: 0.2 beside them, where noise in
        the regulators weighs, else 1.
    off_targets
        Whether to look for genes that experiments moved beside their target.
    off_target_cost
        What an off-target must gain over an edge to be named, in nats; more where so many genes
        and experiments were looked at that one would be named by chance.
    learning_rate
        Of Adam.
    minibatch_size
        Most rows at rest in one step; a series counts as four.
    seed
        Of every random choice.
    """

    production: str | None = None
    proteins: bool | None = None
    steps: int = 1000
    refine_steps: int | None = None
    members: int = 5
    edge_cost: float = 6.0
    evidence: float = 10.0
    series_weight: float | None = None
    off_targets: bool = True
    off_target_cost: float = 6.0
    learning_rate: float = 0.02
    minibatch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        named = isinstance(self.production, str) and self.production in PRODUCTIONS
        if self.production is not None and not named:
            raise SettingsError(
                f"production is {self.production!r}; it takes {', '.join(PRODUCTIONS)}."
            )
        for name, least in (("steps", 1), ("members", 1), ("minibatch_size", 1), ("seed", 0)):
            self._check_whole(name, least)
        if self.refine_steps is not None:
            self._check_whole("refine_steps", 0)
        if self.seed > MOST_SEED:
            raise SettingsError(
                f"seed is {self.seed}; it takes a whole number from 0 to {MOST_SEED:,}."
            )
        for name in ("edge_cost", "evidence", "series_weight", "off_target_cost", "learning_rate"):
            if getattr(self, name) is not None or name != "series_weight":
                self._check_number(name)
        for name in ("off_targets", "proteins"):
            value = getattr(self, name)
            if isinstance(value, np.bool_):
                object.__setattr__(self, name, bool(value))
            elif not isinstance(value, bool) and (name != "proteins" or value is not None):
                raise SettingsError(f"{name} is {value!r}; it takes true or false.")

    def _check_whole(self, name: str, least: int) -> None:
        """Take any whole number for an int, numpy's too; a bool is none."""
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise SettingsError(
                f"{name} is {_show(value)}; it takes a whole number from {least} on."
            )
        object.__setattr__(self, name, int(value))

    def _check_number(self, name: str) -> None:
        """Take any number that a float holds for one."""
        value, number = getattr(self, name), math.nan
        if isinstance(value, Real) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
        if not (math.isfinite(number) and number >= 0):
            raise SettingsError(f"{name} is {_show(value)}; it takes a number from 0 on.")
        object.__setattr__(self, name, number)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> NetworkSettings:
        """Read settings by name.

        Raises
        ------
        SettingsError
            If a name is unknown or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise SettingsError(
                f"There is no setting {unknown[0]!r}; a network has {', '.join(known)}."
            )
        return cls(**values)  # type: ignore[arg-type]


def _show(value: object) -> str:
    """Value as a reader would write it: numbers plain, text in quotes."""
    return str(value) if isinstance(value, np.generic) else repr(value)
