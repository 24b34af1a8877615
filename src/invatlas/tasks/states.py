"""States within a cell type: groups of z_I, and which diseases share them.

    r_i = z_I i - median of z_I over the cells of i's donor      what all its cells have, removed
    S_1 v = lambda S_0 v      S covariance of r, 0 in the reference, 1 in the others
    V r ~ mixture of k Gaussians of one covariance
          V the v of largest lambda (Abid et al. 2018, Nature Communications 9): where diseased
          cells vary more than those of the reference do
    J_a = mean over resamples of max_b |a n b| / |a u b|          stability (Hennig 2007,
          Computational Statistics & Data Analysis 52); donors are drawn with replacement
    k   = the number whose least stable state has the largest J, if that is 0.6 or more; else one

A shift of all cells of a disease is what :func:`invatlas.differential_expression` tells; a state
is a part of the cells, fewer than half of those of a donor beside the usual ones. A disease is
named if it has more of the cells of its donors in a state than the reference, by 0.15 at least
and significantly: shares p of donors, as asin sqrt p, compared by a t test whose variance is
pooled over diseases (Phipson et al. 2022, Bioinformatics 38), two-sided, Benjamini-Hochberg over
states and diseases. V favours directions in which diseases differ from the reference, and z_I
was fitted to tell diseases apart: without the least difference of 0.15, states would be named
where there are none, and p-values are smaller than they ought to be. Markers compare the cells of
a state with the others of the same donors. States were found in the
same counts: their markers are a description, no test.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.columns import text_values
from invatlas.data.counts import check_cells
from invatlas.errors import CovariateError, DataError, GeneError
from invatlas.processor import kept_threads
from invatlas.tasks.differential import differential_expression
from invatlas.tasks.embed import MINIMUM_OVERLAP, embed
from invatlas.tasks.groups import choose_cells, take_samples
from invatlas.tasks.samples import name_biology
from invatlas.wording import Outlined

MOST_STATES = 6
COMPONENTS = 2
RESAMPLES = 10
STABLE = 0.6
LEAST_DIFFERENCE = 0.15
FALSE_DISCOVERY_RATE = 0.05
MOST_CLUSTERED = 20_000
FEWEST_CELLS = 50
FEWEST_OF_A_DONOR = 5
MARKERS = 10


@dataclass(frozen=True, repr=False)
class States(Outlined):
    """States of the cells of one type.

    Attributes
    ----------
    cells
        State of each cell of the type, ``state_1``, ``state_2``, ... by size.
    table
        One row a state: ``state``, ``cells``, ``stability`` (J), ``diseases`` (those with more of
        it, by name), ``markers`` (at most ten genes higher in it), and for each gene list
        ``score_...``: mean log2 fold change of its genes less that of the others. No genes are
        told where fewer than two donors have five cells in a state and outside it, or the
        likelihood is gaussian.
    shares
        One row a state and disease: ``state``, ``disease``, ``donors``, ``share`` (mean over
        donors), ``reference_share``, ``p_value``, ``false_discovery_rate``.
    stability
        Least J of any state, by number of states.
    """

    cells: pd.Series
    table: pd.DataFrame
    shares: pd.DataFrame
    stability: pd.Series


def states(
    atlas: Atlas,
    adata: AnnData,
    *,
    cell_type: str,
    reference: str,
    cell_type_column: str | None = None,
    disease: str | None = None,
    donor: str = "donor",
    gene_lists: Mapping[str, Sequence[str]] | None = None,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
    seed: int = 0,
) -> States:
    """Find the states within a cell type and say which diseases share them.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts, with the columns below in obs.
    cell_type, cell_type_column
        The type to look into, and the column that names it; by default the first biological
        covariate.
    disease
        Column of obs whose values may share states, by default the second biological covariate;
        every cell is compared within its own.
    reference
        Its value that the others are compared with, such as ``healthy``.
    donor
        Column of obs that names the replicates.
    gene_lists
        Genes to score each state by, by name.
    false_discovery_rate
        At which a disease is named.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.
    seed
        Of the resamples and mixtures.

    Raises
    ------
    DataError
        If the type has fewer than 50 cells, or its cells have fewer than three donors with five.
    CovariateError, GeneError, CountsError
        If a column, value, gene or count is none that can be used.
    """
    check_atlas(atlas)
    check_cells(adata)
    for name, genes in (gene_lists or {}).items():
        if not set(map(str, genes)) & set(atlas.genes):
            raise GeneError(
                f"The gene list {name!r} has none of the atlas's {len(atlas.genes)} genes."
            )
    cell_type_column, disease = name_biology(atlas, cell_type_column, disease)
    if disease is None:
        raise CovariateError(
            f"{cell_type_column} is the atlas's only biological covariate; name the column of obs "
            "whose values may share states as disease."
        )
    chosen = choose_cells(adata.obs, {cell_type_column: cell_type}, "cell_type")
    illness, person = (text_values(adata.obs, column) for column in (disease, donor))
    chosen &= illness.notna().to_numpy() & person.notna().to_numpy()
    if chosen.sum() < FEWEST_CELLS:
        raise DataError(
            f"{chosen.sum()} cells are {cell_type} and have a {disease} and a {donor}; states "
            f"take at least {FEWEST_CELLS}."
        )
    kinds, donors = illness[chosen].to_numpy(), person[chosen].to_numpy()
    healthy = kinds == reference
    if min(healthy.sum(), (~healthy).sum()) < FEWEST_OF_A_DONOR:
        raise CovariateError(
            f"{healthy.sum()} of {len(kinds)} {cell_type} have {disease} {reference!r}; a "
            f"reference and others take {FEWEST_OF_A_DONOR} each. The values are "
            f"{', '.join(sorted(set(kinds)))}."
        )
    _check_donors(kinds, donors, reference)
    some = adata[chosen]
    z = embed(atlas, some, layer=layer, gene_column=gene_column, minimum_overlap=minimum_overlap)
    code, stability, curve = _find(_contrast(z, kinds, donors, reference), donors, seed)
    names = np.array([f"state_{k + 1}" for k in range(len(stability))])
    shares = _compare_shares(names[code], kinds, donors, reference)
    compare = partial(
        differential_expression,
        atlas,
        some,
        donor=donor,
        fewest_cells=FEWEST_OF_A_DONOR,
        layer=layer,
        gene_column=gene_column,
        minimum_overlap=minimum_overlap,
    )
    rows = []
    for k, name in enumerate(names):
        mine = shares[shares["state"] == name]
        more = mine["share"] - mine["reference_share"] >= LEAST_DIFFERENCE
        named = mine["disease"][more & (mine["false_discovery_rate"] <= false_discovery_rate)]
        row = {"state": name, "cells": int((code == k).sum()), "stability": stability[k]}
        told = _describe_genes(compare, code == k, gene_lists or {})
        rows.append({**row, "diseases": ", ".join(named), **told})
    cells = pd.Series(names[code], index=some.obs_names, name="state")
    return States(cells, pd.DataFrame(rows), shares, curve)


def _check_donors(kinds: np.ndarray, donors: np.ndarray, reference: str) -> None:
    """Refuse cells whose donors are too few to compare shares over."""
    pairs, cells = np.unique(np.stack([kinds, donors]).astype(str), axis=1, return_counts=True)
    kind = pairs[0, cells >= FEWEST_OF_A_DONOR]
    if len(kind) < 3 or reference not in kind:
        raise DataError(
            f"{len(kind)} donors have {FEWEST_OF_A_DONOR} or more of the cells, "
            f"{(kind == reference).sum()} of them {reference}; shares of states are compared over "
            "at least 3, one of them of the reference."
        )


def _contrast(z: np.ndarray, kinds: np.ndarray, donors: np.ndarray, reference: str) -> np.ndarray:
    """V r, in units of the spread of the reference; float64 (cell, component)."""
    r = z.astype(np.float64)
    for donor in np.unique(donors):
        r[donors == donor] -= np.median(z[donors == donor], axis=0)
    here = kinds == reference
    s_0, s_1 = (
        LedoitWolf(assume_centered=True).fit(some).covariance_ for some in (r[here], r[~here])
    )
    _, v = eigh(s_1, s_0)
    x: np.ndarray = r @ v[:, ::-1][:, :COMPONENTS]
    return x


def _find(x: np.ndarray, donors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, pd.Series]:
    """State of each cell, largest first; J of each state; least J by number of states."""
    generator = np.random.default_rng(seed)
    few = generator.permutation(len(x))[:MOST_CLUSTERED]
    people = [np.intersect1d(few, np.flatnonzero(donors == name)) for name in np.unique(donors)]
    best, curve = (np.zeros(len(x), dtype=int), np.ones(1)), {1: 1.0}
    with warnings.catch_warnings(), kept_threads():
        warnings.simplefilter("ignore")
        for k in range(2, MOST_STATES + 1):
            code = _mix(x, few, k, seed)
            overlaps = []
            for resample in range(RESAMPLES):
                drawn = generator.integers(len(people), size=len(people))
                rows = np.concatenate([people[person] for person in drawn])
                if len(rows) < k:  # donors of a cell or two, drawn again and again
                    continue
                overlaps.append(_overlap(code, _mix(x, rows, k, seed + 1 + resample), k))
            stability = np.mean(overlaps, axis=0)
            curve[k] = float(stability.min())
            if STABLE <= curve[k] == max(list(curve.values())[1:]):
                best = code, stability
    code, stability = best
    order = np.argsort(-np.bincount(code, minlength=len(stability)), kind="stable")
    return np.argsort(order)[code], stability[order], pd.Series(curve, name="stability")


def _mix(x: np.ndarray, rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Likeliest of k Gaussians for each cell, fitted to some rows, of which some may repeat."""
    mixture = GaussianMixture(
        k, covariance_type="tied", n_init=3, reg_covar=1e-3, random_state=seed % 2**32
    )
    return np.asarray(mixture.fit(x[rows]).predict(x))


def _overlap(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Largest Jaccard index of each group of a with a group of b, shape (group,)."""
    both = np.zeros((k, k))
    np.add.at(both, (a, b), 1)
    either = both.sum(1, keepdims=True) + both.sum(0) - both
    largest: np.ndarray = (both / np.maximum(either, 1)).max(1)
    return largest


def _compare_shares(
    state: np.ndarray, kinds: np.ndarray, donors: np.ndarray, reference: str
) -> pd.DataFrame:
    """Compare the shares of each state over donors, each disease against the reference."""
    table = pd.crosstab([kinds, donors], state)
    table = table[table.sum(axis=1) >= FEWEST_OF_A_DONOR]
    kind = table.index.get_level_values(0).to_numpy()
    share = table.div(table.sum(axis=1), axis=0)
    y = np.arcsin(np.sqrt(share))
    residual = y - y.groupby(kind).transform("mean")
    degrees = len(y) - len(set(kind))
    rows = []
    for name in share:
        spread = np.sqrt((residual[name] ** 2).sum() / max(degrees, 1))
        for value in sorted(set(kind) - {reference}):
            inside = kind == value
            against = kind == reference
            gap = y[name][inside].mean() - y[name][against].mean()
            error = max(spread, 1e-9) * np.sqrt(1 / inside.sum() + 1 / against.sum())
            row = {
                "state": name,
                "disease": value,
                "donors": int(inside.sum()),
                "share": share[name][inside].mean(),
                "reference_share": share[name][against].mean(),
                "p_value": 2 * stats.t.sf(abs(gap) / error, degrees) if degrees else 1.0,
            }
            rows.append(row)
    columns = ["state", "disease", "donors", "share", "reference_share", "p_value"]
    found = pd.DataFrame(rows, columns=columns)
    q = stats.false_discovery_control(found["p_value"]) if len(found) else []
    return found.assign(false_discovery_rate=q)


def _describe_genes(
    compare: partial[pd.DataFrame],
    inside: np.ndarray,
    gene_lists: Mapping[str, Sequence[str]],
) -> dict[str, object]:
    """Markers of a state, and its score by each list of genes; nothing where they are not told."""
    (atlas, cells), choices = compare.args, compare.keywords
    scores: dict[str, float] = {f"score_{name}": np.nan for name in gene_lists}
    try:
        take_samples(cells.obs, inside, ~inside, choices["donor"], choices["fewest_cells"])
    except DataError:
        return {"markers": "", **scores}
    if atlas.settings.likelihood == "gaussian":
        return {"markers": "", **scores}
    table = compare(inside, ~inside)
    higher = (table["false_discovery_rate"] <= 0.05) & (table["log2_fold_change"] > 0)
    markers = table[higher].sort_values("log2_fold_change", ascending=False).index[:MARKERS]
    for name, genes in gene_lists.items():
        listed = table.index.isin([str(gene) for gene in genes])
        change = table["estimate"]
        scores[f"score_{name}"] = float(change[listed].mean() - change[~listed].mean())
    return {"markers": ", ".join(markers), **scores}
