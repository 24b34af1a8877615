"""Benchmark studies and their half-hidden splits.

A study is simulated, or read from the folder named by the environment variable ``INVATLAS_DATA``
(default ``../shared/data`` relative to the repository root). Counts are kept whole; a label
that is only a guess is missing and its cell is never scored.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

UNKNOWN = "Unknown"


@dataclass(frozen=True, eq=False)
class Study:
    """Real counts with the covariates a benchmark integrates over.

    Attributes
    ----------
    name
        Short name of the study.
    adata
        Raw integer counts (cell, gene) in ``X``; obs holds every covariate.
    biological, technical
        obs columns. The joint labels are what is scored; leaks are asked for of the first
        technical column.
    unit
        obs column whose values are split into halves (donor, batch, technology).
    scored
        Mask (cell,): cells whose biological labels are measured, not guessed.
    truth
        True invariant latents (cell, latent) where the study is simulated. No method looks here.
    """

    name: str
    adata: anndata.AnnData
    biological: list[str]
    technical: list[str]
    unit: str
    scored: np.ndarray
    truth: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """One half-hidden view of a study.

    Attributes
    ----------
    study
        The study with all its labels, for scoring only.
    adata
        What a method may see: all counts, biological labels missing in the hidden units.
    hidden_units
        Values of ``study.unit`` whose labels are hidden.
    hidden
        Mask (cell,): every cell of the hidden units.
    """

    study: Study
    adata: anndata.AnnData
    hidden_units: list[str]
    hidden: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """Mask (cell,) of the cells scores are computed on: hidden and truly labelled."""
        return self.hidden & self.study.scored

    @property
    def shown(self) -> np.ndarray:
        """Mask (cell,) of the cells whose whole biological label is shown to the methods."""
        return ~self.hidden & self.study.scored


def data_folder() -> Path:
    """Find the folder of the benchmark data, from ``INVATLAS_DATA`` or the default."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    return Path(os.environ.get("INVATLAS_DATA", default)).resolve()


def load_study(name: str) -> Study:
    """Load one benchmark study by name.

    Parameters
    ----------
    name
        One of ``STUDIES``.

    Raises
    ------
    SystemExit
        When the name is unknown or the data folder lacks the file.
    """
    if name not in STUDIES:
        raise SystemExit(f"unknown study {name!r}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]()


def split_study(study: Study, hidden_units: list[str]) -> Split:
    """Hide the biological labels of every cell in some units.

    Parameters
    ----------
    study
        The study to split.
    hidden_units
        Values of ``study.unit`` whose labels no method may see.

    Raises
    ------
    SystemExit
        When a unit does not occur, or none or all of them would be hidden.
    """
    units = study.adata.obs[study.unit].astype(str)
    present = sorted(units.unique())
    absent = sorted(set(hidden_units) - set(present))
    if absent:
        raise SystemExit(
            f"{study.name}: no {study.unit} named {', '.join(absent)}; "
            f"there are {', '.join(present)}"
        )
    hidden = units.isin(hidden_units).to_numpy()
    if hidden.all() or not hidden.any():
        raise SystemExit(f"{study.name}: hide some, not all and not none, of {', '.join(present)}")
    adata = study.adata.copy()
    for column in study.biological:
        labels = adata.obs[column].astype(object)
        labels[hidden] = np.nan
        adata.obs[column] = pd.Categorical(labels)
    return Split(study, adata, sorted(hidden_units), hidden)


def alternating_halves(study: Study) -> list[Split]:
    """Make two splits: the units sorted by name, every second one hidden, then the others."""
    units = sorted(study.adata.obs[study.unit].astype(str).unique())
    return [split_study(study, units[0::2]), split_study(study, units[1::2])]


def joint_label(obs: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Join one string a cell from several obs columns; ``UNKNOWN`` where any of them is missing."""
    parts = obs[columns].astype(object)
    joined = parts.astype(str).agg(" | ".join, axis=1).to_numpy(dtype=object)
    joined[parts.isna().any(axis=1).to_numpy()] = UNKNOWN
    return joined.astype(str)


def _read(file: str) -> anndata.AnnData:
    path = data_folder() / file
    if not path.exists():
        raise SystemExit(f"no {path}: set INVATLAS_DATA to the folder that holds {file}")
    return anndata.read_h5ad(path)


def _trim(adata: anndata.AnnData, columns: list[str]) -> anndata.AnnData:
    """Keep counts and the named obs columns alone, so that no other column can leak a label."""
    obs = adata.obs[columns].copy()
    for column in columns:
        obs[column] = pd.Categorical(obs[column].astype(object))
    return anndata.AnnData(adata.X.tocsr(), obs=obs, var=pd.DataFrame(index=adata.var_names))


def _load_kang(file: str, name: str) -> Study:
    adata = _read(file)
    guessed = (adata.obs["cell_type_source"] == "predicted").to_numpy()
    labels = adata.obs["cell_type"].astype(object)
    labels[guessed] = np.nan
    adata.obs["cell_type"] = labels
    adata = _trim(adata, ["cell_type", "condition", "donor"])
    return Study(name, adata, ["cell_type", "condition"], ["donor"], "donor", ~guessed)


def load_kang() -> Study:
    """Load Kang 2018: 8 donors, control and interferon-beta, 480 guessed cell types missing."""
    return _load_kang("kang2018_ifnb.h5ad", "kang")


def load_kang14k() -> Study:
    """Load Kang 2018, a larger and unbalanced selection of cells over fewer genes."""
    return _load_kang("kang2018_ifnb_14k.h5ad", "kang14k")


def load_cellbench() -> Study:
    """Load CellBench: five cell lines, five batches, single cells, genes all batches share."""
    adata = _read("cellbench_5batches.h5ad")
    adata = adata[adata.obs["demuxlet"] == "SNG", adata.var["in_all_batches"].to_numpy(bool)]
    adata = _trim(adata.copy(), ["cell_type", "batch", "technology"])
    return Study(
        "cellbench",
        adata,
        ["cell_type"],
        ["batch"],
        "batch",
        np.ones(adata.n_obs, bool),
    )


def load_pancreas() -> Study:
    """Load pancreas: 13 cell types (some with one cell), five technologies, 1,000 genes."""
    adata = _trim(_read("pancreas_5tech.h5ad"), ["cell_type", "technology"])
    scored = np.ones(adata.n_obs, bool)
    return Study("pancreas", adata, ["cell_type"], ["technology"], "technology", scored)


def load_hematopoiesis() -> Study:
    """Load blood formation in bone marrow: three lineages, five donors, three sites.

    The file repeats a progenitor in each lineage that it may enter; here it is one cell of no
    lineage yet, its label missing. Pseudotime is not made a second label: stages cut from it
    would put borders where there are none, and it was computed from the same counts.
    """
    adata = _read("grn/hematopoiesis_pathreg_9.7k_529g.h5ad")
    adata = adata[~adata.obs["cell_key"].duplicated().to_numpy()].copy()
    shared = (adata.obs["in_n_lineages"] > 1).to_numpy()
    adata.obs["lineage"] = adata.obs["lineage"].astype(object).mask(shared)
    adata = _trim(adata, ["lineage", "donor", "site"])
    return Study("hematopoiesis", adata, ["lineage"], ["donor", "site"], "donor", ~shared)


def simulate_study(correlation: float, donors: int = 60, cells: int = 6000) -> Study:
    """Simulate donors, each with one of three diseases and in one of three batches.

    Halves alternate between donors in order of their names, which puts every disease in both;
    the association of disease and batch is set by `correlation` (Cramer's V). At 0.9 it takes
    several hundred donors for two of a half to share a batch that is not their disease's own;
    with fewer nobody can tell such a batch from its donor. The large studies have them.
    """
    from invatlas import simulate

    adata = simulate(donors=donors, cells=cells, batches=3, correlation=correlation, truth=False)
    truth = adata.obsm["z_invariant_true"]
    biological, technical = ["cell_type", "disease"], ["batch", "donor"]
    adata = _trim(adata, [*biological, *technical])
    scored = np.ones(adata.n_obs, bool)
    name = f"simulation{correlation:g}, {donors} donors"
    return Study(name, adata, biological, technical, "donor", scored, truth)


LARGE = {"donors": 360, "cells": 10_800}

STUDIES: dict[str, Callable[[], Study]] = {
    "kang": load_kang,
    "cellbench": load_cellbench,
    "pancreas": load_pancreas,
    "kang14k": load_kang14k,
    "hematopoiesis": load_hematopoiesis,
    "simulation0": partial(simulate_study, 0.0),
    "simulation0.5": partial(simulate_study, 0.5),
    "simulation0.9": partial(simulate_study, 0.9),
    "simulation0.5_large": partial(simulate_study, 0.5, **LARGE),
    "simulation0.9_large": partial(simulate_study, 0.9, **LARGE),
}
