"""What the latents tell: the figures of a leakage audit; scores in, drawings out.

Colours come from the style sheet of the page (classes, no colours here). Shapes tell the sets of
latents apart where colours do not. Text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from invatlas.report.axes import Plane, draw_svg
from invatlas.report.table import Table, tabulate_frame

SETS = {"invariant": ("z_I", "held_out", "called"), "spurious": ("z_S", "train", "weak")}
LEFT, WIDTH, LINE = 126, 340, 20
SHOWN = (
    *("covariate", "latents", "given", "probe", "score", "null_mean", "null_95", "p_value"),
    *("judged", "share", "importance_invariant", "importance_spurious", "cells", "strata", "note"),
)


def draw_audit(audit: pd.DataFrame) -> list[dict[str, Any]]:
    """Draw what each set of latents tells of each covariate, and which one classifiers use.

    Parameters
    ----------
    audit
        As of `invatlas.evaluate.leakage`.

    Returns
    -------
    list of dict
        `covariate`, `role`, `given` (what was held fixed for the invariant latents), `scores` and
        `importance` (SVG, the latter None without two sets), `notes` (sentences).
    """
    figures = []
    for covariate, rows in audit.groupby("covariate", sort=False):
        alone = rows[rows["latents"].isin(SETS)]
        both = rows[(rows["latents"] == "both") & rows["score"].notna()]
        figures.append(
            {
                "covariate": str(covariate),
                "role": rows["role"].iloc[0],
                "given": _list_given(alone),
                "scores": Markup(dots_and_bands(alone, f"Scores of {covariate}")),
                "importance": Markup(paired_bars(both, f"Importance for {covariate}"))
                if len(both)
                else None,
                "notes": _list_notes(alone),
            }
        )
    return figures


def tabulate_audit(audit: pd.DataFrame) -> Table:
    """Tabulate every number of an audit that a reader may want.

    Parameters
    ----------
    audit
        As in `draw_audit`.

    Returns
    -------
    Table
    """
    return tabulate_frame(audit[list(SHOWN)], "leakage")


def dots_and_bands(rows: pd.DataFrame, label: str) -> str:
    """Draw a dot for each score on the band of scores that exchanged values reach.

    A dot is filled where the score lies above the band and above guessing, and has a dotted edge
    where donors are too few for any score to be judged.

    Parameters
    ----------
    rows
        `latents`, `probe`, `score`, `null_05`, `null_95`, `judged`, `chance`; unanswered ones
        have NaN.
    label
        Read aloud by screen readers.

    Returns
    -------
    str
        SVG.
    """
    bottom = LINE * len(rows) + 6.0
    plane = Plane(0.0, 1.0, 0.0, 1.0, LEFT, WIDTH - 40.0, 0.0, bottom)
    parts = plane.draw_axes([], [0, 0.25, 0.5, 0.75, 1])
    parts += [
        f'<path class="grid" d="M{plane.across(tick):.1f} 0V{bottom:g}"/>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    ]
    for line, row in enumerate(rows.to_dict("records")):
        middle = LINE * line + LINE / 2 + 2
        sign, kind, _ = SETS[row["latents"]]
        name = f'<text x="0" y="{middle + 4:g}">{sign} {escape(row["probe"])}</text>'
        if not np.isfinite(row["score"]):
            place = f'x="{LEFT + 8}" y="{middle + 4:g}"'
            parts.append(f'{name}<text class="faint" {place}>no answer</text>')
            continue
        parts += ["<g>", f"<title>{escape(_tell(row))}</title>", name]
        fill = "hollow" if row["judged"] else "unjudged"
        if np.isfinite(row["null_95"]):
            start, end = plane.across(row["null_05"]), plane.across(row["null_95"])
            if fill == "hollow" and row["score"] > max(row["null_95"], row["chance"]):
                fill = "full"
            parts.append(
                f'<rect class="null" x="{start:.1f}" y="{middle - 7:g}"'
                f' width="{max(end - start, 2):.1f}" height="14" rx="2"/>'
            )
        chance, x = plane.across(row["chance"]), plane.across(row["score"])
        parts.append(f'<path class="best" d="M{chance:.1f} {middle - 8:g}v16"/>')
        parts.append(_mark(sign, f"{kind} {fill}", x, middle))
        parts.append(f'<text class="count" x="{WIDTH - 30}" y="{middle + 4:g}">')
        parts += [f"{row['score']:.2f}", "</text></g>"]
    return draw_svg(WIDTH, bottom + 24, label, parts, role="group")


def paired_bars(rows: pd.DataFrame, label: str) -> str:
    """Draw how much each probe of both sets loses where one of them is shuffled.

    Parameters
    ----------
    rows
        `probe`, `importance_invariant`, `importance_spurious`.
    label
        Read aloud by screen readers.

    Returns
    -------
    str
        SVG.
    """
    drops = rows[[f"importance_{name}" for name in SETS]].to_numpy(dtype=float)
    parts = []
    for line, (probe, pair) in enumerate(zip(rows["probe"], drops, strict=True)):
        top = 32 * line
        parts.append(f'<text x="0" y="{top + 18}">{escape(probe)}</text>')
        for (name, (sign, _, bar)), drop, y in zip(
            SETS.items(), pair, (top + 3, top + 15), strict=True
        ):
            length = min(1.0, max(0.0, drop)) * (WIDTH - LEFT - 62)
            parts.append(
                f"<g><title>{escape(probe)}: without the {name} latents the balanced accuracy "
                f'falls by {drop:.3f}</title><rect class="{bar}" x="{LEFT}" y="{y}"'
                f' width="{max(length, 1):.1f}" height="10"/>'
                f'<text class="count" x="{LEFT + length + 5:.1f}" y="{y + 9}">'
                f"{sign} {drop:.2f}</text></g>".replace("-0.00", "0.00")
            )
    return draw_svg(WIDTH, 32 * len(rows) + 2, label, parts, role="group")


def _mark(sign: str, kind: str, x: float, y: float) -> str:
    if sign == "z_I":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:g}" r="5"/>'
    return f'<rect class="{kind}" x="{x - 4.5:.1f}" y="{y - 4.5:g}" width="9" height="9"/>'


def _tell(row: dict[str, Any]) -> str:
    said = f"{row['probe']} probe of the {row['latents']} latents: {row['score']:.3f}"
    if not row["judged"]:
        return f"{said}; guessing {row['chance']:.3f}; too few exchanges to judge it"
    if not np.isfinite(row["null_95"]):
        return f"{said}; guessing {row['chance']:.3f}"
    return (
        f"{said}; exchanged values {row['null_05']:.3f} to {row['null_95']:.3f}, "
        f"guessing {row['chance']:.3f}, p = {row['p_value']:.3g}"
    )


def _list_notes(rows: pd.DataFrame) -> list[str]:
    """Say each note once, with the sets of latents it is about unless it is about all."""
    noted = rows[rows["note"].fillna("") != ""]
    about = noted.groupby("note", sort=False)["latents"].unique()
    everything = rows["latents"].nunique()
    return [
        note if len(names) == everything else f"{SETS[names[0]][0]}: {note}"
        for note, names in about.items()
    ]


def _list_given(rows: pd.DataFrame) -> str:
    """Say what was held fixed, for each set where they differ."""
    given: Sequence[tuple[str, str]] = [
        (str(name), str(group["given"].iloc[0])) for name, group in rows.groupby("latents")
    ]
    if len({text for _, text in given}) == 1:
        return given[0][1]
    return "; ".join(f"{text} for {SETS[name][0]}" for name, text in given if text)
