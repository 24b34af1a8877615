"""Figures of biology: which diseases share a state, which genes move, where cells are denser.

Each takes the table that the question returned, or an object that has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from invatlas.errors import DataError
from invatlas.report.figures.paper import SHADES, check_table, name_rows, open_axes, plain, show_key
from invatlas.report.plots import choose_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 0.7  # of a row of cells


def states(result: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the share of cells each disease has in each state, beside that of the reference.

    Parameters
    ----------
    result
        What ``ia.states`` returned, or its ``shares``: ``state``, ``disease``, ``share``,
        ``reference_share``. Diseases that are named are coloured where the result has a ``table``.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If a column is absent.
    """
    needed = ["state", "disease", "share", "reference_share"]
    shares = check_table(getattr(result, "shares", result), needed, "ia.states")
    table = getattr(result, "table", None)
    named: dict[str, list[str]] = {}
    if table is not None:
        named = {s: d.split(", ") for s, d in zip(table["state"], table["diseases"], strict=True)}
    pairs = zip(shares["state"], shares["disease"], strict=True)
    more = np.array([disease in named.get(state, []) for state, disease in pairs])
    rows = np.arange(len(shares))
    ax = open_axes(ax, (5.2, 1.1 + 0.26 * len(shares)))
    ax.hlines(rows, shares["reference_share"], shares["share"], color=SHADES["none"], lw=2)
    ax.scatter(shares["reference_share"], rows, facecolors="none", edgecolors=SHADES["muted"],
               s=26, label="reference", zorder=2)  # fmt: skip
    for kept, shade, label in ((~more, "second", "disease"), (more, "warn", "has more")):
        if kept.any():
            ax.scatter(shares["share"][kept], rows[kept], c=SHADES[shade], s=26, lw=0, label=label,
                       zorder=3)  # fmt: skip
    name_rows(ax, [f"{s}, {d}" for s, d in zip(shares["state"], shares["disease"], strict=True)])
    ax.set(xlim=(-0.02, 1.02), xlabel="share of a donor's cells, mean over donors")
    show_key(ax, "lower right", (1, 1), columns=3)
    return ax


def explain(result: Any, of: str | None = None, *, most: int = 20, ax: Axes | None = None) -> Axes:
    """Draw the genes that a shift or a latent moves most.

    Parameters
    ----------
    result
        What ``ia.explain`` returned, or its ``shifts`` or ``latents``: genes in the index.
    of
        Which column; the first shift by default.
    most
        How many genes.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If there is no such column.
    """
    table = result
    if hasattr(result, "shifts"):
        table = pd.concat([result.shifts, result.latents], axis=1)
    check_table(table, [], "ia.explain")
    of = str(table.columns[0]) if of is None else of
    if of not in table:
        raise DataError(f"of is {of!r}; it takes one of {', '.join(map(str, table.columns))}.")
    moved = table[of].sort_values(key=abs, ascending=False, kind="stable").head(most)
    ax = open_axes(ax, (5.2, 0.9 + 0.22 * len(moved)))
    shades = np.where(moved > 0, SHADES["warn"], SHADES["accent"])
    ax.barh(np.arange(len(moved)), moved, height=0.6, color=shades, lw=0)
    ax.axvline(0, color=SHADES["second"], lw=0.8)
    name_rows(ax, list(moved.index))
    ax.set_xlabel("change of log expression")
    return ax


def abundance(
    table: pd.DataFrame, *, false_discovery_rate: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw the log density ratio at each cell, a row a cell type.

    Parameters
    ----------
    table
        As of ``ia.abundance``: ``cell_type``, ``log_density_ratio``, ``false_discovery_rate``;
        the axis names the two conditions where ``attrs["between"]`` does.
    false_discovery_rate
        Cells at or under it are coloured, by the sign of the ratio.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If a column is absent.
    """
    needed = ["cell_type", "log_density_ratio", "false_discovery_rate"]
    check_table(table, needed, "ia.abundance")
    rows = choose_cells(len(table))
    ratio = table["log_density_ratio"].to_numpy(dtype=float)[rows]
    sure = table["false_discovery_rate"].to_numpy(dtype=float)[rows] <= false_discovery_rate
    kind, names = pd.factorize(table["cell_type"].astype(str), sort=True)
    place = kind[rows] + HEIGHT * (np.random.default_rng(0).random(len(rows)) - 0.5)
    ax = open_axes(ax, (5.2, 1.2 + 0.34 * len(names)))
    ax.axvline(0, color=SHADES["second"], lw=0.8, ls=(0, (3, 3)))
    size = 30_000 / (len(rows) + 4e3)
    for kept, shade, label in (
        (~sure, "none", "not clear"),
        (sure & (ratio > 0), "warn", "more frequent"),
        (sure & (ratio <= 0), "accent", "less frequent"),
    ):
        ax.scatter(ratio[kept], place[kept], c=SHADES[shade], s=size, lw=0, rasterized=True)
        ax.scatter([], [], c=SHADES[shade], s=28, lw=0, label=label)
    name_rows(ax, list(names))
    first, second = map(plain, table.attrs.get("between", ("the first", "the second")))
    ax.set_xlabel(f"natural log of the density in {second} over {first}")
    show_key(ax, "lower right", (1, 1), columns=3)
    return ax
