"""What was fitted, counted and told in plain values, for a page or a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.covariates import MISSING, Covariate
from invatlas.data.findings import Finding, tell_finding
from invatlas.record import GUESSED, find_guessed
from invatlas.tasks.annotate import Calling
from invatlas.tasks.doubts import NOT_CALIBRATED
from invatlas.tasks.map import Mapped
from invatlas.training.loop import RAMP, SETTLED

POOR_CALIBRATION = 0.1  # expected calibration error


def summarise(atlas: Atlas, obs: pd.DataFrame, title: str = "Invariant atlas") -> dict[str, Any]:
    """Count the cells of every value and gather what the fit recorded.

    Parameters
    ----------
    atlas
        A fitted atlas.
    obs
        obs of the cells it was fitted to.
    title
        Headline.

    Returns
    -------
    Plain values: title, version, created, cells, genes, held_out, kept, calibration and seeds
    (sentences; the last is empty for a fit of one seed), biological and technical (column to
    category to cells), missing (column to cells), confounding (rows as of
    :func:`invatlas.confounding`), continuous (columns), order (as of
    :func:`order_values`), training, settings, versions.
    """
    check_atlas(atlas)
    versions = dict(atlas.record["versions"])
    return {
        "title": title,
        "version": versions["invatlas"],
        "created": atlas.record["created"],
        "cells": len(obs),
        "genes": len(atlas.genes),
        "held_out": atlas.record["held_out"],
        "kept": describe_choice(atlas),
        "calibration": describe_calibration(atlas),
        "seeds": describe_agreement(atlas),
        "biological": {c.name: _count(c, obs) for c in atlas.schema.biological},
        "technical": {c.name: _count(c, obs) for c in atlas.schema.technical},
        "continuous": [c.name for c in atlas.schema.covariates if c.knots],
        "order": order_values(atlas),
        "missing": {c.name: int((c.encode(obs) == MISSING).sum()) for c in atlas.schema.covariates},
        "confounding": [
            tell_finding(Finding.from_json(finding)) for finding in atlas.record["confounding"]
        ],
        "training": dict(atlas.record["training"]),
        "settings": asdict(atlas.settings),
        "versions": versions,
    }


def summarise_query(
    atlas: Atlas, mapped: Mapped, calling: Calling, title: str = "Query", name: str = "atlas"
) -> dict[str, Any]:
    """Gather what the report of a mapped query says in words.

    Parameters
    ----------
    atlas
        The atlas the cells were mapped to.
    mapped
        What :func:`invatlas.map_cells` returned, with calls.
    calling
        How they were called.
    title, name
        Of the query and of the atlas.

    Returns
    -------
    Plain values: title, atlas, version, created, calibration (a sentence), abstain_below,
    false_discovery_rate, covariates and continuous (biological ones), order (as of
    :func:`order_values`), by (the first technical column the query has, or None).
    """
    check_atlas(atlas)
    columns = [c.name for c in atlas.schema.technical if c.name in mapped.cells.obs]
    return {
        "title": title,
        "atlas": name,
        "version": version("invatlas"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "calibration": describe_calibration(atlas),
        "abstain_below": calling.abstain_below,
        "false_discovery_rate": calling.false_discovery_rate,
        "covariates": [c.name for c in atlas.schema.called],
        "continuous": [c.name for c in atlas.schema.biological if c.knots],
        "order": order_values(atlas),
        "by": columns[0] if columns else None,
    }


def order_values(atlas: Atlas) -> dict[str, list[str]]:
    """Order the categories of each covariate, the most frequent in the fit first.

    All pages of an atlas give its categories colours in this order. Those an adaptation added come
    last, so that the others keep theirs.
    """
    order: dict[str, list[str]] = {}
    later = sum(step["combinations"] for step in atlas.record["adapted"])
    for covariates, prior, added in (
        (atlas.schema.biological, atlas.model.prior_invariant, 0),
        (atlas.schema.technical, atlas.model.prior_spurious, later),
    ):
        codes = prior.combinations.cpu().numpy()[: len(prior.combinations) - added]
        weights = prior.weights.cpu().numpy()[: len(codes)]
        for column, covariate in enumerate(covariates):
            values = covariate.categories
            share = np.bincount(codes[:, column], weights, len(values))
            ranked = np.argsort(-share, kind="stable")
            order |= {} if covariate.knots else {covariate.name: [values[k] for k in ranked]}
    return order


def describe_choice(atlas: Atlas) -> str:
    """Say by what the epoch was chosen whose weights were kept."""
    training = atlas.record["training"]
    best, last, planned = training["best_epoch"], training["epochs"], training["planned"]["epochs"]
    if "held_out_objective" not in atlas.history:
        return f"The weights of epoch {best}, the last, were kept: no cells were held out."
    if last == 1:
        return "There was one epoch, whose weights were kept."
    first = max(1, math.ceil(SETTLED * planned))
    late = f"the last quarter of the {planned} that were planned"
    if best < first:
        return (
            f"The weights of epoch {best} were kept, the latest there were: weights are compared "
            f"from epoch {first} on only, {late}."
        )
    least = f"of epochs {first} to {last}, {late}, it has the lowest objective of held-out cells"
    if first == last:
        least = f"it alone is of {late}"
    return (
        f"The weights of epoch {best} were kept: {least}. Earlier weights are not compared, "
        "however low their objective: "
        f"training counts the dependences not at all before {100 * RAMP[0]:g} % of its epochs and "
        f"in full only from {100 * RAMP[1]:g} % on, and they take a while to settle. The curve of "
        "held-out cells counts them in full at every epoch, that of training cells as far as "
        "training did."
    )


def describe_calibration(atlas: Atlas) -> str:
    """Say on whom the probabilities of calls were calibrated, and how well that went."""
    known = atlas.calibration
    if known is None:
        return NOT_CALIBRATED
    whom = "drawn at random"
    if known.whole_donors:
        whom = f"of values of {_spared_column(atlas)} that training never met"
    together, *own = known.exponents.tolist()
    names = [covariate.name for covariate in atlas.schema.called]
    parts = [f"{value:.2f} ({name})" for name, value in zip(names, own, strict=True)]
    if len(names) > 1:
        parts.append(f"{together:.2f} (together)")
    error, brier = known.expected_calibration_error, known.brier
    judged = "too few of them have all labels to say how well that went."
    if error is not None and brier is not None:
        judged = f"expected calibration error {error:.3f}, Brier score {brier:.3f}."
    doubt = ""
    if guessed := find_guessed(known, atlas.schema):
        doubt = (
            f" Held-out cells taught nothing of {', '.join(guessed)} (an exponent of about 0), so "
            "its values cannot be called for new donors; more donors of each value help."
        )
    elif error is not None and error > POOR_CALIBRATION:
        doubt = " Calls of new donors are poorly calibrated: trust their order, not their size."
    if len(names) > 1 and together < GUESSED:
        doubt += " Together about 0 means that each column is called by itself."
    moved = atlas.record["aligned"]
    since = f" The atlas was aligned to {moved['cells']:,} cells since." if moved else ""
    return (
        f"Calls were calibrated on {len(known.called):,} held-out cells {whom}: exponents "
        f"{', '.join(parts)}; {judged}{doubt}{since}"
    )


def describe_agreement(atlas: Atlas) -> str:
    """Say how far fits of several seeds agree, or why that is not known; nothing of a single one.

    What the numbers are stands in ``invatlas.evaluate.identifiability``.
    """
    pairs = pd.DataFrame(atlas.record["seeds"])
    if pairs.empty:
        return ""
    seeds = len({*pairs["first"], *pairs["second"]})
    mean = pairs.astype(float).mean()
    low, high = pairs["linear"].min(), pairs["linear"].max()
    span = f" ({low:.3f} to {high:.3f})" if len(pairs) > 1 else ""
    told = (
        f"{seeds} seeds agree on held-out cells: correlation {mean['linear']:.3f}{span} after a "
        f"linear map, {mean['matched']:.3f} latent by latent."
    )
    if "needed" in pairs:  # fits before this was told have no such column
        told += f" {_describe_within(mean)}"
    return f"{told} Kept: seed {atlas.settings.seed}."


def _describe_within(mean: pd.Series) -> str:
    """Say how far fits agree on what the biological values do not say."""
    cells, strata, needed = (f"{mean[name]:,.0f}" for name in ("cells", "strata", "needed"))
    if pd.isna(mean["linear_pooled"]):
        return (
            f"Within biology nothing can be said: {cells} labelled cells less one for each of "
            f"their {strata} combinations of values are {mean['cells'] - mean['strata']:,.0f}, and "
            f"five for each latent are {needed}."
        )
    told = (
        f"Within biology ({cells} cells less the means of their {strata} combinations of values) "
        f"it is {mean['linear_pooled']:.3f} and {mean['matched_pooled']:.3f}"
    )
    if pd.isna(mean["linear_within"]):
        return f"{told}; no single combination has the {needed} cells to be asked alone."
    return (
        f"{told}; in single combinations of {needed} cells or more {mean['linear_within']:.3f} "
        f"and {mean['matched_within']:.3f}."
    )


def _spared_column(atlas: Atlas) -> str:
    """Name the technical column with most values before any adaptation (see training/split.py)."""
    sizes = {
        c.name: len(c.categories)
        - sum(len(step["values"].get(c.name, [])) for step in atlas.record["adapted"])
        for c in atlas.schema.technical
        if not c.knots
    }
    return max(sizes, key=sizes.__getitem__)


def _count(covariate: Covariate, obs: pd.DataFrame) -> dict[str, int]:
    counts = pd.Series(covariate.encode(obs)).value_counts()
    about = "about " if covariate.knots else ""
    codes = {f"{about}{name}": code for code, name in enumerate(covariate.categories)}
    codes |= {group: -2 - k for k, (group, _) in enumerate(covariate.groups)}
    return {name: int(counts.get(code, 0)) for name, code in codes.items()}
