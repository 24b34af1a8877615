"""States, not only cells: flagged cells that lie together, and what they are like.

Two flagged cells are neighbours if each is among the 15 cells of the query nearest to the other
in z_I. What neighbours link is a group; a flagged cell among known ones stays alone. A group is
described by the known combination most of its cells are called, and by the genes that tell it
from the other cells called so (rank sums, by scanpy). The same counts flagged the cells, and
cells of a donor are not independent: markers are a ranking, no test. Of many cells some are
drawn: 5,000 flagged ones to group, 1,000 of each side to compare.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from invatlas.data.counts import check_cells, read_counts
from invatlas.data.gene_names import read_names
from invatlas.errors import DataError
from invatlas.processor import kept_threads
from invatlas.wording import Outlined

SMALLEST_GROUP = 10
NEIGHBOURS = 15
MARKERS = 10
FEWEST_COMPARED = 20
MOST_GROUPED = 5000
MOST_COMPARED = 1000
CALLED, FLAGGED = "predicted_joint", "novelty_flag"


@dataclass(frozen=True, repr=False)
class NovelStates(Outlined):
    """Groups of flagged cells.

    Attributes
    ----------
    cells
        Group of each cell, ``new_1``, ``new_2``, ... by size; missing where it is in none.
    table
        One row a group: ``group``, ``cells``, ``nearest`` (the combination most of its cells are
        called), ``share`` (of them), ``compared_with`` (the known cells the markers are against:
        those called so, or all where they are fewer than 20) and ``markers`` (at most ten genes,
        the most telling first).
    """

    cells: pd.Series
    table: pd.DataFrame


def novel_states(
    adata: AnnData,
    calls: pd.DataFrame,
    latents: np.ndarray,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
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
    gene_column
        Column of var with the names markers are given; var_names where none is named.
    smallest
        Fewest cells a group may have, at least 3.

    Raises
    ------
    DataError
        If calls lack a column, calls or latents are not of these cells, or ``smallest`` is under
        3.
    CountsError
        If the counts are no raw counts.
    """
    check_cells(adata)
    if not len(calls) == len(latents) == adata.n_obs:
        raise DataError(
            f"There are {adata.n_obs} cells, but {len(calls)} calls and {len(latents)} latents."
        )
    if absent := [name for name in (CALLED, FLAGGED) if name not in calls]:
        raise DataError(
            f"calls lacks {' and '.join(absent)}; it takes the table that invatlas.annotate makes."
        )
    if smallest < 3:
        raise DataError(f"smallest is {smallest}; a group takes at least 3 cells.")
    generator = np.random.default_rng(0)
    flagged = calls[FLAGGED].to_numpy(bool)
    code = np.full(adata.n_obs, -1)
    if flagged.sum() >= smallest:
        code = _group(latents, flagged, smallest, generator)
    sizes = pd.Series(code[code >= 0]).value_counts()
    names = {group: f"new_{k}" for k, group in enumerate(sizes.index, 1)}
    cells = pd.Series(code, index=adata.obs_names).map(names).astype(object)
    rows = []
    for name in names.values():
        inside = (cells == name).to_numpy()
        row, against = _describe(inside, calls)
        drawn, compared = (_draw(side, generator, MOST_COMPARED) for side in (inside, against))
        markers = _find_markers(adata, drawn, compared, layer, gene_column)
        rows.append({"group": name, **row, "markers": ", ".join(markers)})
    columns = ["group", "cells", "nearest", "share", "compared_with", "markers"]
    return NovelStates(cells, pd.DataFrame(rows, columns=columns))


def _group(
    z: np.ndarray, flagged: np.ndarray, smallest: int, generator: np.random.Generator
) -> np.ndarray:
    """Group of each cell, -1 for none; a flagged cell that was not drawn joins the nearest."""
    new = _draw(flagged, generator, MOST_GROUPED)
    place = np.full(len(z), -1)
    place[new] = np.arange(len(new))
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS + 1, len(z))).fit(z)
    near = place[search.kneighbors(z[new], return_distance=False)]
    of, to = np.repeat(np.arange(len(new)), near.shape[1])[near.ravel() >= 0], near[near >= 0]
    links = sp.csr_matrix((np.ones(len(of)), (of, to)), shape=(len(new), len(new)))
    _, found = connected_components(links.multiply(links.T), directed=False)
    drawn_share = len(new) / flagged.sum()
    found[np.bincount(found)[found] < smallest * drawn_share] = -1
    code = np.full(len(z), -1)
    code[new] = found
    rest = np.flatnonzero(flagged & (place < 0))
    if len(rest):
        code[rest] = KNeighborsClassifier(1).fit(z[new], found).predict(z[rest])
    return code


def _describe(inside: np.ndarray, calls: pd.DataFrame) -> tuple[dict[str, object], np.ndarray]:
    """What most cells of a group are called, and the known cells to compare them with."""
    called = calls[CALLED].astype(str).to_numpy()
    times = pd.Series(called[inside]).value_counts()
    known = ~calls[FLAGGED].to_numpy(bool)
    alike = known & (called == times.index[0])
    against = alike if alike.sum() >= FEWEST_COMPARED else known
    row = {
        "cells": int(inside.sum()),
        "nearest": times.index[0],
        "share": float(times.iloc[0] / inside.sum()),
        "compared_with": (
            f"{against.sum()} known cells" + (" called so" if against is alike else "")
        ),
    }
    return row, against


def _draw(side: np.ndarray, generator: np.random.Generator, most: int) -> np.ndarray:
    return np.sort(generator.permutation(np.flatnonzero(side))[:most])


def _find_markers(
    adata: AnnData,
    inside: np.ndarray,
    against: np.ndarray,
    layer: str | None,
    gene_column: str | None,
) -> list[str]:
    """Genes clearly higher inside, the most telling first: a ranking, no test."""
    import scanpy as sc  # heavy to import

    if len(against) < 2:
        return []
    rows = np.concatenate([inside, against])
    counts = sp.vstack([chunk for _, chunk in read_counts(adata[rows], layer)], format="csr")
    names = zip(read_names(adata.var, gene_column), adata.var_names, strict=True)
    genes = pd.Index([name or str(other) for name, other in names])
    some = AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame(
            {"side": pd.Categorical(["in"] * len(inside) + ["out"] * len(against))},
            index=np.arange(len(rows)).astype(str),
        ),
        var=pd.DataFrame(index=make_index_unique(genes)),
    )
    with warnings.catch_warnings(), kept_threads():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(some, target_sum=1e4)
        sc.pp.log1p(some)
        sc.tl.rank_genes_groups(some, "side", groups=["in"], reference="out", method="wilcoxon")
        found = sc.get.rank_genes_groups_df(some, "in", pval_cutoff=0.05, log2fc_min=0.5)
    return list(found["names"].head(MARKERS))
