"""Names that a user gives, found among the genes measured."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from invatlas.wording import list_first

SEVERAL = (
    "several genes are joined by + in a column, stand one a line in a file and each after a --gene "
    "of its own in a command"
)


def find_genes(names: Sequence[str], genes: Sequence[str]) -> tuple[list[int], str]:
    """Places of names among the genes, and what to say of those that are no gene, if any are.

    What is said goes into a sentence of the caller's, who ends it.
    """
    place = {gene: j for j, gene in enumerate(genes)}
    unknown = [str(name) for name in names if name not in place]
    if not unknown:
        return [place[name] for name in names], ""
    some = list_first([repr(name) for name in unknown])
    many = f"{some} ({len(unknown)} of {len(names)} names)" if len(names) > 1 else some
    verb = "is" if len(unknown) == 1 else "are"
    return [place[name] for name in names if name in place], (
        f"{many}, which {verb} none of the {len(genes)} genes "
        f"({list_first(genes)}{_hint(unknown[0], place)})"
    )


def _hint(name: str, genes: dict[str, int]) -> str:
    """What may have been meant, after a semicolon; nothing where nothing is near."""
    parts = [part for part in re.split(r"[\s,;|/+]+", name) if part]
    if len(parts) > 1 and all(part in genes for part in parts):
        return f"; {SEVERAL}"
    same_but_case = {gene.casefold(): gene for gene in reversed(genes)}
    close = difflib.get_close_matches(name.casefold(), list(same_but_case), n=1)
    return f"; did you mean {same_but_case[close[0]]!r}?" if close else ""
