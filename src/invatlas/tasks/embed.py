"""Where cells lie in an atlas: latents from counts alone, for cells with or without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.counts import CountSource, check_cells, read_pieces
from invatlas.data.gene_names import Translation
from invatlas.data.genes import GeneOverlap, match_genes
from invatlas.errors import CountsError, SettingsError
from invatlas.model.priors import DiagonalGaussian
from invatlas.training.posterior import encode_pieces

LATENTS = ("invariant", "spurious")
MINIMUM_OVERLAP = 0.5


def embed(
    atlas: Atlas,
    adata: AnnData,
    which: str = "invariant",
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> np.ndarray:
    """Posterior means of one set of latents; obs is never looked at.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts; genes are matched by name, in any order, without the versions of Ensembl ids
        and, where nothing else meets, by other case.
    which
        ``invariant`` for z_I, ``spurious`` for z_S.
    layer
        Layer of the counts; X where none is named.
    gene_column
        Column of var with the names to match, such as symbols where var_names are Ensembl ids;
        var_names where none is named. A gene without a value is left out.
    minimum_overlap
        Share of the reference's counts that the common genes must have held.

    Returns
    -------
    Array (cell, latent), float32.

    Raises
    ------
    GeneError
        If too few genes are common to atlas and data, they look like another species', or there
        is no such column.
    CountsError
        If the counts are no raw counts.
    """
    if which not in LATENTS:
        raise SettingsError(f"which is {which!r}; it takes {' or '.join(LATENTS)}.")
    q, _ = encode_counts(atlas, adata, [which], layer, minimum_overlap, gene_column)
    return q[which].mean.numpy()


def encode_counts(
    atlas: Atlas,
    adata: AnnData,
    which: Sequence[str],
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None = None,
) -> tuple[dict[str, DiagonalGaussian], GeneOverlap]:
    """Posteriors of a query, of which some cells must have counts; see :func:`encode_some`."""
    found = encode_some(atlas, adata, which, layer, minimum_overlap, gene_column)
    refuse_empty(len(found[1].empty), adata.n_obs)
    return found


def refuse_empty(n_empty: int, n_cells: int) -> None:
    """Refuse a query without a count."""
    if n_empty == n_cells:
        raise CountsError(f"No gene of the atlas is counted in any of {n_cells} cells.")


def encode_some(
    atlas: Atlas,
    adata: AnnData,
    which: Sequence[str],
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None = None,
) -> tuple[dict[str, DiagonalGaussian], GeneOverlap]:
    """Posteriors of sets of latents from counts that are read piece by piece and never held whole.

    Genes and library sizes meet as in :func:`match_counts`; the account of genes names the cells
    that have no count in any of them.
    """
    found, overlap = _match(atlas, adata, minimum_overlap, gene_column)
    counted: list[np.ndarray] = []

    def read() -> Iterator[CountSource]:
        for piece in read_pieces(adata, atlas.genes, layer, found.names):
            counted.append(np.diff(piece.matrix.indptr) > 0)
            yield _raise_library_size(piece, overlap)

    posteriors = encode_pieces(atlas.model, read(), which)
    empty = np.flatnonzero(~np.concatenate(counted)).tolist()
    return posteriors, replace(overlap, empty=tuple(empty))


def match_counts(
    atlas: Atlas,
    adata: AnnData,
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None = None,
) -> tuple[CountSource, GeneOverlap]:
    """Counts of the atlas's genes in other data, and how well the genes met.

    Where genes are missing, library sizes are raised to what all genes would have summed to:
    divided by the share of the reference's counts that the common genes held.
    """
    found, overlap = _match(atlas, adata, minimum_overlap, gene_column)
    source = CountSource.from_anndata(adata, atlas.genes, layer, found.names)
    return _raise_library_size(source, overlap), overlap


def _match(
    atlas: Atlas, adata: AnnData, minimum_overlap: float, gene_column: str | None
) -> tuple[Translation, GeneOverlap]:
    check_atlas(atlas)
    check_cells(adata)
    return match_genes(adata.var, atlas.genes, atlas.gene_shares, minimum_overlap, gene_column)


def _raise_library_size(source: CountSource, overlap: GeneOverlap) -> CountSource:
    """Library sizes as they would be had no gene been missing."""
    present = np.float32(1 - overlap.missing_share)
    return replace(source, library_size=source.library_size / present)


def find_counted(atlas: Atlas, var: pd.DataFrame, gene_column: str | None = None) -> np.ndarray:
    """Which genes of the atlas other data count, bool (gene,)."""
    found, _ = match_genes(var, atlas.genes, atlas.gene_shares, 0.0, gene_column)
    names = set(found.names)
    return np.array([gene in names for gene in atlas.genes])
