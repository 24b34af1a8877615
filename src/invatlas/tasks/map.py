"""Bring cells into an atlas: the same table whether they were fitted or never seen."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from anndata import AnnData

from invatlas.atlas import Atlas
from invatlas.data.genes import GeneOverlap
from invatlas.tasks.embed import MINIMUM_OVERLAP, embed_counts, match_counts
from invatlas.tasks.layout import lay_out


@dataclass(frozen=True)
class Mapped:
    """Cells that were brought into an atlas.

    Attributes
    ----------
    cells
        obs of the cells, obsm ``X_invariant`` and ``X_spurious``; no counts.
    overlap
        How the genes of the cells met those of the atlas.
    """

    cells: AnnData
    overlap: GeneOverlap


def map_cells(
    atlas: Atlas,
    adata: AnnData,
    *,
    layer: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
    layout: bool = False,
) -> Mapped:
    """Embed cells and, where wanted, lay them out on a plane.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts; no column of obs is needed or looked at.
    layer
        Layer of the counts; X where none is named.
    minimum_overlap
        Share of the reference's counts that the common genes must have held.
    layout
        Whether to add ``X_invariant_umap`` and ``X_spurious_umap``.

    Raises
    ------
    GeneError
        If too few genes are common to atlas and data.
    CountsError
        If the counts are no raw counts.
    """
    source, overlap = match_counts(atlas, adata, layer, minimum_overlap)
    cells = AnnData(obs=pd.DataFrame(adata.obs).copy())
    for which, latents in embed_counts(atlas, source).items():
        cells.obsm[f"X_{which}"] = latents
        if layout:
            cells.obsm[f"X_{which}_umap"] = lay_out(latents, atlas.settings.seed)
    return Mapped(cells, overlap)
