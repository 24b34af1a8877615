"""The report: one self-contained HTML page that shows a fitted atlas, and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from markupsafe import Markup

from invatlas.data.findings import VERDICTS
from invatlas.report.leaks import draw_audit, tabulate_audit
from invatlas.report.packing import Colouring, colour_numbers, pack_maps
from invatlas.report.plots import LAYOUTS, horizontal_bars, line_chart
from invatlas.report.table import Table, tabulate_frame
from invatlas.report.template import render_page, write_html

TERMS = {
    "objective": "What training lowers, in nats a cell",
    "reconstruction": "Minus the log likelihood of the counts",
    "invariant_divergence": "Distance of z_I from its prior, given biology",
    "spurious_divergence": "Distance of z_S from its prior, given technique",
    "classification": "How badly z_I tells biology: cross entropy",
    "invariant_dependence": "What z_I tells of technique, given biology",
    "spurious_dependence": "What z_S tells of biology, given technique",
    "score_matching": "How badly learnt priors fit the latents",
    "shrinkage": "Squared interactions of values in the priors",
    "random_effects": "Distance of technical values from their kind",
}


def write_report(
    path: str | Path,
    *,
    summary: Mapping[str, Any],
    latents: AnnData,
    history: pd.DataFrame,
    warnings: Sequence[str],
    audit: pd.DataFrame | None = None,
    unseen: bool = False,
) -> Path:
    """Write the report of a fitted atlas; an existing file is replaced in one step.

    Parameters
    ----------
    path
        File to write.
    summary, latents, history, warnings, audit, unseen
        As in `render_report`.

    Returns
    -------
    Path
        The file.
    """
    html = render_report(
        summary=summary,
        latents=latents,
        history=history,
        warnings=warnings,
        audit=audit,
        unseen=unseen,
    )
    return write_html(path, html)


def render_report(
    *,
    summary: Mapping[str, Any],
    latents: AnnData,
    history: pd.DataFrame,
    warnings: Sequence[str],
    audit: pd.DataFrame | None = None,
    unseen: bool = False,
) -> str:
    """Render the report of a fitted atlas as one HTML page that loads nothing else.

    Parameters
    ----------
    summary
        `title`, `version`, `created` (ISO 8601), `cells`, `genes`, `held_out`,
        `kept` (by what the epoch was chosen), `calibration` and `seeds` (sentences, the first and
        the last one optional),
        `biological` and `technical` (column to category to number of cells), `missing` (column
        to number of cells without a value), `confounding` (optional; rows as of
        `invatlas.confounding`), `continuous` (optional; columns with numbers),
        `order` (optional; column to its categories in the order of their colours),
        `training` (`epochs`, `best_epoch`, `seconds`, `cells_per_second`, `stopped`,
        `calibration_seconds` if known), `settings`, `versions`.
    latents
        obs with the covariates, obsm `X_invariant` (cell, latent), `X_spurious` (cell, latent;
        may have no columns) and their layouts `X_invariant_umap`, `X_spurious_umap` (cell, 2).
    history
        One row an epoch: `epoch` and `train_<term>`, `held_out_<term>` for each term.
    warnings
        Sentences a reader must see before the results.
    audit
        What the latents tell, as of `invatlas.evaluate.leakage`; left out without it.
    unseen
        Whether the cells of the audit are of donors held out of the fit.

    Returns
    -------
    str
        HTML.
    """
    return render_page(
        "fit.html.j2",
        summary=summary,
        warnings=list(warnings),
        latents={
            name: int(latents.obsm[f"X_{name}"].shape[1])
            for name in LAYOUTS
            if f"X_{name}" in latents.obsm
        },
        confounding=tabulate_confounding(summary.get("confounding", [])),
        overview=draw_overview(summary),
        curves=draw_curves(history, summary["training"].get("best_epoch")),
        maps=pack_maps(latents, list_colourings(latents, summary)),
        audit=[] if audit is None else draw_audit(audit),
        audited=None if audit is None else tabulate_audit(audit),
        unseen=unseen,
    )


def tabulate_confounding(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Tabulate what a study cannot tell because values occur only together.

    Parameters
    ----------
    rows
        `confounding` of the summary in `render_report`.

    Returns
    -------
    Table or None
        None where there is nothing to tell.
    """
    if not rows:
        return None
    frame = pd.DataFrame(
        {
            "columns": [f"{row['biological']} and {row['beside']}" for row in rows],
            "verdict": [VERDICTS[row["kind"]] for row in rows],
            "what cannot be told": [row["sentence"] for row in rows],
            "cells": [row["cells"] for row in rows],
            "share explained": [float(row["explained"]) for row in rows],
        }
    )
    return tabulate_frame(frame, "confounding")


def draw_overview(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw the cells per category of each covariate.

    Parameters
    ----------
    summary
        As in `render_report`.

    Returns
    -------
    list of dict
        `column`, `role`, `categories` (how many), `missing` (cells) and `svg`.
    """
    missing = summary.get("missing", {})
    return [
        {
            "column": column,
            "role": role,
            "categories": len(counts),
            "missing": missing.get(column, 0),
            "svg": Markup(horizontal_bars(counts, missing.get(column, 0))),
        }
        for role in ("biological", "technical")
        for column, counts in summary.get(role, {}).items()
    ]


def draw_curves(history: pd.DataFrame, best_epoch: float | None) -> list[dict[str, Any]]:
    """Draw every term of the objective over epochs, the objective first; not one that stays 0.

    Parameters
    ----------
    history
        As in `render_report`.
    best_epoch
        Epoch whose weights were kept.

    Returns
    -------
    list of dict
        `term`, `meaning` (empty of unknown terms) and `svg`; the objective also has `wide`, the
        same drawing for wide screens.
    """
    terms = dict.fromkeys(
        name.removeprefix(prefix)
        for prefix in ("train_", "held_out_")
        for name in history.columns
        if name.startswith(prefix)
    )
    curves = []
    for term in sorted(terms, key=lambda name: name != "objective"):
        lines = {
            kind: history[f"{kind}_{term}"].tolist()
            for kind in ("train", "held_out")
            if f"{kind}_{term}" in history
        }
        if not np.any(list(lines.values())):
            continue
        small, wide = (
            Markup(
                line_chart(
                    history["epoch"].tolist(),
                    lines,
                    best_epoch=best_epoch,
                    size=size,
                    label=f"{term.replace('_', ' ')} by epoch",
                )
            )
            for size in ((340, 180), (708, 420))
        )
        shown = wide if term == "objective" else None
        curves.append({"term": term, "meaning": TERMS.get(term, ""), "svg": small, "wide": shown})
    return curves


def list_colourings(latents: AnnData, summary: Mapping[str, Any]) -> list[Colouring]:
    """List the covariates that colour the maps, and say how their categories are wanted to lie.

    Parameters
    ----------
    latents, summary
        As in `render_report`.

    Returns
    -------
    list of Colouring
    """
    spurious = LAYOUTS["spurious"] in latents.obsm and latents.obsm["X_spurious"].shape[1] > 0
    colourings = []
    for role, here, there in (
        ("biological", "lie apart", "mix"),
        ("technical", "mix", "lie apart as far as they differ"),
    ):
        for column in summary.get(role, {}):
            if column not in latents.obs:
                continue
            reading = (
                f"{column} is a {role} covariate: wanted is that its categories {here} in the "
                f"invariant map{f' and {there} in the spurious one' if spurious else ''}. A map "
                "shows that roughly: invatlas audit measures how much each latent tells of "
                f"{column}."
            )
            if column in summary.get("continuous", []):
                reading = f"{column} is a {role} covariate with numbers for values."
                colourings.append(colour_numbers(latents.obs[column], role, reading))
                continue
            if latents.obs[column].nunique() < 2:
                reading = f"{column} has one category only, so there is nothing to tell apart."
            order = summary.get("order", {}).get(column, ())
            colourings.append(Colouring(latents.obs[column], role, reading, order=order))
    return colourings
