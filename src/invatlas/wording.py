"""Numbers and lists, as a sentence holds them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

SHOWN = 5
LONGEST = 80  # letters of a value in an outline


def count_noun(n: int, noun: str, nouns: str = "") -> str:
    """Write a number with its noun, in the plural (with an s by default) unless there is one."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {nouns or noun + 's'}"


def list_first(names: Sequence[str]) -> str:
    """Write the first few names, and dots where there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def suggest(name: str, known: Iterable[str]) -> str:
    """Ask whether the known name that is most like another one was meant, whatever its case."""
    names = sorted(known)
    near = difflib.get_close_matches(name.casefold(), [n.casefold() for n in names], n=1)
    alike = [other for other in names if other.casefold() in near]
    close = difflib.get_close_matches(name, alike, n=1, cutoff=0.0)
    return f" Did you mean {close[0]!r}?" if close else ""


class Outlined:
    """A dataclass that prints what it holds and how much of it, not all of it."""

    def __repr__(self) -> str:
        """Name each attribute and its size."""
        kind = type(self).__name__
        held = [f"  {f.name}: {outline(getattr(self, f.name))}" for f in fields(self)]  # type: ignore[arg-type]
        return "\n".join([f"invatlas {kind}", *held])


def outline(value: object) -> str:
    """Say in a few words what a value is: its size, and the columns of a table."""
    columns, shape = getattr(value, "columns", None), getattr(value, "shape", None)
    if columns is not None and shape is not None:
        text = f"{count_noun(shape[0], 'row')} of {list_first([str(name) for name in columns])}"
    elif shape is not None:
        text = f"{type(value).__name__} of {' x '.join(f'{n:,}' for n in shape)}"
    elif isinstance(value, Mapping):
        text = f"of {list_first(list(map(str, value)))}"
    else:
        text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
