"""The data on which networks are compared: what a method may see, and the truth.

dream4_10_1, dream4_100_1, dream4_100_2  wild type, knockouts, knockdowns, time series (size 10:
                                         multifactorial too); ``_time``: the time series alone
beeline_*                                simulated cells at simulated times, each simulation a
                                         series; the replicates are draws of the same simulations,
                                         a cell drawn twice counts once. ``_dropout_20``, ``_50``
screen                                   40 genes, each knocked out and down, three off-targets
phoenix350                               40 series of 11 times from random starts, noise 0.05
yeast                                    two replicates of a cell cycle; every second edge of the
                                         motif prior is hidden, and is the truth (motifs are no
                                         measured edges: this says whether dynamics agree)
hematopoiesis                            three lineages of five donors; no truth
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
from datasets import data_folder
from phoenix import load_simulator, simulate_series
from screen import simulate_screen

from invatlas.grn.experiments import Experiments, read_experiments

DREAM4 = {
    "time": "time",
    "lineage": "series",
    "interventions": "target",
    "experiment": "experiment",
}
BEELINE = ("GSD", "mCAD", "dyn-LI", "dyn-BF", "dyn-CY")
DROPOUTS = ("dropout_20", "dropout_50")
PHOENIX_SERIES, PHOENIX_TIMES, PHOENIX_NOISE = 40, np.linspace(0, 5, 11), 0.05


@dataclass(frozen=True, eq=False)
class NetworkSet:
    """Data of one network.

    Attributes
    ----------
    experiments
        What a method may see.
    truth, signs
        True edges (regulator, target) and their signs, 0 where unknown; None without a truth.
    candidates
        Pairs that count; None for all.
    donors_differ
        Whether trajectories of held-out donors can be predicted from others.
    off_targets
        The gene that a steady state's intervention hit beside its own, by the name of its row.
    """

    experiments: Experiments
    truth: np.ndarray | None = None
    signs: np.ndarray | None = None
    candidates: np.ndarray | None = None
    donors_differ: bool = False
    off_targets: dict[str, int] | None = None


def load_dream4(name: str, steady: bool) -> NetworkSet:
    adata = _read(f"dream4_size{name}")
    experiments = read_experiments(adata, **DREAM4)
    if not steady:
        experiments = replace(experiments, steady=())
    return NetworkSet(experiments, *_read_edges(adata, experiments.genes))


def load_beeline(name: str, layer: str | None = None) -> NetworkSet:
    adata = _read(f"beeline_{name}")
    experiments = read_experiments(adata, time="sim_time", lineage="trajectory", layer=layer)
    return NetworkSet(experiments, *_read_edges(adata, experiments.genes))


def load_phoenix() -> NetworkSet:
    simulator = load_simulator()
    y = simulate_series(simulator, PHOENIX_SERIES, PHOENIX_TIMES, PHOENIX_NOISE, seed=0)
    names = [f"series{k:02d}" for k in range(PHOENIX_SERIES)]
    rows = pd.MultiIndex.from_product([names, PHOENIX_TIMES], names=["donor", "time"])
    obs = rows.to_frame(index=False).set_index(pd.Index(map(str, range(len(rows)))))
    adata = ad.AnnData(
        y.reshape(len(obs), -1), obs=obs, var=pd.DataFrame(index=pd.Index(simulator.genes))
    )
    experiments = read_experiments(adata, time="time", donor="donor")
    return NetworkSet(experiments, simulator.edges, simulator.signs, donors_differ=True)


def load_screen() -> NetworkSet:
    adata, simulator, planted = simulate_screen()
    experiments = read_experiments(adata, **DREAM4)
    return NetworkSet(experiments, simulator.edges, simulator.signs, off_targets=planted)


def load_yeast() -> NetworkSet:
    adata = _read("yeast_pramila_phoenix_500g_24T")
    prior = np.asarray(adata.varm["prior"], dtype=float)
    edges = np.argwhere((prior != 0) & ~np.eye(len(prior), dtype=bool))
    hidden = np.random.default_rng(0).permutation(len(edges))[: len(edges) // 2]
    truth = np.zeros(prior.shape, dtype=bool)
    truth[tuple(edges[hidden].T)] = True
    adata.varm["shown"] = np.where(truth, 0, prior)
    experiments = read_experiments(adata, time="time", donor="replicate", prior_network="shown")
    candidates = (prior != 0).any(1)[:, None] & (adata.varm["shown"] == 0)
    return NetworkSet(experiments, truth, prior * truth, candidates, donors_differ=True)


def load_hematopoiesis() -> NetworkSet:
    adata = _read("hematopoiesis_pathreg_9.7k_529g")
    experiments = read_experiments(adata, time="pseudotime", lineage="lineage", donor="donor")
    return NetworkSet(experiments, donors_differ=True)


def _read(name: str) -> ad.AnnData:
    file = data_folder() / "grn" / f"{name}.h5ad"
    if not file.exists():
        raise SystemExit(f"there is no {file}: INVATLAS_DATA names the folder of the data")
    return ad.read_h5ad(file)


def _read_edges(adata: ad.AnnData, genes: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Truth and signs of the edges in uns."""
    edges = pd.DataFrame(adata.uns["grn_edges"])
    rows, columns = genes.get_indexer(edges["regulator"]), genes.get_indexer(edges["target"])
    truth = np.zeros((len(genes), len(genes)), dtype=bool)
    truth[rows, columns] = True
    signs = np.zeros(truth.shape)
    if "sign" in edges:
        signs[rows, columns] = edges["sign"].map({"+": 1.0, "-": -1.0})
    return truth, signs


SETS: dict[str, Callable[[], NetworkSet]] = {}
for _size in ("10_1", "100_1", "100_2"):
    _short = f"dream4_{_size}"
    SETS[_short] = partial(load_dream4, _size, True)
    SETS[f"{_short}_time"] = partial(load_dream4, _size, False)
for _name in BEELINE:
    SETS[f"beeline_{_name}"] = partial(load_beeline, _name)
for _name in ("GSD", "mCAD"):
    for _layer in DROPOUTS:
        SETS[f"beeline_{_name}_{_layer}"] = partial(load_beeline, _name, _layer)
SETS |= {
    "screen": load_screen,
    "phoenix350": load_phoenix,
    "yeast": load_yeast,
    "hematopoiesis": load_hematopoiesis,
}
