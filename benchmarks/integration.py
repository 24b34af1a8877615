"""Half-hidden integration benchmark: the unedited scIB table, ours beside the peers.

The units of a study (donors, batches or technologies) are sorted by name and split in two
alternating halves. All counts are used; the biological labels of one half are hidden from
every method; scores are computed on the hidden half's cells only; the halves swap and the two
results are averaged. ``--hidden a,b,c`` scores one explicit split instead.

Run ``python benchmarks/integration.py --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from datasets import (
    STUDIES,
    Split,
    Study,
    alternating_halves,
    joint_label,
    load_study,
    split_study,
)
from peers import LABEL_FREE, METHODS, describe_environment, limit_threads, say, write_json

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
        When the latent is not finite, the lengths differ, or there are too few cells.
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
    except Exception:  # one metric failed: find which, keep the others
        values = pd.Series(np.nan, index=list(METRICS))
        for name in METRICS:
            with contextlib.suppress(Exception):
                values[name] = _run_benchmarker(adata, [name])[name]
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


def score_split(split: Split, latent: np.ndarray) -> pd.Series:
    """Score a latent (cell, latent) of all cells of a split: scIB table and macro-F1."""
    cells = split.study.adata[split.scored]
    values = score(
        latent[split.scored],
        joint_label(cells.obs, split.study.biological),
        joint_label(cells.obs, split.study.technical),
        compute_counts_pca(cells),
    )
    values["macro_f1"] = score_transfer(split, latent)
    return values


def evaluate(study: Study, splits: list[Split], methods: list[str], args: argparse.Namespace):
    """Yield one record (dict) for each split and method: scores and seconds.

    A method that takes no labels gives the same latent for every split, so it runs once a study.
    """
    kept: dict[str, tuple[np.ndarray, float]] = {}
    for split in splits:
        units = ", ".join(split.hidden_units)
        cells = f"{int(split.scored.sum()):,} of {study.adata.n_obs:,} cells scored"
        say(f"{study.name}: labels of {study.unit} {units} hidden, {cells}")
        for name in methods:
            package, embed = METHODS[name]
            importlib.import_module(package)
            say(f"  {name} ...", end=" ")
            if name in kept:
                latent, seconds = kept[name]
            else:
                start = time.perf_counter()
                latent = embed(split, args.seed, args.epochs_scale, args.threads)
                seconds = time.perf_counter() - start
            if name in LABEL_FREE:
                kept[name] = (latent, seconds)
            values = score_split(split, latent)
            say(f"total {values['total']:.3f} in {seconds:.1f} s")
            yield {
                "study": study.name,
                "hidden": split.hidden_units,
                "cells_scored": int(split.scored.sum()),
                "method": name,
                **{key: float(value) for key, value in values.items()},
                "seconds": seconds,
                "latents": int(latent.shape[1]),
                "seed": args.seed,
            }


def summarise(records: list[dict]) -> pd.DataFrame:
    """Mean over the splits of each study and method, in the order they were run."""
    columns = [*BIOLOGICAL, *BATCH, *SUMMARY, "macro_f1", "seconds"]
    table = pd.DataFrame(records).groupby(["study", "method"], sort=False)[columns].mean()
    return table.sort_values("total", ascending=False).sort_index(level=0, sort_remaining=False)


def show(table: pd.DataFrame) -> None:
    """Print one table a study, best total first."""
    from rich.console import Console
    from rich.table import Table

    short = {
        "isolated_labels": "isolated",
        "silhouette_label": "silh.",
        "kmeans_nmi": "NMI",
        "kmeans_ari": "ARI",
        "clisi": "cLISI",
        "bras": "BRAS",
        "ilisi": "iLISI",
        "kbet": "kBET",
        "graph_connectivity": "graph",
        "pcr_comparison": "PCR",
        "macro_f1": "F1",
        "seconds": "s",
    }
    for study, rows in table.groupby(level="study", sort=False):
        printed = Table(title=f"{study}: scIB, half-hidden (F1: 15 neighbours, hidden cells)")
        printed.add_column("method", no_wrap=True)
        for column in table.columns:
            printed.add_column(short.get(column, column), justify="right", no_wrap=True)
        for (_, method), row in rows.iterrows():
            cells = [f"{row[c]:.1f}" if c == "seconds" else f"{row[c]:.3f}" for c in table.columns]
            printed.add_row(method, *cells)
        Console(width=160).print(printed)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    studies = ["kang", "cellbench", "pancreas"]
    parser.add_argument("--data", default="kang", choices=[*STUDIES, "all"])
    parser.add_argument(
        "--methods",
        default="ours,pca,harmony,scvi,scanvi",
        help=f"of {','.join(METHODS)}",
    )
    parser.add_argument("--hidden", help="score one split: the units whose labels are hidden")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--epochs-scale",
        type=float,
        default=1.0,
        help="multiplies the peers' epochs for a quick trial; never for a result",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every record here")
    args = parser.parse_args(arguments)
    args.methods = args.methods.split(",")
    unknown = sorted(set(args.methods) - set(METHODS))
    if unknown:
        parser.error(f"unknown method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    args.studies = studies if args.data == "all" else [args.data]
    if args.hidden and len(args.studies) > 1:
        parser.error("--hidden names units of one study: give --data too")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print its tables and write its records."""
    args = parse(arguments)
    limit_threads(args.threads)
    settings = {"threads": args.threads, "seed": args.seed, "epochs_scale": args.epochs_scale}
    environment = describe_environment() | settings
    records: list[dict] = []
    for name in args.studies:
        study = load_study(name)
        if args.hidden:
            splits = [split_study(study, args.hidden.split(","))]
        else:
            splits = alternating_halves(study)
        for record in evaluate(study, splits, args.methods, args):
            records.append(record)
            if args.json:  # rewritten after each method: a stopped run keeps what it measured
                means = summarise(records).reset_index().to_dict(orient="records")
                content = {"environment": environment, "records": records, "means": means}
                write_json(args.json, content)
    show(summarise(records))
    if args.json:
        say(f"records written to {args.json}")


if __name__ == "__main__":
    main()
