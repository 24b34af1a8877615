"""What an atlas remembers of its fit: plain values, and sentences for its reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.data.columns import holds_fractions, missing_spellings
from invatlas.data.covariates import REFERENCE, Schema
from invatlas.data.gene_names import describe_repeated
from invatlas.data.minibatch import Cells
from invatlas.training.calibration import Calibration
from invatlas.training.loop import Plan, Training
from invatlas.training.split import Split
from invatlas.wording import count_noun

GUESSED = 0.1  # exponent below which calls of a covariate say next to nothing of a new donor


def describe_training(
    training: Training, plan: Plan, seconds: float, calibration_seconds: float
) -> dict[str, Any]:
    """Say how training went, in plain values."""
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


def describe_split(split: Split, schema: Schema, cells: Cells) -> str:
    """Say which cells were held out of training."""
    n_held = len(split.held_out)
    if not n_held:
        return "No cells were held out: there are too few. Training ran its full length."
    if split.covariate is None:
        return f"{n_held:,} cells, drawn at random, were held out to tell when to stop."
    covariate = schema.technical[split.covariate]
    codes = np.unique(cells.technical[split.held_out, split.covariate])
    values = ", ".join(covariate.categories[code] for code in codes)
    return (
        f"{n_held:,} cells, all those of {covariate.name} {values}, were held out "
        "to tell when to stop."
    )


def find_guessed(calibration: Calibration | None, schema: Schema) -> list[str]:
    """Name the covariates of which held-out cells taught nothing: exponents of about 0."""
    if calibration is None:
        return []
    own = calibration.exponents[1:].tolist()
    pairs = zip(schema.called, own, strict=True)
    return [covariate.name for covariate, exponent in pairs if exponent < GUESSED]


def describe_guessed(calibration: Calibration | None, schema: Schema) -> list[str]:
    """Say which covariates cannot be called for new donors, and what to do about it."""
    guessed = find_guessed(calibration, schema)
    if not guessed:
        return []
    beside = ""
    if others := [c.name for c in schema.called if c.name not in guessed]:
        beside = (
            f", and hardly any cell one of all columns together ({', '.join(others)} alone may)"
        )
    return [
        f"Values of {', '.join(guessed)} cannot be called for new donors: held-out cells taught "
        "nothing of them, so that all values are about equally probable. Hardly any cell will get "
        f"such a call{beside}. What helps is more donors of each value."
    ]


def describe_namesakes(names: pd.Index) -> list[str]:
    """Say that cells share names; nothing where none do."""
    if names.is_unique:
        return []
    twice = names[names.duplicated()][0]
    return [f"Cell names are not unique (for instance {twice!r}); rows keep their order."]


def describe_reserved(schema: Schema) -> list[str]:
    """Say which technical covariates have a value that counterfactuals have a meaning for."""
    return [
        f"{one.name} has a value that is called {REFERENCE!r}: a counterfactual with "
        f"{one.name}={REFERENCE} takes that value, and the average over all values of {one.name} "
        "cannot be asked for. Give the value another name, and fit anew, to ask for it."
        for one in schema.technical
        if not one.knots and REFERENCE in one.categories
    ]


def find_warnings(
    adata: AnnData, genes: Sequence[str | None], cells: Cells, schema: Schema
) -> list[str]:
    """Say what in the cells and columns of a study calls for caution."""
    found = []
    if empty := int((cells.source.matrix.getnnz(axis=1) == 0).sum()):
        found.append(
            f"{count_noun(empty, 'cell')} {'has' if empty == 1 else 'have'} no counts in the "
            "modelled genes; what is said of them means nothing."
        )
    found += describe_namesakes(adata.obs_names)
    found += describe_repeated(genes)
    if not schema.technical:
        found.append(
            "No technical column was named, so nothing says what the laboratory did: X_spurious "
            "learns little, and X_invariant may hold differences of donors and batches."
        )
    found += describe_reserved(schema)
    if len(schema.called) > 1 and not _have_all(schema, cells).any():
        found.append(
            f"No cell has a value of each of {', '.join(c.name for c in schema.called)}: what they "
            "say together is known from the frequencies of each alone."
        )
    for covariate in schema.covariates:
        for text, cells_so in missing_spellings(adata.obs, covariate.name).items():
            found.append(
                f"{covariate.name}: {count_noun(cells_so, 'cell')} "
                f"{'says' if cells_so == 1 else 'say'} {text!r}, which was taken "
                "as missing. Give them another word if it is a value."
            )
        if covariate.knots:
            continue
        if holds_fractions(adata.obs[covariate.name]):
            found.append(
                f"{covariate.name} holds numbers, and each of {len(covariate.categories)} was "
                f"taken as a category. {covariate.name}:continuous takes them as a scale."
            )
        codes = covariate.encode(adata.obs)
        few = [name for code, name in enumerate(covariate.categories) if (codes == code).sum() < 5]
        if few:
            found.append(
                f"{covariate.name}: {count_noun(len(few), 'value')} with fewer than 5 cells "
                f"({', '.join(few[:5])}); what is said of so few is weakly founded."
            )
    return found


def _have_all(schema: Schema, cells: Cells) -> np.ndarray:
    """Which cells have a category of every biological covariate that has any."""
    codes = [cells.biological[:, c] for c, one in enumerate(schema.biological) if not one.knots]
    return np.asarray((np.stack(codes) >= 0).all(0))
