"""The fitted artefact, and how it comes about: `fit -> train -> objective`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from invatlas.data.confounding import find_confounding, refuse_confounding
from invatlas.data.counts import CountSource, check_cells
from invatlas.data.covariates import Covariate, Schema
from invatlas.data.gene_names import read_names
from invatlas.data.genes import select_genes
from invatlas.data.hierarchy import Hierarchy, describe_unmet
from invatlas.data.minibatch import Cells, Rounding
from invatlas.errors import CountsError, DataError, GeneError, StudyWarning
from invatlas.folders import package_versions
from invatlas.model.invae import Model
from invatlas.record import (
    describe_guessed,
    describe_split,
    describe_training,
    find_warnings,
)
from invatlas.settings import Settings, check_settings
from invatlas.training.calibration import Calibration
from invatlas.training.job import Job
from invatlas.training.split import draw_split
from invatlas.wording import count_noun

MINIMUM_CELLS = 10


@dataclass(frozen=True, repr=False)
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
        What else is worth knowing, in plain values: layer, cells, training, adaptations,
        alignment, versions, warnings, confounding.
    calibration
        How far calls can be trusted, from held-out cells; None where there were too few.
    """

    model: Model
    schema: Schema
    genes: tuple[str, ...]
    gene_shares: np.ndarray
    settings: Settings
    history: pd.DataFrame
    record: dict[str, Any]
    calibration: Calibration | None

    def __repr__(self) -> str:
        """A few lines that say what the atlas holds."""
        return "\n".join(["invatlas atlas", *(f"  {name}: {text}" for name, text in outline(self))])


def check_atlas(atlas: object) -> None:
    """Refuse anything that is no atlas, such as the folder of one.

    Raises
    ------
    DataError
        Unless it is an Atlas.
    """
    if not isinstance(atlas, Atlas):
        raise DataError(
            f"The atlas is {atlas!r:.80} ({type(atlas).__name__}); it must be an Atlas, such as "
            "fit or load gives."
        )


def outline(atlas: Atlas) -> list[tuple[str, str]]:
    """Say in pairs of a name and a text what an atlas holds."""
    schema, settings, trained = atlas.schema, atlas.settings, atlas.record["training"]
    aligned = atlas.record["aligned"]
    lines = [
        ("cells", f"{atlas.record['cells']:,}"),
        ("genes", f"{len(atlas.genes):,} ({', '.join(atlas.genes[:3])}, ...)"),
        *[(f"biological {c.name}", _list_values(c)) for c in schema.biological],
        *[(f"technical {c.name}", _list_values(c)) for c in schema.technical],
        (
            "latents",
            f"{settings.invariant_latents} invariant, {settings.spurious_latents} spurious",
        ),
        ("likelihood", settings.likelihood),
        (
            "training",
            f"{count_noun(trained['epochs'], 'epoch')}, {trained['stopped']}, "
            f"best {trained['best_epoch']}, {trained['seconds']:.0f} s",
        ),
    ]
    if aligned:
        moved = f"by {aligned['shift']:.2f} of a cell's spread, to {aligned['cells']:,} cells"
        lines.append(("aligned", moved))
    return lines


def fit(
    adata: AnnData,
    biological: Sequence[str],
    technical: Sequence[str] = (),
    *,
    hierarchy: Mapping[str, Hierarchy] | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    genes: Sequence[str] | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    strict: bool = False,
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
        laboratory adds (donor, batch, platform). A cell may lack any value. ``age:continuous``
        takes a column of numbers as a scale, which the priors follow along a linear spline.
    hierarchy
        Coarse values of biological columns and the finer ones each stands for, by column:
        ``{"cell_type": {"T cell": ["CD4 T", "CD8 T"]}}``. A cell with a coarse value may be any
        of the finer ones; calls name the finest.
    layer
        Layer that holds the raw counts; X where none is named.
    gene_column
        Column of var with the names of genes, which the atlas keeps; var_names where none is
        named. A gene without a value is left out.
    genes
        Genes to model; by default the ``settings.genes`` most variable ones.
    settings
        Everything else; see :class:`Settings`.
    progress
        Whether to show a progress bar with the time left.
    strict
        Whether to refuse data in which a biological and a technical value occur only together,
        or nearly, or a scale goes with a column of the other role; without it
        ``record["confounding"]`` and the warnings say so. See :func:`invatlas.confounding`.

    Returns
    -------
    Atlas
        With the weights that explained held-out cells best.

    Raises
    ------
    DataError
        If counts, covariates or genes are unusable (`CountsError`, `CovariateError`,
        `GeneError`), or confounded where that is not wanted (`ConfoundingError`).
    TrainingError
        If the objective stops being finite.

    Warns
    -----
    StudyWarning
        Before training, of each thing in the study that calls for caution; ``record["warnings"]``
        keeps them.
    """
    settings = check_settings(settings)
    check_cells(adata)
    if adata.n_obs < MINIMUM_CELLS:
        raise DataError(
            f"The data have {count_noun(adata.n_obs, 'cell')}; a fit needs at least "
            f"{MINIMUM_CELLS}."
        )
    schema = Schema.learn(adata.obs, biological, technical, hierarchy)
    biological_codes, technical_codes = schema.encode(adata.obs)
    numbers = schema.numbers(adata.obs)
    confounded = find_confounding(schema, biological_codes, technical_codes, numbers)
    if strict:
        refuse_confounding(confounded)
    groups = schema.keep_categories(biological_codes, technical_codes)
    present = read_names(adata.var, gene_column)
    names = _choose_genes(adata, present, genes, layer, groups[1], settings)
    source = CountSource.from_anndata(adata, names, layer, present)
    if not source.matrix.nnz:
        raise CountsError(
            f"None of the {len(names)} genes is counted in any of {adata.n_obs} cells."
        )
    rounding = None
    if any(covariate.knots for covariate in schema.covariates):
        rounding = Rounding(*schema.offsets(adata.obs), np.random.default_rng(settings.seed))
    cells = Cells(source, biological_codes, technical_codes, rounding)
    doubts = [
        *[finding.sentence for finding in confounded if finding.alarm],
        *find_warnings(adata, present, cells, schema),
        *describe_unmet(hierarchy or {}, adata.obs),
    ]
    for doubt in doubts:
        warnings.warn(doubt, StudyWarning, stacklevel=2)
    split = draw_split(*groups, settings)
    job = Job(cells, schema, settings, adata.obs_names, progress)
    with torch.random.fork_rng(devices=[]):
        start = time.perf_counter()
        model, training = job.run(split, "fit")
        trained = time.perf_counter()
        calibration, left_out = job.calibrate(model, training, split)
        seconds = (trained - start, time.perf_counter() - trained)
    totals = np.asarray(source.matrix.sum(axis=0, dtype=np.float64)).ravel()
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "layer": layer,
        "gene_column": gene_column,
        "genes_given": genes is not None,
        "cells": adata.n_obs,
        "held_out": describe_split(split, schema, cells),
        "training": describe_training(training, job.plan(split), *seconds),
        "confounding": [finding.to_json() for finding in confounded],
        "warnings": [*left_out, *describe_guessed(calibration, schema), *doubts],
        "labelled": {
            "invariant": int((biological_codes[split.train] >= 0).all(1).sum()),
            "spurious": int((technical_codes[split.train] >= 0).all(1).sum()),
        },
        "adapted": [],
        "aligned": {},
        "seeds": [],
        "versions": package_versions(),
    }
    history = pd.DataFrame(training.history)
    shares = totals / totals.sum()
    return Atlas(model, schema, tuple(names), shares, settings, history, record, calibration)


def _choose_genes(
    adata: AnnData,
    present: Sequence[str | None],
    genes: Sequence[str] | None,
    layer: str | None,
    technical: np.ndarray,
    settings: Settings,
) -> list[str]:
    if genes is None:
        strata = next((codes for codes in technical.T if (codes >= 0).any()), None)
        return select_genes(adata, settings.genes, layer, strata, settings.seed, present)
    if isinstance(genes, str) or not isinstance(genes, Iterable):
        raise GeneError(
            f"genes is {genes!r} ({type(genes).__name__}); it takes a list of gene names."
        )
    names = list(genes)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise GeneError(
            f"genes names {odd[0]!r} ({type(odd[0]).__name__}); a gene is named by text."
        )
    names = [str(name).strip() for name in names]  # plain text where numpy made the list
    absent = sorted(set(names) - set(present))
    if not names or absent:
        raise GeneError(
            f"{len(absent)} of {len(names)} genes asked for are not in the data: "
            f"{', '.join(absent[:5]) or 'the list is empty'}."
        )
    return list(dict.fromkeys(names))


def _list_values(covariate: Covariate) -> str:
    values = covariate.categories
    if covariate.knots:
        return f"a scale from {covariate.knots[0]:g} to {covariate.knots[-1]:g}"
    more = f", and {len(values) - 8} more" if len(values) > 8 else ""
    return f"{len(values)} values: {', '.join(values[:8])}{more}"
