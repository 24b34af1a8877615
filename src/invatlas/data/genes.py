"""Which genes a model is made of, and how a query's genes meet them.

Selection ranks genes by the variance of their Pearson residuals under a negative binomial
(Lause, Berens and Kobak 2021, Genome Biology 22:258) through scanpy, within each value of a
technical covariate, so that a gene that only tells donors apart does not count. It needs no
smoothing over genes, so unlike a loess fit it cannot fail on a donor with few cells.
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
from invatlas.processor import kept_threads

SELECTION_CELLS = 20_000
SMALLEST_STRATUM = 50


def select_genes(
    adata: AnnData,
    n_genes: int,
    layer: str | None = None,
    technical: np.ndarray | None = None,
    seed: int = 0,
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
    technical
        Code of each cell's donor or batch, shape (cell,); genes are ranked within each that
        has at least 50 of the cells looked at, the others counting as one.
    seed
        Seed of the 20,000 cells that are looked at where there are more.

    Raises
    ------
    GeneError
        If no gene is counted in any cell.
    """
    chosen = _choose_cells(adata.n_obs, seed)
    counts, names = _sum_by_name(adata, layer, chosen)
    detected = np.asarray((counts > 0).sum(axis=0)).ravel()
    usable = detected >= min(3, max(1, detected.max(initial=0)))
    if not usable.any():
        raise GeneError(f"None of {adata.n_vars} genes is counted in any cell.")
    counts, names = counts[:, usable], names[usable]
    if n_genes == 0 or n_genes >= len(names):
        return sorted(names)
    strata = _pool_small(technical[chosen] if technical is not None else np.zeros(len(chosen)))
    filled = np.asarray(counts.sum(axis=1)).ravel() > 0
    looked_at = AnnData(
        counts[filled].astype(np.float32),
        obs=pd.DataFrame({"stratum": pd.Categorical(strata[filled].astype(str))}),
        var=pd.DataFrame(index=names),
    )
    looked_at.obs_names = looked_at.obs_names.astype(str)
    with warnings.catch_warnings(), kept_threads():
        warnings.simplefilter("ignore")
        table = sc.experimental.pp.highly_variable_genes(
            looked_at,
            flavor="pearson_residuals",
            n_top_genes=n_genes,
            batch_key="stratum",
            inplace=False,
        )
    return sorted(names[np.asarray(table["highly_variable"], dtype=bool)])


def _choose_cells(n_cells: int, seed: int) -> np.ndarray:
    if n_cells <= SELECTION_CELLS:
        return np.arange(n_cells)
    chosen = np.random.default_rng(seed).choice(n_cells, SELECTION_CELLS, replace=False)
    return np.sort(chosen)


def _sum_by_name(
    adata: AnnData, layer: str | None, chosen: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of the chosen cells, genes of one name added up."""
    names, place = np.unique(np.asarray(adata.var_names, dtype=str), return_inverse=True)
    merge = sp.csr_matrix(
        (np.ones(adata.n_vars), (np.arange(adata.n_vars), place)), shape=(adata.n_vars, len(names))
    )
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
