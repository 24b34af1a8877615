"""Names that a user gives, found among the genes measured."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def find_genes(names: Sequence[str], genes: Sequence[str]) -> tuple[list[int], str]:
    """Places of names among the genes, and what to say of those that are no gene, if any are."""
    place = {gene: j for j, gene in enumerate(genes)}
    unknown = [name for name in names if name not in place]
    if not unknown:
        return [place[name] for name in names], ""
    close = difflib.get_close_matches(unknown[0], list(place), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    some = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    found = ", ".join(genes[:5]) + (", ..." if len(genes) > 5 else "")
    many = f"{some} ({len(unknown)} of {len(names)} names)" if len(names) > 1 else some
    return [place[name] for name in names if name in place], (
        f"{many}, which is none of the {len(genes)} genes ({found}){hint}"
    )
