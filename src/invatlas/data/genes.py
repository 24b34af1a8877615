"""Which genes a model is made of, and how a query's genes meet them.

Selection ranks genes by the variance of their Pearson residuals under a negative binomial
(Lause, Berens and Kobak 2021, Genome Biology 22:258) through scanpy, within each value of a
technical covariate, so that a gene that only tells donors apart does not count. It needs no
smoothing over genes, so unlike a loess fit it cannot fail on a donor with few cells.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from invatlas.data.counts import read_counts
from invatlas.data.gene_names import (
    HARDLY_ANY,
    Translation,
    find_other_species,
    read_names,
    translate,
)
from invatlas.data.nomenclature import Nomenclature
from invatlas.errors import GeneError
from invatlas.processor import kept_threads
from invatlas.wording import list_first

SELECTION_CELLS = 20_000
SMALLEST_STRATUM = 50
GOOD_COLUMN = 0.5
OTHER_SPECIES = (
    "Genes of two species are not matched by name: map orthologues first, put the atlas's names "
    "in a column of var, and pass its name as gene_column."
)


def select_genes(
    adata: AnnData,
    n_genes: int,
    layer: str | None = None,
    technical: np.ndarray | None = None,
    seed: int = 0,
    names: Sequence[str | None] | None = None,
) -> list[str]:
    """Name the most variable genes, in the order of their names.

    A gene that fewer than three of the cells looked at hold is not among them.

    Parameters
    ----------
    adata
        Raw counts.
    n_genes
        How many; 0 keeps every gene that is counted at least once in any cell.
    layer
        Layer of the counts; X where none is named.
    technical
        Code of each cell's donor or batch, shape (cell,); genes are ranked within each that
        has at least 50 of the cells looked at, the others counting as one.
    seed
        Seed of the 20,000 cells that are looked at where there are more.
    names
        Name of each of the data's genes, None for one to leave out; var_names by default.

    Raises
    ------
    GeneError
        If no gene is counted in any cell, or none has a name.
    """
    import scanpy as sc  # heavy to import

    present = read_names(adata.var) if names is None else names
    if present and all(name is None for name in present):
        raise GeneError(f"None of {adata.n_vars} genes has a name.")
    if n_genes == 0:
        return _list_counted(adata, layer, present)
    chosen = _choose_cells(adata.n_obs, seed)
    counts, distinct = _sum_by_name(adata, layer, chosen, present)
    detected = np.asarray((counts > 0).sum(axis=0)).ravel()
    usable = detected >= min(3, max(1, detected.max(initial=0)))
    if not usable.any():
        raise GeneError(
            f"None of {adata.n_vars} genes is counted in any of the {len(chosen):,} cells "
            "looked at."
        )
    counts, distinct = counts[:, usable], distinct[usable]
    if n_genes >= len(distinct):
        return sorted(distinct.tolist())
    strata = _pool_small(technical[chosen] if technical is not None else np.zeros(len(chosen)))
    filled = np.asarray(counts.sum(axis=1)).ravel() > 0
    looked_at = AnnData(
        counts[filled].astype(np.float32),
        obs=pd.DataFrame(
            {"stratum": pd.Categorical(strata[filled].astype(str))},
            index=np.flatnonzero(filled).astype(str),
        ),
        var=pd.DataFrame(index=distinct),
    )
    with warnings.catch_warnings(), kept_threads():
        warnings.simplefilter("ignore")
        table = sc.experimental.pp.highly_variable_genes(
            looked_at,
            flavor="pearson_residuals",
            n_top_genes=n_genes,
            batch_key="stratum",
            inplace=False,
        )
    return sorted(distinct[np.asarray(table["highly_variable"], dtype=bool)].tolist())


def _list_counted(adata: AnnData, layer: str | None, present: Sequence[str | None]) -> list[str]:
    """Name every gene that is counted in some cell, whether looked at or not, in order."""
    counted = np.zeros(adata.n_vars, dtype=bool)
    for _, chunk in read_counts(adata, layer):
        counted[chunk.indices] = True
    if not counted.any():
        raise GeneError(f"None of {adata.n_vars} genes is counted in any cell.")
    found = {name for name, there in zip(present, counted, strict=True) if there} - {None}
    if not found:
        raise GeneError(f"None of {adata.n_vars} genes that has a name is counted in any cell.")
    return sorted(map(str, found))


def _choose_cells(n_cells: int, seed: int) -> np.ndarray:
    if n_cells <= SELECTION_CELLS:
        return np.arange(n_cells)
    chosen = np.random.default_rng(seed).choice(n_cells, SELECTION_CELLS, replace=False)
    return np.sort(chosen)


def _sum_by_name(
    adata: AnnData, layer: str | None, chosen: np.ndarray, present: Sequence[str | None]
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of the chosen cells, genes of one name added up."""
    named = [j for j, name in enumerate(present) if name is not None]
    names, place = np.unique(np.array([present[j] for j in named], dtype=str), return_inverse=True)
    merge = sp.csr_matrix((np.ones(len(named)), (named, place)), shape=(adata.n_vars, len(names)))
    wanted = np.zeros(adata.n_obs, dtype=bool)
    wanted[chosen] = True
    pieces = [chunk[wanted[rows]] @ merge for rows, chunk in read_counts(adata, layer)]
    return sp.vstack(pieces, format="csr"), names


def _pool_small(codes: np.ndarray) -> np.ndarray:
    """Give values with fewer than SMALLEST_STRATUM cells one code, unless they are all."""
    values, inverse, times = np.unique(codes, return_inverse=True, return_counts=True)
    small = times < SMALLEST_STRATUM
    if small.all() or times[small].sum() < SMALLEST_STRATUM:
        small_code = values[np.argmax(times)]  # too few to rank by: with the largest
    else:
        small_code = values.max() + 1
    return np.where(small[inverse], small_code, codes)


@dataclass(frozen=True)
class GeneOverlap:
    """How the genes of a query meet those of an atlas.

    Attributes
    ----------
    n_genes, n_missing
        Genes of the atlas, and how many of them the query lacks.
    missing_share
        Share of the reference's counts that the missing genes held.
    worst
        The missing genes that held most, largest first: pairs of name and share.
    n_version, n_case
        How many met only without the version of an Ensembl id, and only by case.
    empty
        Positions of the cells, where they were read, that have no count in any gene of the atlas.
    repeated
        Genes of the atlas that several of the query's go by.
    """

    n_genes: int
    n_missing: int
    missing_share: float
    worst: tuple[tuple[str, float], ...]
    n_version: int = 0
    n_case: int = 0
    empty: tuple[int, ...] = ()
    repeated: tuple[str, ...] = ()

    def find_counted(self, n_cells: int) -> np.ndarray:
        """Positions of the cells of a query that have counts."""
        return np.setdiff1d(np.arange(n_cells), self.empty)

    @property
    def n_exact(self) -> int:
        """How many met by the very same name."""
        return self.n_genes - self.n_missing - self.n_version - self.n_case

    def describe_repeated(self) -> list[str]:
        """Say which genes of the atlas several of the query's go by; nothing where none does."""
        if not self.repeated:
            return []
        meet = "gene of the atlas meets" if len(self.repeated) == 1 else "genes of the atlas meet"
        alike = "alike but for versions" if self.n_version else "of one name"
        return [
            f"{len(self.repeated):,} {meet} several of the query's {alike} "
            f"({list_first(self.repeated)}); their counts were added up. If they are different "
            "genes, give each its own name."
        ]

    def describe(self) -> str:
        """A sentence or two for a person."""
        text = f"All {self.n_genes:,} genes of the atlas are in the query."
        if self.n_missing:
            worst = ", ".join(f"{name} ({share:.1%})" for name, share in self.worst)
            text = (
                f"{self.n_missing:,} of {self.n_genes:,} genes of the atlas are not in the query; "
                f"they held {self.missing_share:.1%} of the reference's counts. The largest: "
                f"{worst}."
            )
        if not self.n_version + self.n_case:
            return text
        return (
            f"{text} Of the genes in common {self.n_exact:,} met by the same name, "
            f"{self.n_version:,} by the Ensembl id without its version and {self.n_case:,} by "
            "another case."
        )


def match_genes(
    var: pd.DataFrame,
    genes: Sequence[str],
    shares: np.ndarray,
    minimum: float,
    gene_column: str | None = None,
) -> tuple[Translation, GeneOverlap]:
    """Compare a query's genes with an atlas's.

    Parameters
    ----------
    var
        The query's table of genes, in any order.
    genes, shares
        Genes of the atlas, and the share of the reference's counts each held, summing to 1.
    minimum
        Share of the reference's counts that the common genes must have held.
    gene_column
        Column of var that holds the names to compare; var_names where none is named.

    Returns
    -------
    The atlas's name for each row of var, and how well they met.

    Raises
    ------
    GeneError
        If there is no such column, the genes look like another species', none is in common, or
        the common ones held less than ``minimum``. Another column that would do is named.
    """
    found = translate(read_names(var, gene_column), genes)
    overlap = _measure(found, shares)
    held = 1 - overlap.missing_share
    wrong, advice = find_other_species(found), OTHER_SPECIES
    if not wrong and (not found.n_met or held <= 0 or held < minimum):
        wrong, advice = _say_too_few(found, held, minimum), ""
    if wrong:
        better = _find_column(var, gene_column, found.genes, shares, minimum)
        raise GeneError(f"{wrong} {better or advice}".strip())
    return found, overlap


def _measure(found: Translation, shares: np.ndarray) -> GeneOverlap:
    times = Counter(name for name in found.names if name is not None)
    met = set(times)
    absent = np.array([j for j, gene in enumerate(found.genes) if gene not in met], dtype=int)
    largest = absent[np.argsort(-shares[absent], kind="stable")][:5]
    return GeneOverlap(
        len(found.genes),
        len(absent),
        float(shares[absent].sum()),
        tuple((found.genes[j], float(shares[j])) for j in largest),
        found.n_version,
        found.n_case,
        repeated=tuple(gene for gene in found.genes if times[gene] > 1),
    )


def _say_too_few(found: Translation, held: float, minimum: float) -> str:
    needed = f"at least {minimum:.0%} is needed" if minimum else "more than nothing is needed"
    named = [name for name in found.present if name is not None]
    query, atlas = Nomenclature.of(named), Nomenclature.of(found.genes)
    text = (
        f"Only {found.n_met} of {len(found.genes)} genes of the atlas are in the query, and they "
        f"held {held:.1%} of the reference's counts; {needed}."
    )
    enough = found.n_met >= HARDLY_ANY * len(found.genes) and held > 0
    if enough and query.ensembl == atlas.ensembl:
        return f"{text} A lower minimum_overlap takes fewer."
    text += (
        f" The query's genes look like {', '.join(named[:3]) or 'nothing: none has a name'}; the "
        f"atlas's like {', '.join(found.genes[:3])}."
    )
    if named and query.ensembl != atlas.ensembl:
        text += (
            f" The query has {query.kind}, the atlas {atlas.kind}; a column of var with "
            f"{atlas.kind} can be named as gene_column."
        )
    return text


def _find_column(
    var: pd.DataFrame,
    tried: str | None,
    genes: Sequence[str],
    shares: np.ndarray,
    minimum: float,
) -> str:
    """Name the column of var whose names would meet the atlas's best, if one does well."""
    answers = []
    for column in _text_columns(var):
        found = translate(read_names(var, column), genes)
        held = 1 - _measure(found, shares).missing_share
        if column != tried and held >= max(minimum, GOOD_COLUMN) and not find_other_species(found):
            answers.append((held, found.n_met / len(genes), column))
    if not answers:
        return ""
    _, met, column = max(answers, key=lambda answer: answer[0])
    if column is None:
        return f"var_names match {met:.0%}: leave gene_column out."
    return f"Column {column!r} of var matches {met:.0%}: pass gene_column={column!r}."


def _text_columns(var: pd.DataFrame) -> list[str | None]:
    """Columns of var that could hold names; None stands for var_names."""
    numeric = var.select_dtypes(["number", "bool"]).columns
    return [None, *(name for name in var.columns if isinstance(name, str) and name not in numeric)]
