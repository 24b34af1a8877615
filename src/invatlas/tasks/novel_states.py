"""States, not only cells: flagged cells that lie together, and what they are like.

Cells flagged as new are grouped where z_I is dense (HDBSCAN; Campello et al. 2013, PAKDD), so a
flagged cell on its own stays alone. A group is described by the known combination most of its
cells are called, and by the genes that tell it from the other cells called so (Wilcoxon, by
scanpy).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from sklearn.cluster import HDBSCAN

from invatlas.data.counts import read_counts
from invatlas.errors import DataError

SMALLEST_GROUP = 10
MARKERS = 10
FEWEST_COMPARED = 20
CALLED = "predicted_joint"


@dataclass(frozen=True)
class NovelStates:
    """Groups of flagged cells.

    Attributes
    ----------
    cells
        Group of each cell, ``new_1``, ``new_2``, ... by size; missing where it is in none.
    table
        One row a group: ``group``, ``cells``, ``nearest`` (the combination most of its cells are
        called), ``share`` (of them), ``compared_with`` (how many other cells, called so, the
        markers are against; ``others`` counts all unflagged ones where those were too few) and
        ``markers`` (at most ten genes, the most telling first).
    """

    cells: pd.Series
    table: pd.DataFrame


def novel_states(
    adata: AnnData,
    calls: pd.DataFrame,
    latents: np.ndarray,
    *,
    layer: str | None = None,
    smallest: int = SMALLEST_GROUP,
) -> NovelStates:
    """Group the flagged cells of a query and describe each group.

    Parameters
    ----------
    adata
        The query, raw counts (cell, gene); markers are looked for among all of its genes.
    calls
        What :func:`invatlas.annotate` said of these cells.
    latents
        z_I of the cells, from :func:`invatlas.embed`, shape (cell, latent).
    layer
        Layer of the counts; X where none is named.
    smallest
        Fewest cells a group may have, at least 3.

    Raises
    ------
    DataError
        If calls or latents are not of these cells, or ``smallest`` is under 3.
    CountsError
        If the counts are no raw counts.
    """
    if not len(calls) == len(latents) == adata.n_obs:
        raise DataError(
            f"There are {adata.n_obs} cells, but {len(calls)} calls and {len(latents)} latents."
        )
    if smallest < 3:
        raise DataError(f"smallest is {smallest}; a group takes at least 3 cells.")
    flagged = np.flatnonzero(calls["novelty_flag"].to_numpy(bool))
    code = np.full(adata.n_obs, -1)
    if len(flagged) >= smallest:
        found = HDBSCAN(min_cluster_size=smallest, allow_single_cluster=True, copy=True)
        code[flagged] = found.fit_predict(latents[flagged])
    sizes = pd.Series(code[code >= 0]).value_counts()
    names = {group: f"new_{k}" for k, group in enumerate(sizes.index, 1)}
    cells = pd.Series(code, index=adata.obs_names).map(names).astype(object)
    rows = []
    if names:
        expression = _log_normalise(adata, layer)
        rows = [_describe(expression, cells == name, calls, name) for name in names.values()]
    columns = ["group", "cells", "nearest", "share", "compared_with", "markers"]
    return NovelStates(cells, pd.DataFrame(rows, columns=columns))


def _describe(
    expression: AnnData, inside: pd.Series, calls: pd.DataFrame, name: str
) -> dict[str, object]:
    called = calls[CALLED].astype(str).to_numpy()
    times = pd.Series(called[inside]).value_counts()
    known = ~calls["novelty_flag"].to_numpy(bool)
    against = known & (called == times.index[0])
    if against.sum() < FEWEST_COMPARED:
        against = known
    return {
        "group": name,
        "cells": int(inside.sum()),
        "nearest": times.index[0],
        "share": float(times.iloc[0] / inside.sum()),
        "compared_with": int(against.sum()),
        "markers": ", ".join(_find_markers(expression, inside.to_numpy(), against)),
    }


def _find_markers(expression: AnnData, inside: np.ndarray, against: np.ndarray) -> list[str]:
    """Genes higher inside, at a false discovery rate of 5 %, the most telling first."""
    if against.sum() < 2:
        return []
    some = expression[inside | against].copy()
    some.obs["side"] = pd.Categorical(np.where(inside[inside | against], "inside", "against"))
    sc.tl.rank_genes_groups(some, "side", groups=["inside"], reference="against", method="wilcoxon")
    found = sc.get.rank_genes_groups_df(some, "inside", pval_cutoff=0.05, log2fc_min=0.5)
    return list(found["names"].head(MARKERS))


def _log_normalise(adata: AnnData, layer: str | None) -> AnnData:
    counts = sp.vstack([chunk for _, chunk in read_counts(adata, layer)], format="csr")
    expression = AnnData(counts.astype(np.float32), var=pd.DataFrame(index=adata.var_names))
    expression.obs_names = adata.obs_names
    expression.var_names_make_unique()
    sc.pp.normalize_total(expression, target_sum=1e4)
    sc.pp.log1p(expression)
    return expression
