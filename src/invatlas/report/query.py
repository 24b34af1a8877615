"""The report of a mapped query: what was called, how surely, and what is new; estimates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from markupsafe import Markup

from invatlas.data.genes import GeneOverlap
from invatlas.report.histogram import histogram
from invatlas.report.packing import Colouring, colour_numbers, colour_values, pack_maps
from invatlas.report.plots import LAYOUTS
from invatlas.report.table import (
    OUTCOMES,
    tabulate_calls,
    tabulate_confidence,
    tabulate_frame,
)
from invatlas.report.template import render_page, write_html

MOST_COLUMNS = 20  # columns of the query that colour the map
BINS = np.linspace(0, 1, 21)
KINDS = dict(zip(("called", "weak", "new"), OUTCOMES, strict=True))  # class of the style sheet


def write_query_report(
    path: str | Path,
    *,
    summary: Mapping[str, Any],
    cells: AnnData,
    overlap: GeneOverlap,
    notes: Sequence[str],
    groups: pd.DataFrame | None,
) -> Path:
    """Write the report of a mapped query; an existing file is replaced in one step.

    Parameters
    ----------
    path
        File to write.
    summary, cells, overlap, notes, groups
        As in `render_query_report`.

    Returns
    -------
    Path
        The file.
    """
    html = render_query_report(
        summary=summary, cells=cells, overlap=overlap, notes=notes, groups=groups
    )
    return write_html(path, html)


def render_query_report(
    *,
    summary: Mapping[str, Any],
    cells: AnnData,
    overlap: GeneOverlap,
    notes: Sequence[str],
    groups: pd.DataFrame | None,
) -> str:
    """Render the report of a mapped query as one HTML page that loads nothing else.

    Parameters
    ----------
    summary
        `title`, `atlas` (its name), `version`, `created` (ISO 8601), `calibration` (a sentence),
        `abstain_below`, `false_discovery_rate`, `covariates` (the biological ones of the atlas),
        `by` (obs column to break calls down by, or None) and `order` (optional; covariate to its
        categories in the order of their colours).
    cells
        obs with the columns of `invatlas.annotate` and the query's own; obsm `X_invariant` and,
        if the query was laid out, `X_invariant_umap`.
    overlap
        How the genes of the query met those of the atlas.
    notes
        Sentences a reader must see before the results.
    groups
        One row a group of new cells (group, cells, nearest known label, share of cells called
        so, marker genes); None where none were looked for.

    Returns
    -------
    str
        HTML.
    """
    cells = AnnData(obs=cells.obs.loc[:, ~cells.obs.columns.duplicated()], obsm=dict(cells.obsm))
    outcome = tell_outcomes(cells.obs)
    probability = cells.obs["predicted_joint_probability"]
    by = cells.obs[summary["by"]] if summary.get("by") in cells.obs else None
    calls = list_calls(summary["covariates"])
    return render_page(
        "query.html.j2",
        summary=summary,
        warnings=list(notes),
        cells=cells.n_obs,
        counts={kind: int((outcome == name).sum()) for kind, name in KINDS.items()},
        calibrated=bool(cells.obs["novelty_pvalue"].notna().any()),
        overlap=overlap,
        calls=[(c, tabulate_calls(cells.obs[f"predicted_{c}"], outcome, by)) for c in calls],
        by=by.name if by is not None else None,
        confidence=draw_histogram(probability, outcome, mark=float(summary["abstain_below"])),
        medians=tabulate_confidence(cells.obs[f"predicted_{calls[0]}"], probability, outcome),
        novelty=draw_histogram(cells.obs["novelty_pvalue"], outcome, flat=True),
        missing=int(cells.obs["novelty_pvalue"].isna().sum()),
        groups=None if groups is None else tabulate_frame(groups, "groups"),
        maps=pack_maps(
            cells, list_colourings(cells.obs, summary), {"invariant": LAYOUTS["invariant"]}
        ),
        dimensions={"invariant": int(cells.obsm["X_invariant"].shape[1])},
    )


def tell_outcomes(obs: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Tell what became of each cell: called, not called since too weak, or flagged as new.

    Parameters
    ----------
    obs
        `novelty_flag` and `abstained`.

    Returns
    -------
    ndarray (cell,)
        Of `OUTCOMES`; each cell is one of them.
    """
    new, none = (obs[name].eq(True).to_numpy(dtype=bool) for name in ("novelty_flag", "abstained"))
    return np.select([new, none], ["new", "too weak"], "called").astype(str)


def list_calls(covariates: Sequence[str]) -> list[str]:
    """List what is called, the joint label first unless it says the same as its one covariate."""
    return list(covariates) if len(covariates) == 1 else ["joint", *covariates]


def draw_histogram(
    values: pd.Series,
    outcome: npt.NDArray[np.str_],
    *,
    mark: float | None = None,
    flat: bool = False,
) -> list[Markup]:
    """Draw how values between 0 and 1 are spread, cells of each outcome apart.

    Parameters
    ----------
    values
        One number a cell (cell,); missing ones are left out.
    outcome
        What became of each cell (cell,).
    mark
        Value to mark.
    flat
        Whether to mark the level at which all bins would hold as many cells.

    Returns
    -------
    list of Markup
        The drawing for wide and for narrow screens.
    """
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    counts = {
        kind: np.histogram(numbers[(outcome == name) & np.isfinite(numbers)], BINS)[0].tolist()
        for kind, name in KINDS.items()
    }
    return [
        Markup(
            histogram(
                counts,
                BINS.round(2).tolist(),
                names={"called": "called", "weak": "without a call", "new": "flagged as new"},
                mark=mark,
                level=np.isfinite(numbers).sum() / (len(BINS) - 1) if flat else None,
                size=size,
                label=f"Cells by {values.name}",
            )
        )
        for size in ((540, 280), (340, 210))
    ]


def list_colourings(obs: pd.DataFrame, summary: Mapping[str, Any]) -> list[Colouring]:
    """List what the map can be coloured by: novelty, calls, then columns of the query.

    Calls come first where nothing is flagged.

    Parameters
    ----------
    obs
        obs of the mapped cells.
    summary
        As in `render_query_report`.

    Returns
    -------
    list of Colouring
        Names of cells and the like, of which nearly every cell has its own, are left out.
    """
    outcome, order = tell_outcomes(obs), summary.get("order", {})
    flags = pd.Categorical(
        np.where(outcome == "new", "flagged as new", "not flagged"),
        ["flagged as new", "not flagged"],
    )
    kept = pd.Categorical(outcome, ["too weak", "new", "called"]).rename_categories(
        {"too weak": "no call: too weak", "new": "no call: new"}
    )
    told = (
        f"Cells flagged as new, at a false discovery rate of {summary['false_discovery_rate']:g}."
        if (outcome == "new").any()
        else "No cell is flagged as new."
    )
    why = f"A call is too weak where its joint probability is below {summary['abstain_below']:g}."
    listed = [
        Colouring(pd.Series(flags, name="novelty_flag"), "novelty", told, ("--warn", "--none"), 0),
        Colouring(
            pd.Series(kept, name="abstained"), "novelty", why, ("--ink", "--warn", "--none"), 0
        ),
        colour_numbers(obs["novelty_score"], "novelty", "The higher, the less like known cells."),
    ]
    if "novelty_group" in obs:
        together = "Flagged cells that lie together, by the size of their group."
        listed.append(Colouring(obs["novelty_group"], "novelty", together))
    likeliest = "The likeliest value of each cell, also where the call was not kept."
    made = {"novelty_score", "novelty_pvalue", "novelty_flag", "novelty_group", "abstained"}
    for name in dict.fromkeys([*summary["covariates"], "joint"]):
        made |= {f"predicted_{name}", f"predicted_{name}_probability"}
        if name in list_calls(summary["covariates"]):
            listed.append(
                Colouring(obs[f"predicted_{name}"], "called", likeliest, order=order.get(name, ()))
            )
    for name in summary.get("continuous", []):
        made |= {f"predicted_{name}", f"predicted_{name}_deviation"}
        told = f"Mean {name} under the posterior of each cell."
        listed.append(colour_numbers(obs[f"predicted_{name}"], "called", told))
    joint = obs["predicted_joint_probability"]
    listed.append(colour_numbers(joint, "called", "How sure the call is."))
    if not (outcome == "new").any():  # the map opens on the first
        listed.sort(key=lambda colouring: colouring.role != "called")
    own = [name for name in obs.columns if name not in made and not _names_cells(obs[name])]
    own.sort(key=lambda name: name != summary.get("by"))
    for name in own[:MOST_COLUMNS]:
        reading = f"{name} is a column of the query; calls do not depend on it."
        listed.append(colour_values(obs[name], "query", reading, order.get(name, ())))
    return listed


def _names_cells(values: pd.Series) -> bool:
    many = values.nunique() > max(50, len(values) // 2)
    return many and not pd.api.types.is_numeric_dtype(values)
