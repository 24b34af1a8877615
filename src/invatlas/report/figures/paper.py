"""Paper: the axes that figures are drawn on, their colours, and what a table must have.

The colours are those of the reports' style sheet in light; a page writes its variables in their
place, so that one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from invatlas.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHADES = {
    "ink": "#1a1f24",
    "muted": "#5c6670",
    "line": "#e2e6ea",
    "accent": "#0b6a9c",
    "second": "#8a949e",
    "none": "#cdd2d7",
    "warn": "#b45309",
}
LETTERS = 28  # longer names are cut


def open_axes(ax: Axes | None, size: tuple[float, float], title: str = "") -> Axes:
    """Give the axes to draw on, new ones where there are none, dressed as those of a report.

    Parameters
    ----------
    ax
        Where to draw; a new figure of pyplot if None.
    size
        Width and height of a new figure, in inches.
    title
        Written above, at the left.

    Returns
    -------
    Axes
    """
    if ax is None:
        from matplotlib import pyplot  # slow to import, rarely needed

        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(SHADES["second"])
    ax.tick_params(colors=SHADES["muted"], labelsize=9)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(SHADES["muted"])
        axis.label.set_fontsize(9.5)
    ax.set_title(plain(title), loc="left", fontsize=10.5, color=SHADES["ink"])
    return ax


def name_rows(ax: Axes, names: Sequence[object]) -> None:
    """Write a name at each row, the first on top, on axes of which rows count down from 0."""
    ax.set_yticks(range(len(names)), [plain(name) for name in names], color=SHADES["ink"])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def show_key(
    ax: Axes, loc: str = "best", anchor: tuple[float, float] | None = None, columns: int = 1
) -> None:
    """Draw the key without a frame; `anchor` is in axes."""
    ax.legend(loc=loc, bbox_to_anchor=anchor, ncols=columns, frameon=False, fontsize=8.5,
              labelcolor=SHADES["ink"], handletextpad=0.4, columnspacing=1)  # type: ignore[call-overload]  # fmt: skip


def plain(name: object) -> str:
    """Say a name as it is: no formula, and not too long."""
    text = str(name)
    text = text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
    return text.replace("$", r"\$")


def check_table(table: pd.DataFrame, columns: Sequence[str], source: str) -> pd.DataFrame:
    """Refuse a table that lacks a column or has no row.

    Raises
    ------
    DataError
        Names what is absent and who makes such tables.
    """
    if absent := [name for name in columns if name not in table]:
        raise DataError(
            f"the table lacks {', '.join(absent)}; it has {', '.join(map(str, table.columns))}. "
            f"It takes one as of {source}."
        )
    if not len(table):
        raise DataError(f"the table has no row; it takes one or more, as of {source}.")
    return table
