"""Donors in z_I: how far apart, how they fall into strata, and which stand out.

    D_ij^2 = mean_k ((m_ik - m_jk)^2 / s_k - 1 / n_i - 1 / n_j)     within a cell type, at least 0
    a_i    = median_j D_ij,      o_i = (a_i - median a) / (1.4826 MAD a)     j of i's condition

m is the mean of the n cells of a sample (one donor in one condition), s the variance of a latent
within samples: the subtraction takes away what so few cells would lie apart by chance. Distances of
all cell types together are the mean of the D^2 that two samples have. o beyond 3.5 stands out
(Iglewicz and Hoaglin 1993, How to detect and handle outliers). Uncertainty is over cells: each
sample's cells of each type are drawn anew with replacement, and 1/n is then subtracted twice.
Samples of one condition fall into strata by average linkage, as many (2 to 4) as have the best
silhouette (Rousseeuw 1987), in one where none reaches 0.25 or drawn cells agree in less than 0.8
of the pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.random import Generator
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score

from invatlas.atlas import Atlas
from invatlas.errors import SettingsError
from invatlas.tasks.samples import Samples, gather_samples
from invatlas.wording import Outlined

OUTLYING = 3.5
FEWEST_COMPARED = 4
LEAST_SILHOUETTE = 0.25
LEAST_STABILITY = 0.8
MOST_STRATA = 4
LEAST_SPREAD = 0.05  # of a, in standard deviations within samples
TOGETHER = "all"


@dataclass(frozen=True, repr=False)
class Donors(Outlined):
    """Where samples lie among each other.

    Attributes
    ----------
    table
        One row a sample and cell type (``all`` last): ``sample``, ``donor``, ``condition``,
        ``cell_type``, ``cells``, ``distance`` (a), ``outlyingness`` (o), ``outlyingness_05`` and
        ``outlyingness_95`` (quantiles over drawn cells), ``outlying`` (the lower one is beyond
        3.5). A distance is 0 where half of the condition's samples or more lie no further off
        than so few cells would by chance, as donors of the fit do; cells drawn anew scatter more,
        so the quantiles of o can be far from 0 there.
    strata
        One row a sample: ``sample``, ``donor``, ``condition``, ``stratum`` (1, 2, ... within its
        condition), ``silhouette`` of the condition, ``stability`` (share of drawings in which the
        sample lay together with those of its stratum, and apart from the others) and the embedding
        ``axis_1``, ``axis_2`` (classical scaling of the distances of all cell types).
    distances
        D (sample, sample) by cell type, and of ``all``; NaN where a sample has too few cells.
    """

    table: pd.DataFrame
    strata: pd.DataFrame
    distances: dict[str, pd.DataFrame]


def donors(
    atlas: Atlas,
    adata: AnnData,
    *,
    donor: str | None = None,
    condition: str | None = None,
    cell_type: str | None = None,
    fewest_cells: int = 10,
    drawings: int = 100,
    seed: int = 0,
    layer: str | None = None,
    gene_column: str | None = None,
) -> Donors:
    """Compare donors by where their cells of each type lie in z_I.

    **Where donors are a technical covariate, compare cells kept from the fit.** z_I is trained not
    to tell donors of one biology apart, and in the very cells of the fit it hardly does: all
    distances may come out as 0, and donors held out to end training stand out among them; a
    warning says so. Donors that the atlas never met, or that were fitted without the donor among
    the technical covariates, show their differences.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts with the three columns in obs.
    donor, condition, cell_type
        Columns of obs; by default the technical covariate with most values, the second and the
        first biological covariate. A donor seen in two conditions makes two samples.
    fewest_cells
        Samples with fewer cells of a type are not compared in it; at least 2.
    drawings
        Drawings of cells behind the quantiles and the stability.
    seed
        Decides what is drawn.
    layer, gene_column
        As in :func:`invatlas.embed`.

    Returns
    -------
    Donors

    Raises
    ------
    CovariateError
        If a column is absent or empty.
    SettingsError
        If a number is out of range, or no cell type has two samples with enough cells.
    """
    for name, value, least in (("fewest_cells", fewest_cells, 2), ("drawings", drawings, 1)):
        if value < least:
            raise SettingsError(f"{name} is {value}; it takes {least} or more.")
    samples = gather_samples(atlas, adata, donor, condition, cell_type, layer, gene_column)
    if samples.met:
        warnings.warn(
            f"{samples.met} of {len(samples.table)} samples are of donors the atlas was fitted to, "
            "whose cells z_I was trained not to tell apart. Samples that it was not trained on lie "
            f"further out for that alone. {atlas.record['held_out']} Ask donors that were all kept "
            "from the fit.",
            stacklevel=2,
        )
    return compare_samples(samples, fewest_cells, drawings, np.random.default_rng(seed))


def compare_samples(
    samples: Samples, fewest_cells: int, drawings: int, generator: Generator
) -> Donors:
    """Compare samples, as :func:`donors`, once cells are embedded."""
    counts = np.zeros((len(samples.cell_types), len(samples.table)), dtype=np.int64)
    np.add.at(counts, (samples.cell_type, samples.sample), 1)
    largest = counts.max()
    counts[counts < fewest_cells] = 0
    if not ((counts > 0).sum(1) > 1).any():
        raise SettingsError(
            f"No cell type has {fewest_cells} cells in each of two samples; the largest has "
            f"{largest}."
        )
    draws = _measure(samples, counts, drawings, generator)
    condition = samples.table["condition"].to_numpy()
    squares = next(draws)
    distances = np.sqrt(squares)
    found, drawn = _find_strata(condition, distances[-1]), []
    score = _score(distances, condition)
    for some in draws:
        some = np.sqrt(some)
        drawn.append(_score(some, condition)[1])
        for strata in found:
            strata.hold_against(some[-1])
    low, high = _quantiles(np.stack(drawn))
    kinds, size = [*samples.cell_types, TOGETHER], len(samples.table)
    table = pd.concat([samples.table] * len(kinds), ignore_index=True).assign(
        cell_type=np.repeat(kinds, size),
        cells=np.concatenate([counts, counts.sum(0, keepdims=True)]).ravel(),
        distance=score[0].ravel(),
        outlyingness=score[1].ravel(),
        outlyingness_05=low.ravel(),
        outlyingness_95=high.ravel(),
        outlying=(low > OUTLYING).ravel(),
    )
    names = samples.table["sample"]
    frames = {k: pd.DataFrame(d, names, names) for k, d in zip(kinds, distances, strict=True)}
    axes = _scale(squares[-1])
    told = _describe_strata(samples.table, found, drawings)
    return Donors(table, told.assign(axis_1=axes[:, 0], axis_2=axes[:, 1]), frames)


def _measure(
    samples: Samples, counts: np.ndarray, drawings: int, generator: Generator
) -> Iterator[np.ndarray]:
    """D^2 (cell type + 1, sample, sample): as found, then of cells drawn anew."""
    n_types, n_samples = counts.shape
    present = [np.flatnonzero(row) for row in counts]
    means = []
    for t, some in enumerate(present):
        blocks = [samples.z[(samples.cell_type == t) & (samples.sample == s)] for s in some]
        within = sum(len(b) * b.var(0) for b in blocks) / max(1, sum(len(b) - 1 for b in blocks))
        scale = np.sqrt(np.asarray(within) + np.finfo(float).tiny)
        means.append([_draw_means(b / scale, drawings, generator) for b in blocks])
    for draw in range(1 + drawings):
        squares = np.full((n_types + 1, n_samples, n_samples), np.nan)
        for t, some in enumerate(present):
            if len(some) > 1:
                noise = (2 if draw else 1) / counts[t, some]
                mean = np.stack([block[draw] for block in means[t]])
                apart = squareform(pdist(mean, "sqeuclidean")) / mean.shape[1]
                apart -= noise[:, None] + noise
                np.fill_diagonal(apart, 0)
                squares[t][np.ix_(some, some)] = apart.clip(0)
        known = np.isfinite(squares[:-1])
        with np.errstate(invalid="ignore"):
            squares[-1] = np.where(known, squares[:-1], 0).sum(0) / known.sum(0)
        yield squares


def _draw_means(block: np.ndarray, drawings: int, generator: Generator) -> np.ndarray:
    """Mean of some cells, then of as many of them drawn with replacement, (drawing, latent)."""
    n = len(block)
    times = generator.multinomial(n, np.full(n, 1 / n), drawings)
    return np.concatenate([block.mean(0)[None], times @ block / n])


def _score(distances: np.ndarray, condition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance a and outlyingness o of each sample, (cell type, sample); NaN among too few."""
    a, o = np.full((2, *distances.shape[:2]), np.nan)
    for value in np.unique(condition):
        (members,) = np.nonzero(condition == value)
        for t, every in enumerate(distances):
            rows = members[np.isfinite(every[np.ix_(members, members)]).sum(1) > 1]
            if len(rows) < 2:
                continue
            own = every[np.ix_(rows, rows)].copy()
            np.fill_diagonal(own, np.nan)
            a[t, rows] = np.nanmedian(own, axis=1)
            if len(rows) >= FEWEST_COMPARED:
                apart = a[t, rows] - np.median(a[t, rows])
                spread = max(1.4826 * np.median(np.abs(apart)), LEAST_SPREAD)
                o[t, rows] = apart / spread
    return a, o


def _quantiles(scores: np.ndarray) -> np.ndarray:
    """Quantiles 0.05 and 0.95 over the first axis, NaN where nothing is known."""
    known = np.isfinite(scores).any(0)
    found = np.full((2, *scores.shape[1:]), np.nan)
    found[:, known] = np.nanquantile(scores[:, known], [0.05, 0.95], axis=0)
    return found


@dataclass(frozen=True)
class _Strata:
    """Strata of the samples of one condition.

    Attributes
    ----------
    members
        Positions of the samples, (member,).
    stratum
        Of each, 1, 2, ..., (member,); one where no cut is good enough.
    silhouette
        Of the cut.
    agreed
        In how many drawings two samples lay together or apart as here, (member, member).
    """

    members: np.ndarray
    stratum: np.ndarray
    silhouette: float
    agreed: np.ndarray

    def hold_against(self, distances: np.ndarray) -> None:
        """Count the pairs that agree with a cut of drawn distances (sample, sample)."""
        if (strata := self.stratum.max()) > 1:
            drawn = _cut(distances[np.ix_(self.members, self.members)], strata)
            alike = self.stratum[:, None] == self.stratum
            self.agreed[:] += (drawn[:, None] == drawn) == alike


def _find_strata(condition: np.ndarray, distances: np.ndarray) -> list[_Strata]:
    """Cut the samples of each condition, if there are enough of them."""
    found = []
    for value in np.unique(condition):
        (members,) = np.nonzero(condition == value)
        members = members[np.isfinite(distances[np.ix_(members, members)]).all(1)]
        if len(members) < FEWEST_COMPARED:
            continue
        inside = distances[np.ix_(members, members)]
        cuts = [_cut(inside, k) for k in range(2, min(MOST_STRATA, len(members) // 2) + 1)]
        scored = [(silhouette_score(inside, cut, metric="precomputed"), cut)
                  for cut in cuts if len(set(cut)) > 1]  # fmt: skip
        silhouette, cut = max(scored, key=lambda pair: pair[0], default=(np.nan, cuts[0]))
        if not silhouette >= LEAST_SILHOUETTE:
            cut = np.ones(len(members), dtype=int)
        found.append(_Strata(members, cut, silhouette, np.zeros(inside.shape)))
    return found


def _describe_strata(table: pd.DataFrame, found: list[_Strata], drawings: int) -> pd.DataFrame:
    """Strata of each sample, one where drawn cells do not agree on them."""
    told = table.assign(stratum=1, silhouette=np.nan, stability=np.nan)
    for strata in found:
        told.loc[strata.members, "silhouette"] = strata.silhouette
        if strata.stratum.max() > 1:
            agree = strata.agreed / drawings
            np.fill_diagonal(agree, np.nan)
            told.loc[strata.members, "stability"] = np.nanmean(agree, axis=1)
            if np.nanmean(agree) >= LEAST_STABILITY:
                told.loc[strata.members, "stratum"] = strata.stratum
    return told


def _cut(distances: np.ndarray, strata: int) -> np.ndarray:
    tree = linkage(squareform(distances, checks=False), "average")
    return np.asarray(fcluster(tree, strata, "maxclust"))


def _scale(squares: np.ndarray) -> np.ndarray:
    """Classical scaling to two axes (Torgerson 1952); unknown squares take the mean one."""
    filled = np.where(np.isfinite(squares), squares, np.nanmean(squares))
    np.fill_diagonal(filled, 0)
    centre = np.eye(len(filled)) - 1 / len(filled)
    values, vectors = np.linalg.eigh(-0.5 * centre @ filled @ centre)
    return np.asarray(vectors[:, :-3:-1] * np.sqrt(values[:-3:-1].clip(0)))
