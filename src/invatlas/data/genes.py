"""Which genes a model is made of, and how a query's genes meet them.

Selection ranks genes by the variance of their Pearson residuals under a negative binomial
(Lause, Berens and Kobak 2021, Genome Biology 22:258) through scanpy. It needs no smoothing
over genes, so unlike a loess fit it cannot fail on an experimental batch with few cells.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from invatlas.data.counts import read_counts
from invatlas.errors import GeneError

SELECTION_CELLS = 20_000


def select_genes(
    adata: AnnData, n_genes: int, layer: str | None = None, seed: int = 0
) -> list[str]:
    """Name the most variable genes, in the order of their names.

    Parameters
    ----------
    adata
        Raw counts.
    n_genes
        How many; 0 keeps every gene that is counted at least once.
    layer
        Layer of the counts; X where none is named.
    seed
        Seed of the 20,000 cells that are looked at where there are more.

    Raises
    ------
    GeneError
        If no gene is counted in any cell.
    """
    counts, names = _sample_counts(adata, layer, seed)
    detected = np.asarray((counts > 0).sum(axis=0)).ravel()
    usable = detected >= min(3, max(1, detected.max(initial=0)))
    if not usable.any():
        raise GeneError(f"None of {adata.n_vars} genes is counted in any cell.")
    counts, names = counts[:, usable], names[usable]
    if n_genes == 0 or n_genes >= len(names):
        return sorted(names)
    filled = counts[np.asarray(counts.sum(axis=1)).ravel() > 0]
    looked_at = AnnData(filled.astype(np.float32), var=pd.DataFrame(index=names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = sc.experimental.pp.highly_variable_genes(
            looked_at, flavor="pearson_residuals", n_top_genes=n_genes, inplace=False
        )
    return sorted(names[np.asarray(table["highly_variable"], dtype=bool)])


def _sample_counts(
    adata: AnnData, layer: str | None, seed: int
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of at most SELECTION_CELLS cells, genes of one name added up."""
    names, place = np.unique(np.asarray(adata.var_names, dtype=str), return_inverse=True)
    merge = sp.csr_matrix(
        (np.ones(adata.n_vars), (np.arange(adata.n_vars), place)), shape=(adata.n_vars, len(names))
    )
    wanted = np.ones(adata.n_obs, dtype=bool)
    if adata.n_obs > SELECTION_CELLS:
        chosen = np.random.default_rng(seed).choice(adata.n_obs, SELECTION_CELLS, replace=False)
        wanted = np.isin(np.arange(adata.n_obs), chosen)
    pieces = [chunk[wanted[rows]] @ merge for rows, chunk in read_counts(adata, layer)]
    return sp.vstack(pieces, format="csr"), names


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
    """

    n_genes: int
    n_missing: int
    missing_share: float
    worst: tuple[tuple[str, float], ...]

    def describe(self) -> str:
        """One sentence for a person."""
        if not self.n_missing:
            return f"All {self.n_genes} genes of the atlas are in the query."
        worst = ", ".join(f"{name} ({share:.1%})" for name, share in self.worst)
        return (
            f"{self.n_missing} of {self.n_genes} genes of the atlas are not in the query; they "
            f"held {self.missing_share:.1%} of the reference's counts. The largest: {worst}."
        )


def match_genes(
    present: Sequence[str], genes: Sequence[str], shares: np.ndarray, minimum: float
) -> GeneOverlap:
    """Compare a query's genes with an atlas's.

    Parameters
    ----------
    present
        Genes of the query, in any order.
    genes, shares
        Genes of the atlas, and the share of the reference's counts each held, summing to 1.
    minimum
        Share of the reference's counts that the common genes must have held.

    Raises
    ------
    GeneError
        If the common genes held less than ``minimum``.
    """
    here = np.isin(np.asarray(genes, dtype=str), np.asarray(present, dtype=str))
    absent = np.flatnonzero(~here)
    largest = absent[np.argsort(-shares[absent], kind="stable")][:5]
    overlap = GeneOverlap(
        len(genes),
        len(absent),
        float(shares[absent].sum()),
        tuple((genes[j], float(shares[j])) for j in largest),
    )
    if 1 - overlap.missing_share < minimum:
        examples = ", ".join(map(str, list(present)[:3]))
        raise GeneError(
            f"Only {len(genes) - len(absent)} of {len(genes)} genes of the atlas are in the query, "
            f"and they held {1 - overlap.missing_share:.1%} of the reference's counts; at least "
            f"{minimum:.0%} is needed. The query's genes look like {examples}; the atlas's like "
            f"{', '.join(list(genes)[:3])}."
        )
    return overlap
