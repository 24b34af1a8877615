"""Figures: numbers in, a drawing out; nothing is estimated here.

`horizontal_bars` and `line_chart` return inline SVG, coloured by the style sheet of the page
(classes, no colours of their own). Text is escaped here.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pandas as pd

from invatlas.data.columns import as_text
from invatlas.report.axes import Plane, draw_svg, round_ticks, shorten

MOST_CELLS = 20_000
COLOURS = 120
SPIKES = 9  # epochs whose median a spike does not move
LAYOUTS = {"invariant": "X_invariant_umap", "spurious": "X_spurious_umap"}

# Okabe & Ito (2008) without black and with a darker yellow, then hues that stay apart from them.
_DISTINCT = """
    #0072b2 #e69f00 #009e73 #cc79a7 #d55e00 #56b4e9 #8a63b8 #b8a200 #882255 #44b5a4
    #a6662c #7f9f2f #5a5fc7 #f28e8c #117733 #8fa9dd #d9307f #c9a27a #5b8a9a #b65fc2
""".split()


def palette(count: int) -> list[str]:
    """Give colours for categories, the most distinct ones first.

    Parameters
    ----------
    count
        How many colours. Beyond 120 they repeat.

    Returns
    -------
    list of str
        `#rrggbb`, readable on white and on near-black.
    """
    colours = list(_DISTINCT)
    for index in range(len(colours), COLOURS):
        hue = (0.11 + index * 0.618034) % 1.0  # golden-ratio steps never come back close
        lightness = (0.42, 0.62, 0.52)[index % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, (0.6, 0.5)[index % 2])
        colours.append(f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")
    return [colours[index % COLOURS] for index in range(count)]


def choose_cells(cells: int, most: int = MOST_CELLS) -> npt.NDArray[np.int64]:
    """Choose the cells to draw, in random order, so that no category lies on top.

    Parameters
    ----------
    cells
        Number of cells there are.
    most
        Number of cells to draw at most.

    Returns
    -------
    ndarray (drawn,)
        Row numbers; the same for the same arguments.
    """
    return np.random.default_rng(0).choice(cells, size=min(cells, most), replace=False)


def code_categories(
    values: pd.Series, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[str], list[int]]:
    """Code the categories of a column, the largest first.

    Parameters
    ----------
    values
        One obs column (cell,); missing values are NaN.
    rows
        The cells to code (drawn,).

    Returns
    -------
    codes : ndarray (drawn,)
        Position in `names`, -1 where the value is missing.
    names, counts : list
        Category names and how many of all cells have them.
    """
    counts = values.value_counts(dropna=True)
    pairs = [(name, int(count)) for name, count in counts.items() if count > 0]
    pairs.sort(key=lambda pair: (-pair[1], str(pair[0])))
    index = pd.Index([name for name, _ in pairs], dtype=object)
    codes = index.get_indexer(pd.Index(values.iloc[rows], dtype=object))
    names = [as_text(name) for name, _ in pairs]
    return codes.astype(np.int64), names, [count for _, count in pairs]


def horizontal_bars(counts: Mapping[str, int], missing: int = 0, shown: int = 20) -> str:
    """Draw the number of cells in each category.

    Parameters
    ----------
    counts
        Category to number of cells.
    missing
        Number of cells without a value, drawn as a last, hollow bar.
    shown
        Categories drawn, the largest first; the rest is summed up in words, which take the room of
        one, so that a single one left is drawn too.

    Returns
    -------
    str
        SVG, 340 units wide.
    """
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown += len(ranked) == shown + 1
    kept, rest = ranked[:shown], ranked[shown:]
    total = sum(counts.values()) + missing
    rows = [(str(name), count, "bar") for name, count in kept]
    if missing:
        rows.append(("no value", missing, "bar hollow"))
    longest = max((count for _, count, _ in rows), default=0) or 1
    left = min(160.0, max(60.0, 7.2 * max((len(name) for name, _, _ in rows), default=0) + 10))
    widest = max((len(f"{count:,}") for _, count, _ in rows), default=1)
    room = 340 - left - 7.0 * widest - 8
    parts = []
    for line, (name, count, kind) in enumerate(rows):
        middle, length = 20 * line + 10, max(1.0, room * count / longest)
        share = f"{name}: {count:,} cells ({100 * count / max(total, 1):.1f} %)"
        parts.append(
            f"<g><title>{escape(share)}</title>"
            f'<text class="{"name faint" if "hollow" in kind else "name"}" x="0" y="{middle + 4}">'
            f"{escape(shorten(name, int((left - 8) / 7)))}</text>"
            f'<rect class="{kind}" x="{left:g}" y="{middle - 6}" width="{length:.1f}" height="12"'
            f' rx="1.5"/><text class="count" x="{left + length + 5:.1f}" y="{middle + 4}">'
            f"{count:,}</text></g>"
        )
    height = 20 * len(rows) + (22 if rest else 2)
    if rest:
        more = f"and {len(rest):,} more, {sum(count for _, count in rest):,} cells"
        parts.append(f'<text class="faint" x="0" y="{height - 6}">{more}</text>')
    label = f"{len(counts):,} categories, {total:,} cells, {missing:,} without a value"
    return draw_svg(340, height, label, parts, role="group")


def line_chart(
    epochs: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    best_epoch: float | None = None,
    size: tuple[int, int] = (340, 170),
    label: str = "",
) -> str:
    """Draw curves over epochs.

    Where the first epochs or some spikes would flatten all else, the axis covers what is left,
    curves end at its top, and a note over them says so.

    Parameters
    ----------
    epochs
        Epoch numbers (epoch,).
    lines
        Class of the line (`train`, `held_out`) to its values (epoch,); NaN leaves a gap.
    best_epoch
        Marked by a dashed line and a dot on the last curve.
    size
        Width and height.
    label
        Read aloud by screen readers.

    Returns
    -------
    str
        SVG.
    """
    width, height = size
    x = np.asarray(epochs, dtype=float)
    values = {name: np.asarray(line, dtype=float) for name, line in lines.items()}
    if not any(np.isfinite(line).any() for line in values.values()):
        return draw_svg(width, height, label, ['<text class="faint" x="8" y="24">no values</text>'])
    low, high, cut = _choose_range(list(values.values()))
    start, end = (x.min(), x.max()) if x.max() > x.min() else (x[0] - 0.5, x[0] + 0.5)
    ticks = round_ticks(low, high, 5 if height > 250 else 3)
    left = 6.6 * max(len(f"{tick:,.6g}") for tick in ticks) + 10
    top = 26.0 if cut else 12.0
    plane = Plane(start, end, low, high, left, width - 12.0, top, height - 24.0)
    whole = [mark for mark in round_ticks(start, end, max(3, width // 110)) if mark.is_integer()]
    parts = plane.draw_axes(ticks, whole)
    if best_epoch is not None and start <= best_epoch <= end:
        across = plane.across(best_epoch)
        parts.append(f'<path class="best" d="M{across:.1f} {plane.top:g}V{plane.bottom:g}"/>')
    for name, line in values.items():
        points = [(plane.across(a), plane.down(b)) for a, b in _end_at(high, x, line)]
        parts.extend(_trace(points, name))
    for value in list(values.values())[-1][x == best_epoch]:
        if low <= value <= high:
            place = f'cx="{plane.across(best_epoch or 0):.1f}" cy="{plane.down(value):.1f}"'
            parts.append(f'<circle class="dot" {place} r="4"/>')
    if cut:
        place = f'x="{plane.right:g}" y="{plane.top - 12:g}"'
        late = any((line[_start_of(line) :] > high).any() for line in values.values())
        what = "some epochs" if late else "first epochs"
        parts.append(f'<text class="tick end" {place}>{what} lie above the axis</text>')
    return draw_svg(width, height, label, parts)


def _choose_range(lines: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float, bool]:
    """Ends of the axis, and whether it leaves out the start or spikes far above running medians."""
    every = np.concatenate([line[np.isfinite(line)] for line in lines])
    late = np.concatenate([line[_start_of(line) :] for line in lines])
    calm = np.concatenate(
        [
            pd.Series(line[_start_of(line) :]).rolling(SPIKES, center=True, min_periods=1).median()
            for line in lines
        ]
    )
    calm, late = calm[np.isfinite(calm)], late[np.isfinite(late)]
    if len(calm) > 2 * SPIKES:
        late = late[late <= calm.max() + 0.5 * (calm.max() - calm.min())]
    low, high, cut = float(every.min()), float(every.max()), False
    if len(late) and 0 < float(late.max() - late.min()) < 0.4 * (high - low):
        bound = float(late.max() + 0.12 * (late.max() - late.min()))
        low, high, cut = min(low, float(late.min())), bound, bound < high
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + (0.0 if cut else room), cut


def _start_of(line: npt.NDArray[np.float64]) -> int:
    """Where the first epochs end."""
    return max(1, len(line) // 12)


def _end_at(
    high: float, x: npt.NDArray[np.float64], line: npt.NDArray[np.float64]
) -> list[tuple[float, float]]:
    """Points of a curve under a height; it ends where it crosses that, and leaves a gap above."""
    points: list[tuple[float, float]] = []
    for k, (a, b) in enumerate(zip(x.tolist(), line.tolist(), strict=True)):
        before = line[k - 1] if k else b
        if np.isfinite(b - before) and (b > high) != (before > high):
            share = (high - before) / (b - before)
            points.append((x[k - 1] + share * (a - x[k - 1]), high))
        points.append((a, b if b <= high else np.nan))
    return points


def _trace(points: Sequence[tuple[float, float]], name: str) -> list[str]:
    parts = []
    for whole, run in groupby(points, key=lambda point: bool(np.isfinite(point).all())):
        stretch = list(run) if whole else []
        if len(stretch) == 1:
            parts.append(
                f'<circle class="{name}" cx="{stretch[0][0]:.1f}" cy="{stretch[0][1]:.1f}" r="3"/>'
            )
        elif stretch:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in stretch)
            parts.append(f'<path class="{name}" d="M{path}"/>')
    return parts
