"""Scores: the unedited scIB table, mixing within classes, the leak, and what labels can be told.

    mixing   = mean over classes of H(batch | k nearest of the class) / H(batch | k drawn from it)
    leak     = balanced accuracy of the batch, told from the latent given biology, on units nobody
               learnt from, held against exchanges of the batch between units
    accuracy = balanced accuracy of each biological covariate among the hidden cells, by logistic
               regression of the joint label on the latents of the shown cells

H is the entropy of batches among cells; mixing is 1 where neighbours are as good as drawn. The leak
and its null distribution are those of ``ia.evaluate.leakage`` (:mod:`invatlas.evaluate.question`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from datasets import Split, Study, joint_label

if TYPE_CHECKING:
    from invatlas.evaluate.probes import Probe

BIOLOGICAL = [
    "isolated_labels",
    "kmeans_nmi",
    "kmeans_ari",
    "silhouette_label",
    "clisi",
]
BATCH = ["bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison"]
SUMMARY = ["bio", "batch", "total"]
# our column name -> (field that switches the metric on in scib-metrics, row of its results)
METRICS = {
    "isolated_labels": ("isolated_labels", "isolated_labels"),
    "kmeans_nmi": (
        "nmi_ari_cluster_labels_kmeans",
        "nmi_ari_cluster_labels_kmeans_nmi",
    ),
    "kmeans_ari": (
        "nmi_ari_cluster_labels_kmeans",
        "nmi_ari_cluster_labels_kmeans_ari",
    ),
    "silhouette_label": ("silhouette_label", "silhouette_label"),
    "clisi": ("clisi_knn", "clisi_knn"),
    "bras": ("bras", "bras"),
    "ilisi": ("ilisi_knn", "ilisi_knn"),
    "kbet": ("kbet_per_label", "kbet_per_label"),
    "graph_connectivity": ("graph_connectivity", "graph_connectivity"),
    "pcr_comparison": ("pcr_comparison", "pcr_comparison"),
}
FEWEST_CELLS = 91  # scIB looks at 90 neighbours
FEWEST_IN_CLASS = 20  # cells of a class to measure mixing in
LEAK_CELLS = 2500
LEAK_FOLDS = 4
PERMUTATIONS = 39


def compute_counts_pca(adata: anndata.AnnData) -> np.ndarray:
    """Principal components of normalised log counts of all genes, before any integration.

    The same step scib-metrics takes by itself: the reference PCR comparison measures against.

    Parameters
    ----------
    adata
        Raw counts of the scored cells (cell, gene).

    Returns
    -------
    ndarray (cell, component), at most 50 components.
    """
    import scanpy as sc

    counts = anndata.AnnData(adata.X.copy())
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    sc.pp.pca(counts, n_comps=min(50, *(n - 1 for n in counts.shape)), svd_solver="arpack")
    return np.asarray(counts.obsm["X_pca"])


def score(
    latent: np.ndarray, labels: np.ndarray, batches: np.ndarray, counts_pca: np.ndarray
) -> pd.Series:
    """Score a latent with the unedited scIB table of scib-metrics.

    All ten metrics are computed by ``scib_metrics.benchmark.Benchmarker`` with its defaults and
    not min-max scaled; ``bio`` and ``batch`` are means of five, ``total = 0.6 bio + 0.4 batch``
    (Luecken et al., Nature Methods 2022).

    A metric that scib-metrics cannot compute on these cells (for instance BRAS when no label
    occurs in two batches) is NaN and left out of its mean, with a warning that names it; labels
    with one cell stay in, and scib-metrics gives such a cell a silhouette of 0.

    Parameters
    ----------
    latent
        Array (cell, latent).
    labels, batches
        Arrays (cell,) of biological label and experimental batch, nothing missing.
    counts_pca
        Array (cell, component) from :func:`compute_counts_pca`.

    Returns
    -------
    Series of the ten metrics, ``bio``, ``batch`` and ``total``.

    Raises
    ------
    ValueError
        When the latent is not finite, the lengths differ, there are too few cells, or scib-metrics
        computes none of the ten.
    """
    labels, batches = np.asarray(labels).astype(str), np.asarray(batches).astype(str)
    latent = np.ascontiguousarray(latent, dtype=np.float32)
    if not len(latent) == len(labels) == len(batches) == len(counts_pca):
        raise ValueError(
            f"lengths differ: latent {len(latent)}, labels {len(labels)}, "
            f"batches {len(batches)}, counts_pca {len(counts_pca)}"
        )
    if len(latent) < FEWEST_CELLS:
        raise ValueError(f"{len(latent)} cells to score, scIB needs at least {FEWEST_CELLS}")
    if not np.isfinite(latent).all():
        raise ValueError(f"{int((~np.isfinite(latent)).any(axis=1).sum())} cells are not finite")
    adata = anndata.AnnData(latent)
    adata.obs = pd.DataFrame({"label": labels, "batch": batches}, index=adata.obs_names)
    adata.obsm.update(latent=latent, counts_pca=np.asarray(counts_pca, dtype=np.float32))
    try:
        values = _run_benchmarker(adata, list(METRICS))
    except Exception as error:  # one metric failed: find which, keep the others
        values = pd.Series(np.nan, index=list(METRICS))
        for name in METRICS:
            with contextlib.suppress(Exception):
                values[name] = _run_benchmarker(adata, [name])[name]
        if values.isna().all():
            raise ValueError(f"scib-metrics computes nothing on these cells: {error}") from error
    if absent := list(values.index[values.isna()]):
        warnings.warn(f"left out, not computable on these cells: {absent}", stacklevel=2)
    values["bio"] = values[BIOLOGICAL].mean()
    values["batch"] = values[BATCH].mean()
    values["total"] = 0.6 * values["bio"] + 0.4 * values["batch"]
    return values


def _run_benchmarker(adata: anndata.AnnData, names: list[str]) -> pd.Series:
    """Values of the named metrics from one run of the scib-metrics Benchmarker."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    logging.getLogger("scib_metrics").setLevel(logging.WARNING)
    fields = {METRICS[name][0] for name in names}
    bio = {f: f in fields for f in {METRICS[n][0] for n in BIOLOGICAL}}
    batch = {f: f in fields for f in {METRICS[n][0] for n in BATCH}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bench = Benchmarker(
            adata,
            batch_key="batch",
            label_key="label",
            embedding_obsm_keys=["latent"],
            bio_conservation_metrics=BioConservation(**bio) if any(bio.values()) else None,
            batch_correction_metrics=BatchCorrection(**batch) if any(batch.values()) else None,
            pre_integrated_embedding_obsm_key="counts_pca",
            progress_bar=False,
        )
        bench.benchmark()
        results = bench.get_results(min_max_scale=False, clean_names=False)
    row = results.loc["latent"]
    return pd.Series({name: float(row[METRICS[name][1]]) for name in names})


def score_transfer(split: Split, latent: np.ndarray, neighbours: int = 15) -> float:
    """Macro-F1 of a nearest-neighbour classifier from the shown to the hidden cells.

    The mean runs over the joint labels that occur among the scored hidden cells; a label nobody
    was shown cannot be called and counts 0, for every method alike.
    """
    from sklearn.metrics import f1_score
    from sklearn.neighbors import KNeighborsClassifier

    labels = joint_label(split.study.adata.obs, split.study.biological)
    classifier = KNeighborsClassifier(min(neighbours, int(split.shown.sum())))
    classifier.fit(latent[split.shown], labels[split.shown])
    truth, called = labels[split.scored], classifier.predict(latent[split.scored])
    return float(f1_score(truth, called, labels=np.unique(truth), average="macro", zero_division=0))


def score_accuracy(split: Split, latent: np.ndarray) -> dict[str, float]:
    """Balanced accuracy of each biological covariate, told to donors or batches never shown.

    Logistic regression of the joint label, read off column by column, so that a condition may
    look different in each cell type.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = split.study.biological
    obs = split.study.adata.obs[columns].astype(str)
    learn = LogisticRegression(class_weight="balanced", max_iter=500)
    number = obs.groupby(columns, sort=True).ngroup().to_numpy()
    values = obs.assign(number=number).drop_duplicates("number").set_index("number")
    model = make_pipeline(StandardScaler(), learn).fit(latent[split.shown], number[split.shown])
    called = values.loc[model.predict(latent[split.scored])]
    told = {}
    for name in columns:
        truth = obs[name].to_numpy()[split.scored]
        told[f"accuracy_{name}"] = float(
            recall_score(
                truth, called[name], labels=np.unique(truth), average="macro", zero_division=0
            )
        )
    return told


def score_mixing(
    latent: np.ndarray, labels: np.ndarray, batches: np.ndarray, neighbours: int = 30, seed: int = 0
) -> float:
    """Entropy of batches among neighbours of the same class, against drawn cells of that class.

    Mean over the classes with at least ``FEWEST_IN_CLASS`` cells and two batches; NaN without any.
    Composition cannot count as a lack of mixing here, as it does in iLISI and kBET of all cells.
    """
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(seed)
    found = []
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        if len(rows) < FEWEST_IN_CLASS or len(np.unique(batches[rows])) < 2:
            continue
        code = np.unique(batches[rows], return_inverse=True)[1]
        k = min(neighbours, len(rows) // 3)
        near = NearestNeighbors(n_neighbors=k).fit(latent[rows]).kneighbors(return_distance=False)
        drawn = generator.random((len(rows), len(rows) - 1)).argpartition(k - 1, axis=1)[:, :k]
        drawn += drawn >= np.arange(len(rows))[:, None]  # never the cell itself
        found.append(_measure_entropy(code[near]) / _measure_entropy(code[drawn]))
    return float(np.mean(found)) if found else float("nan")


def _measure_entropy(codes: np.ndarray) -> float:
    """Mean entropy of the codes in each row (cell, neighbour)."""
    share = np.stack([(codes == code).mean(1) for code in range(codes.max() + 1)], axis=1)
    return float(-(share * np.log(np.where(share > 0, share, 1.0))).sum(1).mean())


def score_leak(
    study: Study,
    rows: np.ndarray,
    latent: np.ndarray,
    kinds: Sequence[type[Probe]] | None = None,
    seed: int = 0,
) -> dict:
    """How well probes tell ``study.technical[0]`` from latents (cell, latent) within biology.

    Returns
    -------
    dict of three numbers a probe: its score, the 95 % quantile of its null distribution, and
    whether it lies ``above``, of which 0.05 are expected where nothing leaks; NaN where the cells
    cannot answer (then ``ia.evaluate.leakage`` says why).
    """
    from invatlas.evaluate.audit import draw_cells  # after threads were limited
    from invatlas.evaluate.probes import PROBES
    from invatlas.evaluate.question import UnanswerableError, ask

    kinds = kinds or PROBES
    names = [f"leak_{kind.name}" for kind in kinds]
    blank = {f"{name}{end}": float("nan") for name in names for end in ("", "_null", "_above")}
    columns = list(dict.fromkeys([*study.biological, *study.technical, study.unit]))
    labels = study.adata.obs[columns].astype(str)[rows]
    drawn = draw_cells(labels, LEAK_CELLS, np.random.default_rng(seed))
    labels, latent = labels.iloc[drawn], latent[rows][drawn]
    generator = np.random.default_rng(seed)
    try:
        question = ask(
            labels, study.technical[0], study.biological, study.unit, LEAK_FOLDS, generator
        )
    except UnanswerableError:
        return blank
    exchanges = [question.exchange(generator) for _ in range(PERMUTATIONS)]
    told = {}
    for kind in kinds:
        probe = kind(latent, question)
        found = question.score(question.t, probe.learn(question.t, question.fold)(probe.z))
        null = [question.score(t, probe.learn(t, fold)(probe.z), fold) for t, fold in exchanges]
        band = float(np.nanquantile(null, 0.95))
        above = float(found > max(band, 1e-9 + np.mean(1 / question.scored)))
        told |= {f"leak_{kind.name}": found, f"leak_{kind.name}_null": band}
        told[f"leak_{kind.name}_above"] = above
    return told


def score_split(split: Split, latent: np.ndarray) -> pd.Series:
    """Score a latent (cell, latent) of all cells of a split: everything this file knows."""
    study, rows = split.study, split.scored
    cells = study.adata[rows]
    labels = joint_label(cells.obs, study.biological)
    batches = joint_label(cells.obs, study.technical)
    values = score(latent[rows], labels, batches, compute_counts_pca(cells))
    values["macro_f1"] = score_transfer(split, latent)
    values["mixing"] = score_mixing(latent[rows], labels, batches)
    told = score_accuracy(split, latent) | score_leak(study, rows, latent)
    return pd.concat([values, pd.Series(told)])
