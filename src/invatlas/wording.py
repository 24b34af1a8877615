"""Numbers and lists, as a sentence holds them."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5


def count_noun(n: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless there is one."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def list_first(names: Sequence[str]) -> str:
    """Write the first few names, and dots where there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
