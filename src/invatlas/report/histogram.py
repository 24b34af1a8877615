"""Histograms: counts of cells in, a drawing out; the counting is done by whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from invatlas.report.axes import Plane, draw_svg, round_ticks


def histogram(
    counts: Mapping[str, Sequence[int]],
    edges: Sequence[float],
    *,
    names: Mapping[str, str],
    mark: float | None = None,
    level: float | None = None,
    size: tuple[int, int] = (340, 190),
    label: str = "",
) -> str:
    """Draw how many cells lie in each bin, kinds of cells stacked on each other.

    Parameters
    ----------
    counts
        Class of the bars to the number of cells in each bin (bin,), the lowest bars first.
    edges
        Edges of the bins (bin + 1,), rising.
    names
        What each class is called where a bar is pointed at.
    mark
        Value marked by a dashed upright line.
    level
        Number of cells marked by a dashed level line.
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
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    high = max([*totals, level or 0, 1]) * 1.06
    ticks = [tick for tick in round_ticks(0, high, 3) if tick.is_integer()]
    left = 6.6 * max(len(f"{tick:,.6g}") for tick in ticks) + 10
    plane = Plane(edges[0], edges[-1], 0, high, left, width - 12.0, 12.0, height - 24.0)
    parts = plane.draw_axes(ticks, round_ticks(edges[0], edges[-1], max(3, width // 110)))
    for index, total in enumerate(totals):
        if not total:
            continue
        start, end = plane.across(edges[index]), plane.across(edges[index + 1])
        kinds = [(kind, column[index]) for kind, column in counts.items() if column[index]]
        told = ", ".join(f"{count:,} {names[kind]}" for kind, count in kinds)
        parts.append(f"<g><title>{edges[index]:g} to {edges[index + 1]:g}: {escape(told)}</title>")
        bottom = plane.bottom
        for kind, count in kinds:
            tall = max(1.0, plane.bottom - plane.down(count))  # one cell among many still shows
            bottom -= tall
            parts.append(
                f'<rect class="{kind}" x="{start + 0.75:.1f}" y="{bottom:.1f}"'
                f' width="{end - start - 1.5:.1f}" height="{tall:.1f}"/>'
            )
        parts.append("</g>")
    if level is not None:
        y = plane.down(level)
        parts.append(f'<path class="best" d="M{plane.left:.1f} {y:.1f}H{plane.right:g}"/>')
    if mark is not None and edges[0] <= mark <= edges[-1]:
        x = plane.across(mark)
        parts.append(f'<path class="mark" d="M{x:.1f} {plane.top:g}V{plane.bottom:g}"/>')
        side, place = ("start", x + 5) if x < (plane.left + plane.right) / 2 else ("end", x - 5)
        parts.append(
            f'<text class="tick {side}" x="{place:.1f}" y="{plane.top + 8:g}">{mark:g}</text>'
        )
    return draw_svg(width, height, label, parts)
