"""Bring cells into an atlas: the same table whether they were fitted or never seen."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.genes import GeneOverlap
from invatlas.errors import SettingsError
from invatlas.record import describe_namesakes
from invatlas.tasks.align import describe_strangeness, encode_aligned
from invatlas.tasks.annotate import Calling, describe
from invatlas.tasks.doubts import describe_doubts, unknown_values
from invatlas.tasks.embed import LATENTS, MINIMUM_OVERLAP, encode_counts
from invatlas.tasks.layout import lay_out
from invatlas.tasks.novel_states import NovelStates, novel_states
from invatlas.tasks.novelty import describe_limit
from invatlas.wording import Outlined


@dataclass(frozen=True, repr=False)
class Mapped(Outlined):
    """Cells that were brought into an atlas.

    Attributes
    ----------
    cells
        obs of the cells, with the columns of :func:`invatlas.annotate` where calls were wanted;
        obsm ``X_invariant`` and ``X_spurious``; no counts.
    overlap
        How the genes of the cells met those of the atlas.
    notes
        Sentences a user should read before trusting the calls.
    states
        Groups of cells flagged as new, where calls were wanted; obs has them too, as
        ``novelty_group``.
    """

    cells: AnnData
    overlap: GeneOverlap
    notes: list[str]
    states: NovelStates | None


def map_cells(
    atlas: Atlas,
    adata: AnnData,
    *,
    calling: Calling | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
    layout: bool = False,
    align: bool = False,
    align_by: str | None = None,
) -> Mapped:
    """Embed cells and, where wanted, call them and lay them out on a plane.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts; no column of obs is needed, and none but ``align_by`` is used.
    calling
        How to call cells; no calls without it.
    layer
        Layer of the counts; X where none is named.
    gene_column
        Column of var with the names to match; var_names where none is named.
    minimum_overlap
        Share of the reference's counts that the common genes must have held.
    layout
        Whether to add ``X_invariant_umap`` and ``X_spurious_umap``.
    align
        Whether to move z_I's encoder to these cells first; see :func:`invatlas.align`.
    align_by
        Column of obs, such as the batch; the encoder is moved to the cells of each of its values
        by themselves. A disease that is constant in a value goes with it, so do not name donors.

    Raises
    ------
    GeneError
        If too few genes are common to atlas and data, they look like another species', or there
        is no such column.
    CountsError
        If the counts are no raw counts.
    CovariateError
        If there is no column to align by.
    DataError
        If there are fewer than 30 cells to align to, in all or in every value, or the atlas was
        aligned before.
    SettingsError
        If both ways to align are named.
    """
    check_atlas(atlas)
    matching = layer, minimum_overlap, gene_column
    told: list[str] = []
    if align and align_by is not None:
        raise SettingsError("align moves to all cells at once, align_by to each value; name one.")
    if align or align_by is not None:
        posteriors, overlap, moved = encode_aligned(atlas, adata, align_by, *matching)
        told = [moved]
    else:
        if calling is not None:
            told = describe_strangeness(atlas, adata, *matching)
        posteriors, overlap = encode_counts(atlas, adata, LATENTS, *matching)
    told = [*told, *describe_namesakes(adata.obs_names)]
    cells = AnnData(obs=pd.DataFrame(adata.obs).copy())
    for which, posterior in posteriors.items():
        latents = posterior.mean.numpy()
        cells.obsm[f"X_{which}"] = latents
        if layout:
            cells.obsm[f"X_{which}_umap"] = lay_out(latents, atlas.settings.seed)
    states = None
    if calling is None:
        notes = [*told, *unknown_values(atlas, adata.obs), *overlap.describe_repeated()]
    else:
        calls = describe(atlas, posteriors["invariant"], calling, overlap)
        calls = calls.set_axis(cells.obs_names)
        notes = [*told, *describe_doubts(atlas, adata.obs, calling.label_prior, overlap)]
        notes += describe_limit(calls, calling.false_discovery_rate)
        z = cells.obsm["X_invariant"]
        states = novel_states(adata, calls, z, layer=layer, gene_column=gene_column)
        added = calls.assign(novelty_group=pd.Categorical(states.cells))
        if replaced := [name for name in added if name in cells.obs]:
            notes.append(
                f"obs of the query had {', '.join(replaced)} already; what this atlas says stands "
                "in their place."
            )
        cells.obs[added.columns] = added
    return Mapped(cells, overlap, notes, states)
