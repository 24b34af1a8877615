"""The report: one self-contained HTML page that shows a fitted atlas, and computes nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from jinja2 import Environment
from markupsafe import Markup

from invatlas.report.plots import (
    COLOURS,
    LAYOUTS,
    MOST_CELLS,
    choose_cells,
    code_categories,
    horizontal_bars,
    line_chart,
    palette,
)

MOST_NAMES = 500  # categories with a name on the maps, for each covariate
MOST_LETTERS = 120  # longer category names are cut on the maps
MOST_BYTES = 1_600_000  # packed coordinates and categories; fewer cells are drawn beyond it


def write_report(
    path: str | Path,
    *,
    summary: Mapping[str, Any],
    latents: AnnData,
    history: pd.DataFrame,
    warnings: Sequence[str],
) -> Path:
    """Write the report of a fitted atlas; an existing file is replaced in one step.

    Parameters
    ----------
    path
        File to write.
    summary, latents, history, warnings
        As in `render_report`.

    Returns
    -------
    Path
        The file.
    """
    path = Path(path)
    html = render_report(summary=summary, latents=latents, history=history, warnings=warnings)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(unfinished, path)
    return path


def render_report(
    *,
    summary: Mapping[str, Any],
    latents: AnnData,
    history: pd.DataFrame,
    warnings: Sequence[str],
) -> str:
    """Render the report of a fitted atlas as one HTML page that loads nothing else.

    Parameters
    ----------
    summary
        `title`, `version`, `created` (ISO 8601), `cells`, `genes`, `held_out` and
        `calibration` (sentences),
        `biological` and `technical` (column to category to number of cells), `missing` (column
        to number of cells without a value), `training` (`epochs`, `best_epoch`, `seconds`,
        `cells_per_second`, `stopped`), `settings`, `versions`.
    latents
        obs with the covariates, obsm `X_invariant` (cell, latent), `X_spurious` (cell, latent;
        may have no columns) and their layouts `X_invariant_umap`, `X_spurious_umap` (cell, 2).
    history
        One row an epoch: `epoch` and `train_<term>`, `held_out_<term>` for each term.
    warnings
        Sentences a reader must see before the results.

    Returns
    -------
    str
        HTML.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        thousands=lambda number: f"{number:,}",
        duration=format_duration,
        date=format_date,
        setting=format_setting,
        digest=digest_script,
    )
    source = files("invatlas.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        summary=summary,
        warnings=list(warnings),
        latents={
            name: int(latents.obsm[f"X_{name}"].shape[1])
            for name in LAYOUTS
            if f"X_{name}" in latents.obsm
        },
        overview=draw_overview(summary),
        curves=draw_curves(history, summary["training"].get("best_epoch")),
        maps=pack_maps(latents, summary),
        most_cells=MOST_CELLS,
    )


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
    """Draw every term of the objective over epochs, the objective first.

    Parameters
    ----------
    history
        As in `render_report`.
    best_epoch
        Epoch whose weights were kept.

    Returns
    -------
    list of dict
        `term` and `svg`; the objective also has `wide`, the same drawing for wide screens.
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
        curves.append({"term": term, "svg": small, "wide": wide if term == "objective" else None})
    return curves


def pack_maps(latents: AnnData, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Pack the cells to draw: places as base64 uint16, categories as base64 codes.

    Parameters
    ----------
    latents, summary
        As in `render_report`.

    Returns
    -------
    dict
        `cells` and `drawn` (numbers of cells), `maps` (latent to places), `columns` (name, role,
        codes, bytes a code, names, counts) and `colours`.
    """
    layouts = {
        name: np.asarray(latents.obsm[key])
        for name, key in LAYOUTS.items()
        if key in latents.obsm and latents.obsm.get(f"X_{name}", latents.obsm[key]).shape[1]
    }
    columns = [
        (role, column)
        for role in ("biological", "technical")
        for column in summary.get(role, {})
        if column in latents.obs
    ]
    room = MOST_BYTES // (4 * len(layouts) + 2 * len(columns) + 1)
    rows = choose_cells(latents.n_obs, min(MOST_CELLS, room))
    for layout in layouts.values():
        rows = rows[np.isfinite(layout[rows]).all(axis=1)]
    return {
        "cells": latents.n_obs,
        "drawn": len(rows),
        "maps": {name: pack_places(layout[rows]) for name, layout in layouts.items()},
        "columns": [pack_column(latents.obs[column], rows, role) for role, column in columns],
        "colours": palette(COLOURS),
    }


def pack_places(places: npt.NDArray[np.floating]) -> str:
    """Scale places into the unit square, both axes alike, and pack them as uint16.

    Parameters
    ----------
    places
        Finite coordinates (cell, 2).

    Returns
    -------
    str
        Base64 of little-endian uint16, x before y; y points down.
    """
    if not len(places):
        return ""
    places = places.astype(float)
    low, high = places.min(axis=0), places.max(axis=0)
    span = float((high - low).max()) or 1.0
    unit = 0.5 + (places - (low + high) / 2) / span
    unit[:, 1] = 1 - unit[:, 1]
    return base64.b64encode(np.rint(unit * 65535).astype("<u2").tobytes()).decode()


def pack_column(values: pd.Series, rows: npt.NDArray[np.int64], role: str) -> dict[str, Any]:
    """Pack one covariate; the largest code of its width stands for a missing value.

    Parameters
    ----------
    values
        The obs column (cell,).
    rows
        The cells to draw (drawn,).
    role
        `biological` or `technical`.

    Returns
    -------
    dict
        `name`, `role`, `codes` (base64), `bytes` (1 or 2), `names`, `counts`, `categories`,
        `missing`.
    """
    codes, names, counts = code_categories(values, rows)
    width, none = (1, 255) if len(names) <= 255 else (2, 65535)
    packed = np.where(codes < 0, none, np.minimum(codes, none - 1)).astype(f"<u{width}")
    return {
        "name": str(values.name),
        "role": role,
        "codes": base64.b64encode(packed.tobytes()).decode(),
        "bytes": width,
        "names": [name[:MOST_LETTERS] for name in names[:MOST_NAMES]],
        "counts": counts[:MOST_NAMES],
        "categories": len(names),
        "missing": int(values.isna().sum()),
    }


def format_duration(seconds: float) -> str:
    """Say a duration in the units a person would use."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_date(created: str) -> str:
    """Say an ISO 8601 time as a date and a time; anything else is left as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M}" + (" UTC" if time.tzname() == "UTC" else "")


def format_setting(value: Any) -> str:
    """Say a setting the way a configuration file would."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def digest_script(script: str) -> str:
    """Hash the page's own script, the only one its content security policy lets run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
