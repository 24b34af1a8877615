"""The fitted artefact, and how it comes about: `fit -> train -> objective`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from invatlas.data.counts import CountSource
from invatlas.data.covariates import MISSING, Covariate, Schema, combine
from invatlas.data.genes import select_genes
from invatlas.data.minibatch import Cells
from invatlas.errors import CountsError, DataError, GeneError
from invatlas.model.invae import CovariateTable, Model
from invatlas.settings import Settings
from invatlas.training.loop import Plan, Training, plan_training, train
from invatlas.training.progress import watch
from invatlas.training.split import Split, split_cells

MINIMUM_CELLS = 10


@dataclass(frozen=True)
class Atlas:
    """A fitted model with everything needed to question it.

    Attributes
    ----------
    model
        Networks, priors and likelihood, in evaluation mode.
    schema
        Covariates and their values.
    genes
        Genes of the model, in its order.
    gene_shares
        Share of the reference's counts each gene held, shape (gene,), summing to 1.
    settings
        What the fit was told.
    history
        One row an epoch: epoch, seconds, cells_per_second, learning_rate, and every term
        of the objective for training (``train_``) and held-out (``held_out_``) cells.
    record
        What else is worth knowing, in plain values: layer, cells, training, versions, warnings.
    """

    model: Model
    schema: Schema
    genes: tuple[str, ...]
    gene_shares: np.ndarray
    settings: Settings
    history: pd.DataFrame
    record: dict[str, Any]


def fit(
    adata: AnnData,
    biological: Sequence[str],
    technical: Sequence[str] = (),
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    settings: Settings | None = None,
    progress: bool = False,
) -> Atlas:
    """Fit an atlas to raw counts and obs columns.

    Implements the invariant VAE of Aliee et al. 2023 (arXiv 2307.00558) with encoders that
    see counts alone, and additive conditional priors.

    Parameters
    ----------
    adata
        Raw counts (cell, gene) with the covariates in obs. Never changed.
    biological, technical
        Columns of obs: what makes a cell what it is (cell type, disease), and what the
        laboratory adds (donor, batch, platform). A cell may lack any value.
    layer
        Layer that holds the raw counts; X where none is named.
    genes
        Genes to model; by default the ``settings.genes`` most variable ones.
    settings
        Everything else; see :class:`Settings`.
    progress
        Whether to show a progress bar with the time left.

    Returns
    -------
    Atlas
        With the weights that explained held-out cells best.

    Raises
    ------
    DataError
        If counts, covariates or genes are unusable (`CountsError`, `CovariateError`,
        `GeneError`).
    TrainingError
        If the objective stops being finite.
    """
    settings = settings or Settings()
    start = time.perf_counter()
    if adata.n_obs < MINIMUM_CELLS:
        raise DataError(f"The data have {adata.n_obs} cells; a fit needs at least {MINIMUM_CELLS}.")
    schema = Schema.learn(adata.obs, biological, technical)
    biological_codes, technical_codes = schema.encode(adata.obs)
    names = _choose_genes(adata, genes, layer, technical_codes, settings)
    source = CountSource.from_anndata(adata, names, layer)
    if not source.matrix.nnz:
        raise CountsError(
            f"None of the {len(names)} genes is counted in any of {adata.n_obs} cells."
        )
    cells = Cells(source, biological_codes, technical_codes)
    plan = plan_training(adata.n_obs, settings)
    split = split_cells(
        cells.biological, cells.technical, settings.held_out, np.random.default_rng(settings.seed)
    )
    with torch.random.fork_rng(devices=[]), watch(plan.epochs, progress) as on_epoch:
        torch.manual_seed(settings.seed)
        model = Model(
            len(names),
            tabulate(schema.biological, cells.biological[split.train]),
            tabulate(schema.technical, cells.technical[split.train]),
            float(np.median(source.library_size)),
            settings,
        )
        training = train(
            model,
            cells,
            split,
            plan,
            settings,
            on_epoch,
            lambda rows: _describe(rows, cells, adata, schema),
        )
    totals = np.asarray(source.matrix.sum(axis=0, dtype=np.float64)).ravel()
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "layer": layer,
        "genes_given": genes is not None,
        "cells": adata.n_obs,
        "held_out": _describe_split(split, schema, cells),
        "training": _training_record(training, plan, time.perf_counter() - start),
        "warnings": _warnings(adata, cells, schema),
        "versions": package_versions(),
    }
    history = pd.DataFrame(training.history)
    return Atlas(model, schema, tuple(names), totals / totals.sum(), settings, history, record)


def tabulate(covariates: Sequence[Covariate], codes: np.ndarray) -> CovariateTable:
    """Lay out what a prior conditions on, from the codes (cell, covariate) of the reference."""
    combinations, weights = combine(covariates, codes)
    return CovariateTable(
        [len(covariate.categories) for covariate in covariates],
        torch.from_numpy(combinations),
        torch.from_numpy(weights.astype(np.float32)),
    )


def package_versions() -> dict[str, str]:
    """Versions of what a fit depends on."""
    packages = ("invatlas", "torch", "anndata", "scanpy", "numpy", "scipy", "safetensors")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def _choose_genes(
    adata: AnnData,
    genes: Sequence[str] | None,
    layer: str | None,
    technical: np.ndarray,
    settings: Settings,
) -> list[str]:
    if genes is None:
        strata = technical[:, 0] if technical.shape[1] else None
        return select_genes(adata, settings.genes, layer, strata, settings.seed)
    if isinstance(genes, str):
        raise GeneError(f"genes is the text {genes!r}; it takes a list of gene names.")
    names = [str(gene) for gene in genes]
    absent = sorted(set(names) - set(map(str, adata.var_names)))
    if not names or absent:
        raise GeneError(
            f"{len(absent)} of {len(names)} genes asked for are not in the data: "
            f"{', '.join(absent[:5]) or 'the list is empty'}."
        )
    return list(dict.fromkeys(names))


def _training_record(training: Training, plan: Plan, seconds: float) -> dict[str, Any]:
    speeds = [row["cells_per_second"] for row in training.history]
    return {
        "epochs": len(training.history),
        "planned": asdict(plan),
        "best_epoch": training.best_epoch,
        "stopped": training.stopped,
        "seconds": seconds,
        "cells_per_second": float(np.median(speeds)),
    }


def _describe(rows: np.ndarray, cells: Cells, adata: AnnData, schema: Schema) -> str:
    """Name the cells of a minibatch by what could be wrong with them."""
    largest = cells.source.matrix[rows].max()
    values = []
    for covariate in schema.covariates:
        codes = covariate.encode(adata.obs.iloc[rows])
        seen = [covariate.categories[code] for code in np.unique(codes[codes != MISSING])]
        more = f" and {len(seen) - 4} more" if len(seen) > 4 else ""
        values.append(f"{covariate.name}: {', '.join(seen[:4]) or 'missing'}{more}")
    return (
        f"Its {len(rows)} cells start with {adata.obs_names[rows[0]]!r}; {'; '.join(values)}; "
        f"their largest count is {largest}."
    )


def _describe_split(split: Split, schema: Schema, cells: Cells) -> str:
    n_held = len(split.held_out)
    if not n_held:
        return "No cells were held out: there are too few. Training ran its full length."
    if split.covariate is None:
        return f"{n_held} cells, drawn at random, were held out to tell when to stop."
    covariate = schema.technical[split.covariate]
    codes = np.unique(cells.technical[split.held_out, split.covariate])
    values = ", ".join(covariate.categories[code] for code in codes)
    return (
        f"{n_held} cells, all those of {covariate.name} {values}, were held out "
        "to tell when to stop."
    )


def _warnings(adata: AnnData, cells: Cells, schema: Schema) -> list[str]:
    found = []
    if empty := int((cells.source.matrix.getnnz(axis=1) == 0).sum()):
        found.append(
            f"{empty} cells have no counts in the modelled genes; their latents mean nothing."
        )
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()][0]
        found.append(f"Cell names are not unique (for instance {twice!r}); rows keep their order.")
    if not adata.var_names.is_unique:
        found.append("Gene names are not unique; counts of one name were added up.")
    if not schema.technical:
        found.append("No technical covariate was named; z_S has nothing to be told apart by.")
    for covariate in schema.covariates:
        codes = covariate.encode(adata.obs)
        few = [name for code, name in enumerate(covariate.categories) if (codes == code).sum() < 5]
        if few:
            found.append(
                f"{covariate.name}: {len(few)} values have fewer than 5 cells "
                f"({', '.join(few[:5])}); what is said of them is weakly founded."
            )
    return found
