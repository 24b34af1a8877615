"""Axes of the drawings: numbers laid onto a rectangle of an SVG, with ticks a person would choose.

Colours come from the style sheet of the page (classes, no colours here). Text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True)
class Plane:
    """Data coordinates (start to end, low to high) laid onto a rectangle of the drawing."""

    start: float
    end: float
    low: float
    high: float
    left: float
    right: float
    top: float
    bottom: float

    def across(self, value: float) -> float:
        """Place along the horizontal axis."""
        return self.left + (value - self.start) / (self.end - self.start) * (self.right - self.left)

    def down(self, value: float) -> float:
        """Place along the vertical axis, which points down."""
        return self.top + (self.high - value) / (self.high - self.low) * (self.bottom - self.top)

    def draw_axes(self, ticks: Sequence[float], marks: Sequence[float]) -> list[str]:
        """Draw a line and a number at each vertical tick, a number at each horizontal mark."""
        parts = []
        for tick in ticks:
            y, place = self.down(tick), f'x="{self.left - 6:.1f}" y="{self.down(tick) + 4:.1f}"'
            parts.append(f'<path class="grid" d="M{self.left:.1f} {y:.1f}H{self.right:g}"/>')
            parts.append(f'<text class="tick end" {place}>{tick:,.6g}</text>')
        for mark in marks:
            place = f'x="{self.across(mark):.1f}" y="{self.bottom + 18:g}"'
            parts.append(f'<text class="tick middle" {place}>{mark:,g}</text>')
        return parts


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Choose round numbers between two others, at least `count` where that can be.

    Parameters
    ----------
    low, high
        Ends of the axis, the first below the second.
    count
        How many at least.

    Returns
    -------
    list of float
    """
    magnitude = 10.0 ** np.floor(np.log10((high - low) / count))
    for multiple in (10, 5, 2.5, 2, 1, 0.5):  # the coarsest step with enough ticks
        step = multiple * magnitude
        steps = range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)
        if len(steps) >= count:
            break
    return [float(f"{k * step:.10g}") for k in steps]


def shorten(name: str, most: int) -> str:
    """Cut a name to a number of letters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def draw_svg(
    width: float, height: float, label: str, parts: Sequence[str], role: str = "img"
) -> str:
    """Wrap the parts of a drawing in an SVG that scales with its place on the page.

    Parameters
    ----------
    width, height
        Size in the drawing's own units.
    label
        Read aloud by screen readers.
    parts
        SVG elements.
    role
        `img`, or `group` where the parts are read one by one.

    Returns
    -------
    str
        SVG.
    """
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="{role}" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
