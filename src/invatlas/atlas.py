"""The fitted artefact, and how it comes about: `fit -> train -> objective`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from invatlas.data.confounding import find_confounding, refuse_confounding
from invatlas.data.counts import CountSource, check_cells
from invatlas.data.covariates import (
    Covariate,
    Hierarchy,
    Schema,
    combine,
    describe_unmet,
    holds_fractions,
    keep_categories,
)
from invatlas.data.genes import select_genes
from invatlas.data.minibatch import Cells, Rounding
from invatlas.errors import CountsError, DataError, GeneError, TrainingError
from invatlas.folders import package_versions
from invatlas.model.invae import Model
from invatlas.model.priors import CovariateTable
from invatlas.settings import Settings
from invatlas.training.calibration import Calibration, calibrate, calibrate_on_donors
from invatlas.training.loop import Plan, Training, plan_training, train
from invatlas.training.posterior import measure_cells
from invatlas.training.progress import watch
from invatlas.training.split import Split, split_cells, split_donors

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
        versions, warnings, confounding.
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


def outline(atlas: Atlas) -> list[tuple[str, str]]:
    """Say in pairs of a name and a text what an atlas holds."""
    schema, settings, trained = atlas.schema, atlas.settings, atlas.record["training"]
    return [
        ("cells", f"{atlas.record['cells']:,}"),
        ("genes", f"{len(atlas.genes):,} ({', '.join(atlas.genes[:3])}, ...)"),
        *[(f"biological {c.name}", _list_values(c.categories)) for c in schema.biological],
        *[(f"technical {c.name}", _list_values(c.categories)) for c in schema.technical],
        (
            "latents",
            f"{settings.invariant_latents} invariant, {settings.spurious_latents} spurious",
        ),
        ("likelihood", settings.likelihood),
        (
            "training",
            f"{trained['epochs']} epochs, {trained['stopped']}, "
            f"best {trained['best_epoch']}, {trained['seconds']:.0f} s",
        ),
    ]


def fit(
    adata: AnnData,
    biological: Sequence[str],
    technical: Sequence[str] = (),
    *,
    hierarchy: Mapping[str, Hierarchy] | None = None,
    layer: str | None = None,
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
    genes
        Genes to model; by default the ``settings.genes`` most variable ones.
    settings
        Everything else; see :class:`Settings`.
    progress
        Whether to show a progress bar with the time left.
    strict
        Whether to refuse data in which a biological and a technical value occur only together,
        or nearly; without it ``record["confounding"]`` and the warnings say so. See
        :func:`invatlas.confounding`.

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
    """
    settings = settings or Settings()
    check_cells(adata)
    if adata.n_obs < MINIMUM_CELLS:
        raise DataError(f"The data have {adata.n_obs} cells; a fit needs at least {MINIMUM_CELLS}.")
    schema = Schema.learn(adata.obs, biological, technical, hierarchy)
    biological_codes, technical_codes = schema.encode(adata.obs)
    confounded = find_confounding(schema, biological_codes, technical_codes)
    if strict:
        refuse_confounding(confounded)
    groups = group_codes(schema, biological_codes, technical_codes)
    names = _choose_genes(adata, genes, layer, groups[1], settings)
    source = CountSource.from_anndata(adata, names, layer)
    if not source.matrix.nnz:
        raise CountsError(
            f"None of the {len(names)} genes is counted in any of {adata.n_obs} cells."
        )
    rounding = None
    if any(covariate.knots for covariate in schema.covariates):
        rounding = Rounding(*schema.offsets(adata.obs), np.random.default_rng(settings.seed))
    cells = Cells(source, biological_codes, technical_codes, rounding)
    split = draw_split(*groups, settings)
    job = Job(cells, schema, settings, lambda rows: _describe(rows, cells, adata, schema), progress)
    with torch.random.fork_rng(devices=[]):
        start = time.perf_counter()
        model, training = job.run(split, "fit")
        measure_cells(model, cells, split.train)
        trained = time.perf_counter()
        calibration, left_out = job.calibrate(model, training, split)
        seconds = (trained - start, time.perf_counter() - trained)
    totals = np.asarray(source.matrix.sum(axis=0, dtype=np.float64)).ravel()
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "layer": layer,
        "genes_given": genes is not None,
        "cells": adata.n_obs,
        "held_out": _describe_split(split, schema, cells),
        "training": _training_record(training, job.plan(split), *seconds),
        "confounding": [finding.to_json() for finding in confounded],
        "warnings": [
            *left_out,
            *[finding.sentence for finding in confounded if finding.alarm],
            *_warnings(adata, cells, schema),
            *describe_unmet(hierarchy or {}, adata.obs),
        ],
        "labelled": {
            "invariant": int((biological_codes[split.train] >= 0).all(1).sum()),
            "spurious": int((technical_codes[split.train] >= 0).all(1).sum()),
        },
        "adapted": [],
        "seeds": [],
        "versions": package_versions(),
    }
    history = pd.DataFrame(training.history)
    shares = totals / totals.sum()
    return Atlas(model, schema, tuple(names), shares, settings, history, record, calibration)


def draw_split(biological: np.ndarray, technical: np.ndarray, settings: Settings) -> Split:
    """Choose the cells a fit holds out, from codes in which scales are missing."""
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    return split_cells(biological, technical, settings.held_out, np.random.default_rng(seed))


@dataclass(frozen=True)
class Job:
    """Cells to fit a model to, with everything that stays the same from one fit to the next."""

    cells: Cells
    schema: Schema
    settings: Settings
    describe: Callable[[np.ndarray], str]
    progress: bool

    def plan(self, split: Split) -> Plan:
        """Epochs and minibatch size for the cells of a split."""
        return plan_training(len(split.train) + len(split.held_out), self.settings)

    def run(self, split: Split, title: str) -> tuple[Model, Training]:
        """Fit a new model; the seed decides everything."""
        torch.manual_seed(self.settings.seed)
        biological, technical = self.schema.biological, self.schema.technical
        codes = self.cells.technical[split.train]
        model = Model(
            self.cells.source.matrix.shape[1],
            tabulate(biological, self.cells.biological[split.train]),
            replace(tabulate(technical, codes), cells=count_cells(technical, codes)),
            float(np.median(self.cells.source.library_size)),
            self.settings,
        )
        plan = self.plan(split)
        with watch(plan.epochs, self.progress, title) as on_epoch:
            return model, train(
                model, self.cells, split, plan, self.settings, on_epoch, self.describe
            )

    def calibrate(
        self, model: Model, training: Training, split: Split
    ) -> tuple[Calibration | None, list[str]]:
        """Learn from held-out cells how far calls can be trusted; from spared donors if need be.

        A second fit that is interrupted or fails leaves the calibration on cells drawn at random,
        and a sentence that says so.
        """
        settings, cells = self.settings, self.cells
        generator = np.random.default_rng(settings.seed)
        try:
            found = calibrate(model, cells, split, generator)
        except KeyboardInterrupt:
            return None, ["Calls are not calibrated, since the fit was interrupted in it."]
        if found is None or split.covariate is not None or not settings.spared_donors:
            return found, []
        biological, technical = group_codes(self.schema, cells.biological, cells.technical)
        spared = split_donors(biological, technical, settings.spared_donors, generator)
        if spared is None:
            return found, []
        column = self.schema.technical[spared.covariate or 0].name
        left_out = [
            f"The calibration on values of {column} that training never met was left out, since "
            "the fit was interrupted or failed in it, or met other combinations of values; calls "
            f"are calibrated on cells drawn at random and promise less for a new {column}."
        ]
        if training.stopped == "interrupted":
            return found, left_out
        rows = spared.train
        inner = split_cells(biological[rows], technical[rows], settings.held_out, generator)
        inner = Split(rows[inner.train], rows[inner.held_out], None)
        try:
            second, second_training = self.run(inner, "calibration")
            tables = [fitted.prior_invariant.combinations for fitted in (model, second)]
            if second_training.stopped == "interrupted" or not torch.equal(*tables):
                return found, left_out
            return calibrate_on_donors(found, second, inner, cells, spared.held_out, generator), []
        except (KeyboardInterrupt, TrainingError):
            return found, left_out


def tabulate(covariates: Sequence[Covariate], codes: np.ndarray) -> CovariateTable:
    """Lay out what a prior conditions on, from the codes (cell, covariate) of the reference."""
    combinations, weights = combine(covariates, codes)
    return tabulate_values(
        covariates, torch.from_numpy(combinations), torch.from_numpy(weights.astype(np.float32))
    )


def count_cells(covariates: Sequence[Covariate], codes: np.ndarray) -> torch.Tensor:
    """Cells of each value, all covariates below each other, from codes (cell, covariate)."""
    values = [np.arange(len(covariate.categories)) for covariate in covariates]
    cells = [
        (column[:, None] == value).sum(0) for column, value in zip(codes.T, values, strict=True)
    ]
    return torch.from_numpy(np.concatenate([[], *cells]).astype(np.float32))


def tabulate_values(
    covariates: Sequence[Covariate], combinations: torch.Tensor, weights: torch.Tensor
) -> CovariateTable:
    """Lay out some combinations (combination, covariate) of the values of covariates."""
    groups = tuple(torch.as_tensor(c.members, device=combinations.device) for c in covariates)
    sizes, ordered = [len(c.categories) for c in covariates], [bool(c.knots) for c in covariates]
    return CovariateTable(sizes, combinations, weights, groups, tuple(ordered))


def group_codes(
    schema: Schema, biological: np.ndarray, technical: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes that tell which cells belong together; numbers do not."""
    return (
        keep_categories(schema.biological, biological),
        keep_categories(schema.technical, technical),
    )


def _choose_genes(
    adata: AnnData,
    genes: Sequence[str] | None,
    layer: str | None,
    technical: np.ndarray,
    settings: Settings,
) -> list[str]:
    if genes is None:
        strata = next((codes for codes in technical.T if (codes >= 0).any()), None)
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


def _training_record(
    training: Training, plan: Plan, seconds: float, calibration_seconds: float
) -> dict[str, Any]:
    speeds = [row["cells_per_second"] for row in training.history]
    return {
        "epochs": len(training.history),
        "planned": asdict(plan),
        "best_epoch": training.best_epoch,
        "stopped": training.stopped,
        "seconds": seconds,
        "calibration_seconds": calibration_seconds,
        "cells_per_second": float(np.median(speeds)),
    }


def _list_values(values: Sequence[str]) -> str:
    more = f", and {len(values) - 8} more" if len(values) > 8 else ""
    return f"{len(values)} values: {', '.join(values[:8])}{more}"


def _describe(rows: np.ndarray, cells: Cells, adata: AnnData, schema: Schema) -> str:
    """Name the cells of a minibatch by what could be wrong with them."""
    largest = cells.source.matrix[rows].max()
    values = []
    for covariate in schema.covariates:
        codes = covariate.encode(adata.obs.iloc[rows])
        seen = [covariate.categories[code] for code in np.unique(codes[codes >= 0])]
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
        found.append(
            "No technical column was named, so nothing says what the laboratory did: X_spurious "
            "learns little, and X_invariant may hold differences of donors and batches."
        )
    for covariate in schema.covariates:
        if not covariate.knots and holds_fractions(adata.obs[covariate.name]):
            found.append(
                f"{covariate.name} holds numbers, and each of {len(covariate.categories)} was "
                f"taken as a category. {covariate.name}:continuous takes them as a scale."
            )
        codes = covariate.encode(adata.obs)
        few = [name for code, name in enumerate(covariate.categories) if (codes == code).sum() < 5]
        if few:
            found.append(
                f"{covariate.name}: {len(few)} values have fewer than 5 cells "
                f"({', '.join(few[:5])}); what is said of them is weakly founded."
            )
    return found
