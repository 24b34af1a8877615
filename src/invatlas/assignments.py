"""What a command was told in the form name=value."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from invatlas.errors import SettingsError
from invatlas.settings import Settings

GENE_LISTS = ("genes_file", "gene_names")
RUN_KEYS = ("biological", "technical", "hierarchy", "layer", "gene_column", *GENE_LISTS)


def choose_settings(values: dict[str, Any]) -> Settings:
    """Change the defaults; a name that is nearly another key of a run is answered with it."""
    known = [field.name for field in fields(Settings)]
    for name in sorted(set(values) - set(known)):
        close = difflib.get_close_matches(name, [*known, *RUN_KEYS], n=1)
        if close and close[0] in RUN_KEYS:
            raise SettingsError(f"Unknown setting {name}; did you mean {close[0]}?")
    return Settings().changed(values)


def read_assignments(assignments: list[str]) -> dict[str, Any]:
    """Values of settings by name, each read as JSON where it is JSON."""
    values: dict[str, Any] = {}
    for name, text in _split_assignments("--set", assignments):
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def read_given(assignments: list[str], flag: str = "--given") -> dict[str, list[str]]:
    """Values each covariate may have, by its name."""
    given: dict[str, list[str]] = {}
    for name, value in _split_assignments(flag, assignments):
        given.setdefault(name, []).append(value.strip())
    return given


def read_change(assignments: list[str]) -> dict[str, str]:
    """Value each covariate is to have, by its name."""
    change: dict[str, str] = {}
    for name, value in _split_assignments("--set", assignments):
        if name in change:
            raise SettingsError(f"--set gives {name} twice; it takes one value.")
        change[name] = value.strip()
    return change


def _split_assignments(flag: str, assignments: list[str]) -> Iterator[tuple[str, str]]:
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"{flag} {assignment!r} has no value; write it as name=value.")
        yield name.strip(), text
