"""Training speed: cells per second, seconds to start and peak memory, ours beside the peers.

Each measurement is a fresh process that trains one method on the same counts with the same
widths, layers, latents, minibatch and threads; methods take turns within each repeat, so a slow
spell of the machine falls on all of them. Run ``python benchmarks/training_speed.py --help``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from peers import (
    THREAD_VARIABLES,
    describe_environment,
    say,
    silence,
    write_json,
)

INVERSE_DISPERSION = 2.0


def simulate_counts(cells: int, genes: int, density: float, seed: int) -> anndata.AnnData:
    """Draw negative-binomial counts of eight cell types, two conditions and eight donors.

    x ~ Poisson(mu gamma), gamma ~ Gamma(theta, 1/theta), mu = scale depth_cell profile_type; the
    scale is bisected until P(x > 0) = 1 - (theta / (theta + mu))^theta has the asked mean.

    Returns
    -------
    AnnData (cell, gene), CSR float32 counts, obs cell_type, condition and donor.
    """
    rng = np.random.default_rng(seed)
    theta = INVERSE_DISPERSION
    profile = rng.lognormal(0, 1.5, genes) * rng.lognormal(0, 0.5, (8, genes))
    kind, depth = rng.integers(8, size=cells), rng.lognormal(0, 0.3, cells)
    sample = profile[kind[:500]] * depth[:500, None]
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = np.mean(1 - (theta / (theta + np.exp(middle) * sample)) ** theta)
        low, high = (middle, high) if mean < density else (low, middle)
    blocks = []
    for rows in np.array_split(np.arange(cells), max(1, cells // 1000)):
        mu = np.exp(low) * profile[kind[rows]] * depth[rows, None]
        counts = rng.poisson(mu * rng.gamma(theta, 1 / theta, mu.shape))
        blocks.append(sp.csr_matrix(counts.astype(np.float32)))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type_{k}" for k in kind]),
            "condition": pd.Categorical(rng.choice(["ctrl", "stim"], cells)),
            "donor": pd.Categorical([f"donor_{k}" for k in rng.integers(8, size=cells)]),
        },
        index=[f"cell_{i}" for i in range(cells)],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(genes)])
    return anndata.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var)


def tile_kang(cells: int, genes: int) -> anndata.AnnData:
    """Repeat the Kang cells up to a number, keeping the genes with the largest totals."""
    from datasets import load_study

    adata = load_study("kang").adata
    totals = np.asarray(adata.X.sum(axis=0)).ravel()
    columns = np.sort(np.argsort(-totals)[:genes])
    adata = adata[~adata.obs["cell_type"].isna().to_numpy(), columns]
    rows = np.resize(np.arange(adata.n_obs), cells)
    obs = adata.obs.iloc[rows].set_axis([f"cell_{i}" for i in range(cells)])
    return anndata.AnnData(adata.X[rows], obs=obs, var=adata.var)


def train_ours(adata: anndata.AnnData, plan: argparse.Namespace) -> pd.DataFrame:
    """Train ``invatlas``; one row an epoch, from its history."""
    import invatlas as ia

    spurious = plan.latents // 3
    settings = ia.Settings(
        genes=0,
        hidden=plan.hidden,
        layers=plan.layers,
        invariant_latents=plan.latents - spurious,
        spurious_latents=spurious,
        minibatch_size=plan.minibatch,
        epochs=plan.epochs,
        patience=plan.epochs,
    )
    atlas = ia.fit(
        adata, biological=["cell_type", "condition"], technical=["donor"], settings=settings
    )
    return atlas.history[["seconds", "cells_per_second"]]


def train_scvi(adata: anndata.AnnData, plan: argparse.Namespace) -> pd.DataFrame:
    """Train scVI with a negative-binomial likelihood; its own split keeps 90 % for training."""
    import lightning.pytorch as lightning
    import scvi

    marks: list[tuple[float, float]] = []

    class Clock(lightning.Callback):
        """Note when each epoch starts and ends."""

        def on_train_epoch_start(self, trainer, module) -> None:
            """Start the clock."""
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer, module) -> None:
            """Stop the clock."""
            marks.append((self.start, time.perf_counter()))

    scvi.model.SCVI.setup_anndata(adata, batch_key="donor")
    model = scvi.model.SCVI(
        adata,
        n_hidden=plan.hidden,
        n_layers=plan.layers,
        n_latent=plan.latents,
        gene_likelihood="nb",
    )
    model.train(
        max_epochs=plan.epochs,
        batch_size=plan.minibatch,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[Clock()],
    )
    return _tabulate(len(model.train_indices), [end - start for start, end in marks])


class ClockedLoader:
    """Stand before a data loader and note when each pass over it starts and ends."""

    def __init__(self, loader) -> None:
        self.loader = loader
        self.seconds: list[float] = []

    def __len__(self) -> int:
        """Count the minibatches of a pass."""
        return len(self.loader)

    def __iter__(self) -> Iterator:
        """Pass over the loader with the clock running."""
        start = time.perf_counter()
        yield from self.loader
        self.seconds.append(time.perf_counter() - start)


def train_invae(adata: anndata.AnnData, plan: argparse.Namespace) -> pd.DataFrame:
    """Train the published inVAE (0.1.0) with the arguments its README shows.

    Its encoder has one hidden layer fewer than ``n_layers``, which is to its advantage here.
    """
    from inVAE import FinVAE

    model = FinVAE(
        adata=adata,
        inv_covar_keys={"cont": [], "cat": ["cell_type", "condition"]},
        spur_covar_keys={"cont": [], "cat": ["donor"]},
        latent_dim_inv=plan.latents - 1,
        latent_dim_spur=1,
        hidden_dim=plan.hidden,
        n_layers=max(2, plan.layers),
        batch_size=plan.minibatch,
    )
    clock = ClockedLoader(model.data_loader)
    model.data_loader = clock
    model.train(n_epochs=plan.epochs, lr_train=0.001, weight_decay=0.0001)
    return _tabulate(adata.n_obs, clock.seconds)


def _tabulate(cells: int, seconds: list[float]) -> pd.DataFrame:
    """Tabulate seconds and cells per second, one row an epoch."""
    return pd.DataFrame({"seconds": seconds, "cells_per_second": cells / np.array(seconds)})


METHODS = {"ours": train_ours, "scvi": train_scvi, "invae": train_invae}


def measure(plan: argparse.Namespace) -> dict:
    """Train one method in this process and return what it cost.

    ``seconds_to_start`` is everything from before the import to the end of training that is no
    epoch: import, set-up, what a method does after its last epoch, and ours' held-out evaluation.
    """
    adata = anndata.read_h5ad(plan.counts)
    if plan.storage == "dense":
        adata.X = adata.X.toarray()
    before = _peak_memory()
    start = time.perf_counter()
    with silence():
        epochs = METHODS[plan.method](adata, plan)
    total = time.perf_counter() - start
    steady = epochs["cells_per_second"].iloc[1:]
    return {
        "method": plan.method,
        "minibatch": plan.minibatch,
        "cells_per_second": float(steady.median()),
        "cells_per_second_epochs": [float(v) for v in epochs["cells_per_second"]],
        "seconds_to_start": float(total - epochs["seconds"].sum()),
        "seconds_total": total,
        "memory_before_mb": before,
        "memory_peak_mb": _peak_memory(),
    }


def _peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB.

    Linux keeps it as VmHWM. ``ru_maxrss`` is not used there: a process starts with the peak of
    the parent that spawned it, so two small children of a large parent look alike.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_child(plan: argparse.Namespace, method: str, minibatch: int, counts: Path) -> dict:
    """Measure one method in a fresh process.

    Raises
    ------
    SystemExit
        With the last lines of the child's error output when it fails.
    """
    names = ["hidden", "layers", "latents", "epochs", "threads", "storage"]
    command = [sys.executable, __file__, "--method", method, "--counts", str(counts)]
    command += ["--minibatch", str(minibatch)]
    for name in names:
        command += [f"--{name}", str(getattr(plan, name))]
    threads = dict.fromkeys(THREAD_VARIABLES, str(plan.threads))
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{chr(10).join(done.stderr.splitlines()[-8:])}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(records: list[dict]) -> pd.DataFrame:
    """Median over repeats of each minibatch size and method, with ours as a ratio to each peer.

    A ratio is taken within a repeat, then its median, least and largest value are given.
    """
    table = pd.DataFrame(records)
    columns = ["cells_per_second", "seconds_to_start", "memory_peak_mb"]
    keys = ["minibatch", "method"]
    medians = table.groupby(keys, sort=False)[columns].median()
    speed = table.pivot(index=["minibatch", "repeat"], columns="method", values=columns[0])
    for name, take in {"ours_ratio": "median", "least": "min", "largest": "max"}.items():
        if "ours" in speed:
            ratio = speed.rdiv(speed["ours"], axis=0).groupby(level="minibatch").agg(take)
            medians[name] = ratio.stack().reindex(medians.index)
    return medians


def show(table: pd.DataFrame) -> None:
    """Print the medians, one row a minibatch size and method."""
    from rich.console import Console
    from rich.table import Table

    printed = Table(title="training speed, medians over repeats")
    heads = ["minibatch", "method", "cells/s", "s to start", "peak MiB", "ours / this", "range"]
    for position, head in enumerate(heads):
        printed.add_column(head, justify="left" if position == 1 else "right", no_wrap=True)
    for (minibatch, method), row in table.iterrows():
        cells = [f"{row['cells_per_second']:,.0f}", f"{row['seconds_to_start']:.1f}"]
        cells.append(f"{row['memory_peak_mb']:,.0f}")
        if "ours_ratio" in row:
            cells += [f"{row['ours_ratio']:.2f}", f"{row['least']:.2f} to {row['largest']:.2f}"]
        printed.add_row(str(minibatch), method, *cells)
    Console(width=120).print(printed)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["synthetic", "kang"], default="synthetic")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--density", type=float, default=0.1, help="share of nonzero counts")
    parser.add_argument("--minibatch", default="128,1024", help="one or more sizes")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="the first is dropped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--latents", type=int, default=30)
    parser.add_argument("--storage", choices=["csr", "dense"], default="csr", help="counts in X")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every record here")
    parser.add_argument("--method", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=Path, help=argparse.SUPPRESS)
    plan = parser.parse_args(arguments)
    plan.methods = plan.methods.split(",")
    if unknown := sorted(set(plan.methods) - set(METHODS)):
        parser.error(f"unknown method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    if plan.epochs < 2:
        parser.error(f"--epochs {plan.epochs}: at least 2, the first is dropped")
    return plan


def main(arguments: list[str] | None = None) -> None:
    """Run every measurement, print the table and write the records."""
    plan = parse(arguments)
    if plan.method:  # a child: one measurement, one line of JSON
        plan.minibatch = int(plan.minibatch)
        print(json.dumps(measure(plan)))
        return
    say(f"{plan.data} counts: {plan.cells:,} cells x {plan.genes:,} genes ...", end=" ")
    adata = (
        simulate_counts(plan.cells, plan.genes, plan.density, seed=0)
        if plan.data == "synthetic"
        else tile_kang(plan.cells, plan.genes)
    )
    density = adata.X.nnz / np.prod(adata.shape)
    say(f"{density:.1%} nonzero")
    records: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.h5ad"
        adata.write_h5ad(counts)
        del adata
        for minibatch in map(int, plan.minibatch.split(",")):
            for repeat in range(plan.repeats):
                for method in plan.methods:
                    say(f"minibatch {minibatch}, repeat {repeat + 1}, {method} ...", end=" ")
                    record = run_child(plan, method, minibatch, counts) | {"repeat": repeat}
                    say(f"{record['cells_per_second']:,.0f} cells/s")
                    records.append(record)
    table = summarise(records)
    show(table)
    if plan.json:
        settings = {k: v for k, v in vars(plan).items() if k not in ("json", "method", "counts")}
        environment = describe_environment() | settings | {"density": density}
        medians = table.reset_index().to_dict(orient="records")
        write_json(plan.json, {"environment": environment, "records": records, "medians": medians})


if __name__ == "__main__":
    main()
