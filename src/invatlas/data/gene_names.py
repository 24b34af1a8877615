"""By which name of an atlas a query's gene goes.

    exact      the same name
    version    the same Ensembl id: ENSG00000141510.12, ENSG00000141510.18, ENSG00000141510
    case       the same letters: actb for ACTB, C1ORF112 for C1orf112

The first that holds counts. Rows of var that come to the same name by the first two are added
up; by case a gene is met only if nothing else met it, one spelling alone comes to it, and the
two spellings do not look like two species (Actb for ACTB). The copy of a gene on chromosome Y
that GENCODE marks with ``_PAR_Y`` meets its like only, in whatever version: an atlas that was
fitted without it was fitted without its counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from invatlas.data.nomenclature import Nomenclature, differ_like_species, drop_version, fold
from invatlas.errors import GeneError
from invatlas.wording import list_first

HARDLY_ANY = 0.1


@dataclass(frozen=True)
class Translation:
    """Names of a query's genes in the words of an atlas.

    Attributes
    ----------
    present, genes
        The query's own names, missing ones as None, and the atlas's.
    names
        For each of the query's genes the name the atlas has for it, or None.
    n_exact, n_version, n_case
        How many of the atlas's genes were met, by what it took.
    lookalikes
        Pairs of query and atlas that would meet by case but look like two species.
    """

    present: tuple[str | None, ...]
    genes: tuple[str, ...]
    names: tuple[str | None, ...]
    n_exact: int
    n_version: int
    n_case: int
    lookalikes: tuple[tuple[str, str], ...]

    @property
    def n_met(self) -> int:
        """How many of the atlas's genes were met."""
        return self.n_exact + self.n_version + self.n_case


def read_names(var: pd.DataFrame, column: str | None = None) -> list[str | None]:
    """Names of genes from var_names or a column of var, without spaces around them.

    Empty and missing ones of a column are None.

    Raises
    ------
    GeneError
        If there is no such column.
    """
    if column is None:
        return [str(name).strip() for name in var.index]
    if column not in var.columns:
        columns = ", ".join(map(str, var.columns)) or "none"
        raise GeneError(
            f"var has no column {column!r} to take as gene_column; its columns are {columns}."
        )
    values = var[column].convert_dtypes()  # whole numbers beside missing ones stay whole
    return [None if pd.isna(v) or not str(v).strip() else str(v).strip() for v in values]


def describe_repeated(names: Iterable[str | None]) -> list[str]:
    """Say which names of genes come more than once; nothing where none does."""
    times = Counter(name for name in names if name is not None)
    twice = [name for name, n in times.items() if n > 1]
    if not twice:
        return []
    come = "name of a gene comes" if len(twice) == 1 else "names of genes come"
    return [
        f"{len(twice):,} {come} more than once ({list_first(twice)}); the counts of one name were "
        "added up. If they are different genes, give each its own name."
    ]


def translate(present: Sequence[str | None], genes: Sequence[str]) -> Translation:
    """Find the atlas's name for each of a query's genes.

    Parameters
    ----------
    present
        Names of the query's genes, in any order and as often as they come; None has no name.
    genes
        Names of the atlas's genes, each once.
    """
    distinct = list(dict.fromkeys(name for name in present if name is not None))
    atlas = set(genes)
    exact = {name: name for name in distinct if name in atlas}
    ids = _group_alone(genes, drop_version)
    version = {
        name: ids[stem]
        for name in distinct
        if name not in exact and (stem := drop_version(name)) in ids
    }
    met = {**exact, **version}
    case, lookalikes = _meet_by_case([name for name in distinct if name not in met], genes, met)
    met |= case
    return Translation(
        present=tuple(present),
        genes=tuple(genes),
        names=tuple(met.get(name) if name is not None else None for name in present),
        n_exact=len(exact),
        n_version=len(set(version.values()) - set(exact)),
        n_case=len(case),
        lookalikes=tuple(lookalikes),
    )


def find_other_species(found: Translation) -> str | None:
    """Say in a sentence why query and atlas look like two species, or nothing."""
    if len(found.lookalikes) > found.n_met:
        cases = [name.isupper() for name, _ in found.lookalikes]
        whose = ("human", "mouse") if sum(cases) * 2 > len(cases) else ("mouse", "human")
        here, there = zip(*found.lookalikes[:3], strict=True)
        return _contrast(whose, ("symbols", "ones"), (here, there))
    query = Nomenclature.of([name for name in found.present if name is not None])
    atlas = Nomenclature.of(found.genes)
    few = found.n_met < HARDLY_ANY * len(found.genes)
    ids = query.ensembl and atlas.ensembl and few
    fish = not (query.ensembl or atlas.ensembl) and "zebrafish" in (query.species, atlas.species)
    if query.species != atlas.species and (ids or (fish and found.n_case * 2 > found.n_met)):
        whose = (query.species or "another species'", atlas.species or "another species'")
        return _contrast(whose, (query.kind, "ones"), (query.examples, atlas.examples))
    return None


def _contrast(
    whose: tuple[str, str], nouns: tuple[str, str], examples: tuple[Iterable[str], Iterable[str]]
) -> str:
    query, atlas = (
        f"{species} {noun} ({', '.join(shown)})"
        for species, noun, shown in zip(whose, nouns, examples, strict=True)
    )
    return f"The query's genes look like {query}, the atlas's like {atlas}."


def _meet_by_case(
    names: Sequence[str], genes: Sequence[str], met: dict[str, str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Genes that only meet by case, and the pairs that look like two species instead."""
    taken = set(met.values())
    folded = _group_alone(genes, fold)
    case: dict[str, str] = {}
    lookalikes = []
    for key, name in _group_alone(names, fold).items():
        gene = folded.get(key)
        if gene is None or gene in taken:
            continue
        if differ_like_species(name, gene):
            lookalikes.append((name, gene))
        else:
            case[name] = gene
    return case, lookalikes


def _group_alone(names: Iterable[str], form: Callable[[str], str]) -> dict[str, str]:
    """Names by their form, without those that share it with another."""
    alone: dict[str, str] = {}
    shared = set()
    for name in names:
        key = form(name)
        if alone.setdefault(key, name) != name:
            shared.add(key)
    return {key: name for key, name in alone.items() if key not in shared}
