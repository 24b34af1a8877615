"""What gene names look like: Ensembl ids or symbols, and whose.

Symbols of different species often differ by case only (ACTB is human, Actb is mouse, rat or
hamster), so case is evidence: upper case against mixed case speaks for two species. The
exception are human symbols of open reading frames, such as C1orf112.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ENSEMBL = re.compile(r"(ENS[A-Z]*G)(\d+)(\.\d+)?(_PAR_Y)?", re.IGNORECASE)
READING_FRAME = re.compile(r"C(\d+|X|Y)orf\d", re.IGNORECASE)
ZEBRAFISH = re.compile(r"zgc:\d|si:(ch|dkey|rp|zfos)", re.IGNORECASE)
SPECIES_OF_IDS = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "macaque",
    "ENSSSCG": "pig",
}


@dataclass(frozen=True)
class Nomenclature:
    """What most of many gene names look like.

    Attributes
    ----------
    ensembl
        Whether they are Ensembl ids; symbols otherwise.
    species
        Whose: a species, the prefix of an id such as ENSBTAG, or nothing where none can be told.
    examples
        The first three of them.
    """

    ensembl: bool
    species: str
    examples: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Nomenclature:
        """Judge by the majority of the names."""
        prefixes: Counter[str] = Counter()
        cases: Counter[str] = Counter()
        for name in names:
            if found := ENSEMBL.fullmatch(name):
                prefixes[found[1].upper()] += 1
            else:
                cases["zebrafish" if ZEBRAFISH.match(name) else case_of(name)] += 1
        if prefixes.total() > cases.total():
            prefix = prefixes.most_common(1)[0][0]
            examples = [name for name in names if name.upper().startswith(prefix)]
            return cls(True, SPECIES_OF_IDS.get(prefix, prefix), tuple(examples[:3]))
        if cases["zebrafish"]:
            examples = [name for name in names if ZEBRAFISH.match(name)]
            return cls(False, "zebrafish", tuple(examples[:3]))
        commonest = cases.most_common(1)[0][0] if cases else ""
        species = {"upper": "human", "mixed": "mouse"}.get(commonest, "")
        return cls(False, species, tuple(names[:3]))

    @property
    def kind(self) -> str:
        """Ensembl ids or symbols."""
        return "Ensembl ids" if self.ensembl else "symbols"


def case_of(name: str) -> str:
    """Say whether the letters are ``upper``, ``lower`` or ``mixed``."""
    return "upper" if name.isupper() else "lower" if name.islower() else "mixed"


def drop_version(name: str) -> str:
    """Cut the version off an Ensembl id and leave every other name alone.

    ``_PAR_Y`` stays: the copy of a gene on chromosome Y has counts of its own.
    """
    found = ENSEMBL.fullmatch(name)
    return f"{found[1]}{found[2]}{found[4] or ''}" if found else name


def fold(name: str) -> str:
    """Bring names that differ by case or version only to one form."""
    return drop_version(name).casefold()


def differ_like_species(one: str, other: str) -> bool:
    """Whether two symbols that differ by case only look like genes of two species."""
    if ENSEMBL.fullmatch(one) or READING_FRAME.match(one):
        return False
    return {case_of(one), case_of(other)} == {"upper", "mixed"}
