"""Figures of a fit: its latents, its history, what the latents tell and what was called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.errors import CovariateError, DataError
from invatlas.report.figures.paper import SHADES, check_table, name_rows, open_axes, plain, show_key
from invatlas.report.plots import LAYOUTS, choose_cells, code_categories, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMES = 12
FEW_VALUES = 12  # numbers with more values than that are drawn on a ramp
SETS = {"invariant": ("z_I", "accent", "o"), "spurious": ("z_S", "second", "s")}


def latents(
    cells: AnnData | pd.DataFrame,
    color: str,
    *,
    which: str = "invariant",
    ax: Axes | None = None,
) -> Axes:
    """Draw the map of a latent, coloured by a column.

    Parameters
    ----------
    cells
        obs with the column and obsm ``X_invariant_umap`` or ``X_spurious_umap`` (cell, 2); or a
        table with ``x``, ``y`` and the column.
    color
        Column to colour by: categories, or numbers on a ramp.
    which
        ``invariant`` or ``spurious``.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    CovariateError
        If there is no such column.
    DataError
        If there is no such map.
    """
    obs = cells.obs if isinstance(cells, AnnData) else cells
    if color not in obs:
        raise CovariateError(
            f"no column {color!r} to colour by; there are {', '.join(map(str, obs.columns))}"
        )
    places = _find_places(cells, which)
    rows = choose_cells(len(obs))
    rows = rows[np.isfinite(places[rows]).all(axis=1)]
    ax = open_axes(ax, (5.2, 4.2), color)
    size = 30_000 / (len(rows) + 4e3)
    values = obs[color]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > FEW_VALUES:
        numbers = values.to_numpy(dtype=float, na_value=np.nan)[rows]
        drawn = ax.scatter(
            places[rows, 0], places[rows, 1], c=numbers, s=size, lw=0, rasterized=True
        )
        bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.6)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=SHADES["muted"], labelsize=9)
    else:
        codes, names, _ = code_categories(values, rows)
        colours = np.array([*palette(len(names)), SHADES["none"]])[codes]
        for kept in (codes < 0, codes >= 0):
            x, y = places[rows[kept]].T
            ax.scatter(x, y, c=colours[kept], s=size, lw=0, rasterized=True)
        for name, colour in zip(names[:MOST_NAMES], palette(len(names)), strict=False):
            ax.scatter([], [], c=colour, s=28, lw=0, label=plain(name))
        if len(names) > MOST_NAMES:
            ax.scatter([], [], c="none", label=f"and {len(names) - MOST_NAMES:,} more")
        show_key(ax, "upper left", (1, 1))
    ax.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim", xlabel=f"{which} latent")
    ax.spines[:].set_visible(False)
    return ax


def history(atlas: Any, term: str = "objective", *, ax: Axes | None = None) -> Axes:
    """Draw a term of the objective over epochs, of training and of held-out cells.

    Parameters
    ----------
    atlas
        A fitted atlas, or its history: ``epoch``, ``train_<term>``, ``held_out_<term>``.
    term
        Which term.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If the history has no such term.
    """
    table = getattr(atlas, "history", atlas)
    check_table(table, ["epoch", f"train_{term}"], "atlas.history")
    ax = open_axes(ax, (5.2, 3.2), term.replace("_", " ").capitalize())
    for kind, shade in (("train", "second"), ("held_out", "accent")):
        if f"{kind}_{term}" in table:
            label = {"train": "training cells", "held_out": "held-out cells"}[kind]
            ax.plot(table["epoch"], table[f"{kind}_{term}"], color=SHADES[shade], label=label)
    ax.set_xlabel("epoch")
    show_key(ax)
    return ax


def leakage(audit: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what each set of latents tells of each covariate, a mark a probe.

    The band holds nine in ten scores that are reached once values are exchanged.

    Parameters
    ----------
    audit
        As of :func:`invatlas.evaluate.leakage`.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If a column is absent or nothing was answered.
    """
    columns = ["covariate", "latents", "score", "null_05", "null_95", "chance"]
    check_table(audit, columns, "ia.evaluate.leakage")
    alone = audit[audit["latents"].isin(SETS) & audit["score"].notna()]
    check_table(alone, columns, "ia.evaluate.leakage with answers")
    groups = list(alone.groupby(["covariate", "latents"], sort=False))
    ax = open_axes(ax, (5.2, 0.9 + 0.3 * len(groups)))
    for row, ((_, which), scores) in enumerate(groups):
        _, shade, marker = SETS[which]
        low, high = scores["null_05"].min(), scores["null_95"].max()
        ax.barh(row, high - low, left=low, height=0.55, color=SHADES["none"], lw=0, zorder=1)
        ax.plot(scores["chance"].iloc[0], row, marker="|", ms=13, color=SHADES["muted"])
        ax.scatter(scores["score"], [row] * len(scores), c=SHADES[shade], marker=marker, s=30,
                   lw=0, zorder=3)  # fmt: skip
    name_rows(ax, [f"{covariate}, {SETS[which][0]}" for (covariate, which), _ in groups])
    ax.set(xlim=(-0.02, 1.02), xlabel="balanced accuracy (dash: guessing; band: exchanged values)")
    return ax


def confusion(truth: pd.Series, called: pd.Series, *, ax: Axes | None = None) -> Axes:
    """Draw which labels were called, as shares of the cells of each true label.

    Parameters
    ----------
    truth, called
        Labels of each cell (cell,); missing calls count as no call, missing truths do not count.
    ax
        Where to draw; new axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If lengths differ or no truth is known.
    """
    if len(truth) != len(called):
        raise DataError(f"{len(truth)} true labels and {len(called)} calls; allowed is one each")
    made = pd.Series(np.asarray(called.astype(object).where(called.notna(), "no call")), dtype=str)
    counts = pd.crosstab(pd.Series(np.asarray(truth)), made)
    check_table(counts, [], "pd.crosstab of true labels and calls")
    names = [*counts.index, *sorted(set(counts.columns) - set(counts.index))]
    shares = counts.div(counts.sum(axis=1), axis=0).reindex(columns=names, fill_value=0)
    size = 1.8 + 0.34 * len(names)
    ax = open_axes(ax, (size + 1, size))
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("ramp", [SHADES["line"], SHADES["accent"]])
    ax.imshow(shares, cmap=ramp, vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(shares.to_numpy() >= 0.005):
        share = shares.iat[row, column]
        light = "white" if share > 0.5 else "#1a1f23"  # on the ramp, which no theme changes
        ax.text(
            column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=light
        )
    name_rows(ax, list(shares.index))
    ax.set_xticks(range(len(names)), [plain(name) for name in names], rotation=45, ha="right")
    ax.set(xlabel="called", ylabel="")
    ax.spines[:].set_visible(False)
    return ax


def _find_places(cells: AnnData | pd.DataFrame, which: str) -> np.ndarray:
    if which not in LAYOUTS:
        raise DataError(f"which is {which!r}; allowed are {', '.join(LAYOUTS)}")
    if isinstance(cells, AnnData):
        if LAYOUTS[which] not in cells.obsm:
            raise DataError(
                f"no obsm {LAYOUTS[which]!r}; there are {', '.join(cells.obsm) or 'none'}"
            )
        return np.asarray(cells.obsm[LAYOUTS[which]], dtype=float)
    check_table(cells, ["x", "y"], "places x and y of each cell")
    places: np.ndarray = cells[["x", "y"]].to_numpy(dtype=float)
    return places
