"""Cells counted under conditions an atlas never saw: its encoder of z_I is moved to them.

Wanted where a whole query differs from the reference in one way, such as another technology or a
stimulation. A new donor of a known laboratory needs none. See training/alignment.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.columns import text_values
from invatlas.data.counts import check_cells
from invatlas.data.genes import GeneOverlap
from invatlas.errors import DataError
from invatlas.model.priors import DiagonalGaussian
from invatlas.tasks.embed import (
    LATENTS,
    MINIMUM_OVERLAP,
    encode_counts,
    encode_some,
    match_counts,
    refuse_empty,
)
from invatlas.training.alignment import FEWEST_ALIGNED, apply_shift, find_shift
from invatlas.training.posterior import join

MOST_CELLS = 4096
STRANGE = 1.5  # times as far off as spared donors
MORE_FLAGGED = (
    "If more cells are flagged aligned than unaligned, they are likelier new than shifted: keep "
    "the calls without it."
)


def align(
    atlas: Atlas,
    adata: AnnData,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> Atlas:
    """Move the encoder of z_I to the cells of a query, by their counts alone.

    What the cells called the same have in common, beyond the reference's cells of that call, is
    taken for what the laboratory or the condition adds to all, and taken away. It helps where the
    query has the reference's own types, of one laboratory or condition that the reference lacks. It
    can hurt where many cells
    are of types the reference lacks, where laboratories are mixed (align each to its own), and
    where all cells are of one donor, whose disease is then taken for the laboratory's.

    Parameters
    ----------
    atlas
        A fitted atlas; it is left as it is.
    adata
        Raw counts (cell, gene), at least 30 cells, of which up to 4,096 drawn at random are used;
        obs is never looked at.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.

    Returns
    -------
    Atlas
        For these cells. The means that the batch normalisations of z_I's encoder take away have
        moved; every other weight is bit-identical. ``record["aligned"]`` says to how many cells,
        and how far: ``shift``, a root mean square in units of a cell's own spread.

    Raises
    ------
    DataError
        If there are fewer than 30 cells, or the atlas was aligned before.
    GeneError, CountsError
        As :func:`invatlas.embed`.
    """
    check_atlas(atlas)
    check_cells(adata)
    return _align(atlas, adata, np.arange(adata.n_obs), layer, minimum_overlap, gene_column)


def _align(
    atlas: Atlas,
    adata: AnnData,
    rows: np.ndarray,
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None,
) -> Atlas:
    """The atlas aligned to some cells."""
    if len(rows) < FEWEST_ALIGNED:
        raise DataError(
            f"The query has {len(rows)} cells; an alignment needs at least {FEWEST_ALIGNED}."
        )
    if atlas.record["aligned"]:
        raise DataError(
            f"The atlas was aligned to {atlas.record['aligned']['cells']} cells already; align the "
            "atlas it came from."
        )
    shift, size, overlap = _find_shift(atlas, adata, rows, layer, minimum_overlap, gene_column)
    model = copy.deepcopy(atlas.model)
    apply_shift(model, shift)
    aligned = {"cells": len(rows), "shift": size, "missing_genes": overlap.n_missing}
    record: dict[str, Any] = {**atlas.record, "aligned": aligned}
    return replace(atlas, model=model, record=record)


def _find_shift(
    atlas: Atlas,
    adata: AnnData,
    rows: np.ndarray,
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None,
) -> tuple[torch.Tensor, float, GeneOverlap]:
    """How some cells differ from the reference, as up to 4,096 of them say that have counts."""
    drawn = np.random.default_rng(atlas.settings.seed).permutation(rows)[:MOST_CELLS]
    chosen = adata[np.sort(drawn)]
    source, overlap = match_counts(atlas, chosen, layer, minimum_overlap, gene_column)
    counted = np.flatnonzero(source.matrix.getnnz(axis=1))
    return *find_shift(atlas.model, source, counted), overlap


def describe_strangeness(
    atlas: Atlas,
    adata: AnnData,
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None = None,
) -> list[str]:
    """Say where a query lies farther off than any donor that was spared to calibrate calls."""
    usual = atlas.calibration.usual_shift if atlas.calibration else 0.0
    if not usual or adata.n_obs < FEWEST_ALIGNED or atlas.record["aligned"]:
        return []
    rows = np.arange(adata.n_obs)
    _, shift, _ = _find_shift(atlas, adata, rows, layer, minimum_overlap, gene_column)
    if shift < STRANGE * usual:
        return []
    return [
        f"The query lies {shift:.2f} of a cell's spread from reference cells of the same calls; "
        f"donors nobody trained on lay at most {usual:.2f} away. If its cells are of the "
        "reference's own types, of another laboratory or condition, --align (Python: align=True) "
        f"may call it better. {MORE_FLAGGED}"
    ]


def encode_aligned(
    atlas: Atlas,
    adata: AnnData,
    by: str | None,
    layer: str | None,
    minimum_overlap: float,
    gene_column: str | None = None,
) -> tuple[dict[str, DiagonalGaussian], GeneOverlap, str]:
    """Posteriors of cells, those of each value of a column from an atlas aligned to them alone.

    Without a column the atlas is aligned to all cells at once. Cells without a value, or with one
    that fewer than 30 have, are encoded as they are. The sentence says how far each value moved.
    """
    matching = layer, minimum_overlap, gene_column
    if by is None:
        aligned = _align(atlas, adata, np.arange(adata.n_obs), *matching)
        posteriors, overlap = encode_counts(aligned, adata, LATENTS, *matching)
        told = _describe_moves([("all cells", aligned.record["aligned"]["shift"])])
        return posteriors, overlap, told
    values = text_values(adata.obs, by)
    values = values.where(values.map(values.value_counts()) >= FEWEST_ALIGNED)
    groups, rest = values.groupby(values).indices, np.flatnonzero(values.isna())
    if not groups:
        raise DataError(f"No value of {by!r} has {FEWEST_ALIGNED} cells; an alignment needs them.")
    found, moved = [], []
    for name, rows in groups.items():
        aligned = _align(atlas, adata, rows, *matching)
        found.append(encode_some(aligned, adata[rows], LATENTS, *matching))
        moved.append((name, aligned.record["aligned"]["shift"]))
    told = _describe_moves(moved)
    if len(rest):
        found.append(encode_some(atlas, adata[rest], LATENTS, *matching))
        told += f" {len(rest)} cells without a {by} that {FEWEST_ALIGNED} have are as they were."
    order = torch.from_numpy(np.argsort(np.concatenate([*groups.values(), rest])))
    joined = {which: join([q[which] for q, _ in found]) for which in LATENTS}
    posteriors = {
        which: DiagonalGaussian(q.mean[order], q.log_variance[order]) for which, q in joined.items()
    }
    parts = zip([*groups.values(), rest], found, strict=False)
    empty = [int(rows[k]) for rows, (_, overlap) in parts for k in overlap.empty]
    refuse_empty(len(empty), adata.n_obs)
    return posteriors, replace(found[0][1], empty=tuple(sorted(empty))), told


def _describe_moves(moved: list[tuple[str, float]]) -> str:
    shifts = [f"{name} {shift:.2f}" for name, shift in moved]
    return (
        f"Aligned, moved by shares of a cell's spread: {', '.join(shifts)}. Calibration and "
        f"novelty are the atlas's own, which met no such shift. {MORE_FLAGGED}"
    )
