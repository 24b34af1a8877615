"""The page of an answer: figures, tables and maps of cells in one file that loads nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from markupsafe import Markup

from invatlas.errors import DataError
from invatlas.report.figures.paper import SHADES
from invatlas.report.packing import colour_values, pack_maps
from invatlas.report.plots import LAYOUTS
from invatlas.report.table import name_file, tabulate_frame
from invatlas.report.template import render_page, write_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 5000


def write_page(
    path: str | Path,
    *,
    title: str,
    lead: str = "",
    figures: Mapping[str, Axes] | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    notes: Mapping[str, str] | None = None,
    cells: AnnData | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page of any answer; an existing file is replaced in one step.

    Parameters
    ----------
    path
        File to write.
    title, lead
        Headline, and the answer in a sentence or two.
    figures
        Headings to matplotlib axes, as of ``ia.pl``; drawn in light and dark.
    tables
        Headings to tables, which readers sort and keep as CSV. A figure and a table of one
        heading stand together.
    notes
        Headings to a sentence on how to read what stands there.
    cells
        Cells to map: obsm ``X_invariant_umap`` and ``X_spurious_umap``, or one of them; every
        column of obs colours them.
    warnings
        Sentences a reader must see first.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        If there is nothing to show, or a note has no figure or table.
    """
    figures, tables, notes = figures or {}, tables or {}, notes or {}
    headings = list(dict.fromkeys([*figures, *tables]))
    if not headings and cells is None:
        raise DataError("nothing to show; allowed are figures, tables and cells, one or more")
    if lost := [name for name in notes if name not in headings]:
        raise DataError(f"notes on {', '.join(lost)}; there are only {', '.join(headings)}")
    sections = [
        {
            "heading": name,
            "note": notes.get(name, ""),
            "figure": inline_figure(figures[name], name) if name in figures else None,
            "table": tabulate_frame(tables[name], f"{place}-{name_file(name)}", MOST_ROWS)
            if name in tables
            else None,
        }
        for place, name in enumerate(headings, 1)
    ]
    summary = {
        "title": title,
        "version": version("invatlas"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    html = render_page(
        "answer.html.j2",
        summary=summary,
        lead=lead,
        warnings=list(warnings),
        sections=sections,
        **_pack_cells(cells),
    )
    return write_html(path, html)


def inline_figure(axes: Axes, label: str) -> Markup:
    """Write the figure of matplotlib axes as SVG that takes the colours of the page.

    Parameters
    ----------
    axes
        Any axes of the figure.
    label
        Read aloud by screen readers.

    Returns
    -------
    Markup
    """
    from matplotlib import rc_context

    file = io.StringIO()
    figure: Any = axes.figure.figure  # the whole one where the axes are part of a part
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, dpi=160, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for name, colour in SHADES.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    name = Markup(' role="img" aria-label="{}"').format(label)
    return Markup(svg.replace("<svg", f"<svg{name}", 1))


def _pack_cells(cells: AnnData | None) -> dict[str, Any]:
    if cells is None:
        return {"maps": None, "dimensions": {}}
    shown = [colour_values(cells.obs[name], "cells", f"{name} of each cell.") for name in cells.obs]
    dimensions = {
        name: int(cells.obsm[f"X_{name}"].shape[1]) for name in LAYOUTS if f"X_{name}" in cells.obsm
    }
    return {"maps": pack_maps(cells, shown), "dimensions": dimensions}
