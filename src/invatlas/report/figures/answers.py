"""Figures of answers: genes that differ, counterfactuals, the next experiment, donors, losses.

Each takes the table that the question returned, or an object that has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.report.figures.paper import SHADES, check_table, name_rows, open_axes, plain, show_key
from invatlas.report.plots import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLANNED = ("rank", "cells", "donors", "uncertainty", "alone", "information", "total")


def volcano(
    differential: pd.DataFrame,
    *,
    false_discovery_rate: float = 0.05,
    label: int = 10,
    of: str = "group 1 over group 2",
    ax: Axes | None = None,
) -> Axes:
    """Draw how much each gene differs against how sure that is.

    Parameters
    ----------
    differential
        As of ``ia.differential_expression``: genes in the index, ``log2_fold_change`` and
        ``false_discovery_rate``, the surest first.
    false_discovery_rate
        Genes at or under it are coloured, by the sign of their change.
    label
        How many of them are named.
    of
        What is held over what, for the label of the axis.
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
    needed = ["log2_fold_change", "false_discovery_rate"]
    known = check_table(differential, needed, "ia.differential_expression").dropna(subset=needed)
    change, rate = (known[name].to_numpy(dtype=float) for name in needed)
    # a rate of 0 is drawn at the smallest other one, beyond the line of those that are clear
    least = min(rate[rate > 0].min(initial=1.0), false_discovery_rate / 10)
    sure = -np.log10(np.maximum(rate, least))
    capped = f" (0 drawn at {-np.log10(least):.1f})" if (rate < least).any() else ""
    ax = open_axes(ax, (5.2, 4.0))
    clear = rate <= false_discovery_rate
    for kept, shade, name in (
        (~clear, "second", "not clear"),
        (clear & (change > 0), "warn", "higher"),
        (clear & (change <= 0), "accent", "lower"),
    ):
        ax.scatter(change[kept], sure[kept], c=SHADES[shade], s=14, lw=0, rasterized=True,
                   label=f"{name}: {kept.sum():,}")  # fmt: skip
    rows = np.flatnonzero(clear)
    rows = rows[np.lexsort((-np.abs(change[rows]), -sure[rows]))]
    for row in _choose_labels(change, sure, rows, label):
        side = 4 if change[row] > 0 else -4
        ax.annotate(plain(known.index[row]), (change[row], sure[row]), (side, 3), fontsize=8,
                    textcoords="offset points", ha="left" if side > 0 else "right",
                    color=SHADES["ink"])  # fmt: skip
    ax.axhline(-np.log10(false_discovery_rate), color=SHADES["second"], lw=0.8, ls=(0, (3, 3)))
    ax.set(xlabel=f"log2 fold change, {plain(of)}", ylabel=f"-log10 false discovery rate{capped}")
    ax.margins(x=0.22, y=0.09)
    show_key(ax, "upper center", (0.5, -0.14), columns=3)
    return ax


def counterfactual(
    table: AnnData | pd.DataFrame,
    measured: pd.Series | None = None,
    *,
    most: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean expression of genes after a change, with its 90 % interval.

    Parameters
    ----------
    table
        As the ``var`` of what ``ia.counterfactual`` returns, or that itself:
        ``counterfactual_mean``, ``_low``, ``_high``, counts per 10,000, genes in the index.
    measured
        Mean counts per 10,000 of each gene before the change, drawn as hollow marks; by default
        the table's ``measured_mean``. Genes that change most come first; where nothing was
        measured, the most expressed.
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
        If a column is absent.
    """
    names = [f"counterfactual_mean{end}" for end in ("", "_low", "_high")]
    table = table.var if isinstance(table, AnnData) else table
    found = check_table(table, names, "ia.counterfactual")
    mean, low, high = (np.log10(found[name].to_numpy(dtype=float) + 0.1) for name in names)
    before = None
    if measured is None and "measured_mean" in found:
        measured = found["measured_mean"]
    order = np.argsort(-mean, kind="stable")[:most]
    if measured is not None:
        before = np.log10(measured.reindex(found.index).to_numpy(dtype=float) + 0.1)
        order = np.argsort(-np.abs(np.nan_to_num(mean - before)), kind="stable")[:most]
    ax = open_axes(ax, (5.2, 0.9 + 0.22 * len(order)))
    rows = np.arange(len(order))
    ax.hlines(rows, low[order], high[order], color=SHADES["accent"], lw=1.6)
    ax.scatter(mean[order], rows, c=SHADES["accent"], s=26, lw=0, label="counterfactual", zorder=3)
    if before is not None:
        ax.scatter(before[order], rows, facecolors="none", edgecolors=SHADES["muted"], s=26,
                   label="measured", zorder=2)  # fmt: skip
        show_key(ax, "lower right", (1, 1), columns=2)
    name_rows(ax, list(found.index[order]))
    ax.set_xlabel("log10 (counts per 10,000 + 0.1)")
    return ax


def design(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what each chosen combination tells, given those chosen before it.

    Parameters
    ----------
    table
        As of ``ia.design``: ``rank``, covariates, ``alone``, ``information``.
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
    check_table(table, ["alone", "information"], "ia.design")
    values = table[[name for name in table.columns if name not in PLANNED]].astype(str)
    rows = np.arange(len(table))
    ax = open_axes(ax, (5.2, 1.1 + 0.28 * len(table)))
    ax.barh(rows, table["information"], height=0.6, color=SHADES["accent"], lw=0,
            label="given those above")  # fmt: skip
    ax.scatter(table["alone"], rows, facecolors="none", edgecolors=SHADES["ink"], s=26,
               label="if measured alone")  # fmt: skip
    name_rows(ax, [" | ".join(row) for row in values.itertuples(index=False)])
    ax.set_xlabel("information, nats")
    show_key(ax, "lower right", (1, 1), columns=2)
    return ax


def donors(result: Any, *, ax: Axes | None = None) -> Axes:
    """Draw samples by how far apart they lie, coloured by condition, strata by shape.

    Parameters
    ----------
    result
        What ``ia.donors`` returned, or its ``strata``: ``sample``, ``condition``, ``stratum``,
        ``axis_1``, ``axis_2``. Outlying samples are ringed where the result has a ``table``.
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
    needed = ["sample", "condition", "stratum", "axis_1", "axis_2"]
    strata = check_table(getattr(result, "strata", result), needed, "ia.donors")
    scores = getattr(result, "table", None)
    outlying: set = set() if scores is None else set(scores.loc[scores["outlying"], "sample"])
    ax = open_axes(ax, (5.2, 4.0))
    conditions = list(dict.fromkeys(strata["condition"]))
    shades = dict(zip(conditions, palette(len(conditions)), strict=True))
    for (condition, stratum), rows in strata.groupby(["condition", "stratum"], sort=False):
        several = strata.loc[strata["condition"] == condition, "stratum"].nunique() > 1
        name = f"{plain(condition)}, stratum {stratum}" if several else plain(condition)
        ax.scatter(rows["axis_1"], rows["axis_2"], c=shades[condition], s=44, lw=0, label=name,
                   marker="osD^v"[(int(stratum) - 1) % 5])  # fmt: skip
    stands = strata["sample"].isin(outlying).to_numpy()
    x, y = (strata[name].to_numpy(dtype=float) for name in ("axis_1", "axis_2"))
    ax.scatter(x[stands], y[stands], s=150, facecolors="none", edgecolors=SHADES["warn"])
    for row in _choose_labels(x, y, np.argsort(~stands, kind="stable"), len(strata)):
        ax.annotate(plain(strata["sample"].iloc[row]), (x[row], y[row]), (5, 4), fontsize=8,
                    textcoords="offset points", color=SHADES["muted"])  # fmt: skip
    ax.set(xlabel="first axis of the distances", ylabel="second axis")
    ax.margins(0.12)
    show_key(ax, "upper center", (0.5, -0.14), columns=3)
    return ax


def sensitivity(curve: Any, *, ax: Axes | None = None) -> Axes:
    """Draw how the abundance of a state depends on what is assumed of lost cells.

    Parameters
    ----------
    curve
        What ``ia.selection`` returned, or its ``curve``: ``survival`` or ``strength``,
        ``log_ratio`` and ``standard_error``.
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
    table = getattr(curve, "curve", curve)
    assumed = "survival" if "survival" in table else "strength"
    check_table(table, [assumed, "log_ratio", "standard_error"], "ia.selection")
    ax = open_axes(ax, (5.2, 3.2))
    x, ratio, error = (table[n] for n in (assumed, "log_ratio", "standard_error"))
    ax.fill_between(x, ratio - error, ratio + error, color=SHADES["none"], lw=0)
    ax.plot(x, ratio, color=SHADES["accent"])
    ax.axhline(0, color=SHADES["second"], lw=0.8, ls=(0, (3, 3)))
    if assumed == "survival":
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(xlabel=f"assumed {assumed}", ylabel="log ratio of shares (band: ± 1 s.e.)")
    return ax


def _choose_labels(x: np.ndarray, y: np.ndarray, rows: np.ndarray, most: int) -> list[int]:
    """Choose which points to name, the first rows first, so that names do not touch."""
    chosen: list[int] = []
    wide, tall = 0.3 * np.ptp(x), 0.06 * np.ptp(y)
    for row in rows:
        if len(chosen) == most:
            break
        if all(abs(x[row] - x[k]) > wide or abs(y[row] - y[k]) > tall for k in chosen):
            chosen.append(int(row))
    return chosen
