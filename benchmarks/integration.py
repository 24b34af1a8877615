"""Half-hidden integration benchmark: the unedited scIB table, ours beside the peers.

The units of a study (donors, batches or technologies) are sorted by name and split in two
alternating halves. All counts are used; the biological labels of one half are hidden from
every method; scores are computed on the hidden half's cells only; the halves swap and the two
results are averaged. ``--hidden a,b,c`` scores one explicit split instead.

Run ``python benchmarks/integration.py --help``.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import peers
import published_invae
from datasets import STUDIES, Split, Study, alternating_halves, load_study, split_study
from peers import describe_environment, limit_threads, say, write_json
from scores import BATCH, BIOLOGICAL, SUMMARY, score_split

LABEL_FREE = {"truth", "pca", "combat", "harmony", "scvi", "scvi_tutorial", "sysvi"}
# name -> (package imported before the clock starts, function)
METHODS: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "ours": ("invatlas", peers.embed_ours),
    "pca": ("scanpy", peers.embed_pca),
    "truth": ("invatlas", peers.embed_truth),
    "combat": ("scanpy", peers.embed_combat),
    "harmony": ("harmonypy", peers.embed_harmony),
    "scvi": ("scvi", peers.embed_scvi),
    "scanvi": ("scvi", peers.embed_scanvi),
    "scvi_tutorial": ("scvi", peers.embed_scvi_tutorial),
    "scanvi_tutorial": ("scvi", peers.embed_scanvi_tutorial),
    "sysvi": ("scvi", peers.embed_sysvi),
    "invae": ("inVAE", published_invae.embed_told),
    "invae_permuted": ("inVAE", published_invae.embed_permuted),
    "invae_unknown": ("inVAE", published_invae.embed_unknown),
}


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
    """Mean over the splits of each study and method, best total first.

    On a simulation ``kept_...`` is an accuracy over that from the true latents, if these were run.
    """
    frame = pd.DataFrame(records)
    names = ("mixing", "leak_", "accuracy_")
    extra = [column for column in frame if column.startswith(names)]
    columns = [*BIOLOGICAL, *BATCH, *SUMMARY, "macro_f1", "seconds", *extra]
    table = frame.groupby(["study", "method"], sort=False)[columns].mean()
    for column in [c for c in extra if c.startswith("accuracy_")]:
        best = table[column].unstack("method").get("truth")
        if best is not None:
            kept = table[column] / best.reindex(table.index.get_level_values("study")).to_numpy()
            table[column.replace("accuracy", "kept")] = kept
    return table.sort_values("total", ascending=False).sort_index(level=0, sort_remaining=False)


SHORT = {
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


def show(table: pd.DataFrame) -> None:
    """Print two tables a study, best total first: the scIB table, and what it does not ask."""
    beyond = ("mixing", "leak_", "accuracy_", "kept_")
    for study, rows in table.groupby(level="study", sort=False):
        rows = rows.droplevel("study").dropna(axis=1, how="all")
        other = [column for column in rows if column.startswith(beyond)]
        _print(f"{study}: scIB, half-hidden (F1: 15 neighbours)", rows.drop(columns=other))
        plain = [column for column in other if not column.endswith(("_null", "_above"))]
        told = rows[plain].map("{:.3f}".format)
        for column in [c for c in plain if c.startswith("leak_")]:
            told[column] += rows[f"{column}_null"].map(" ({:.3f})".format)
        _print(f"{study}: hidden cells (in brackets: 95 % of the null distribution)", told)


def _print(title: str, rows: pd.DataFrame) -> None:
    from rich.console import Console
    from rich.table import Table

    printed = Table(title=title)
    printed.add_column("method", no_wrap=True)
    for column in rows:
        printed.add_column(SHORT.get(column, column.replace("_", " ")), justify="right")
    for method, row in rows.iterrows():
        cells = [c if isinstance(c, str) else f"{c:.3f}" for c in row]
        printed.add_row(str(method), *cells)
    Console(width=170).print(printed)


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
