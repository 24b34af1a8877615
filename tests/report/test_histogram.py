"""The histogram of a report: one cell among many is seen, none draws nothing."""

from __future__ import annotations

from xml.etree import ElementTree

from invatlas.report.histogram import histogram


def test_histogram_shows_one_cell_among_many() -> None:
    svg = histogram(
        {"called": [9000, 0], "new": [1, 0]},
        [0, 0.5, 1],
        names={"called": "</script><script>alert(1)</script>", "new": "new"},
        mark=0.5,
        level=10,
    )
    root = ElementTree.fromstring(svg)
    heights = [float(bar.get("height", 0)) for bar in root.iter("rect")]
    assert len(heights) == 2 and min(heights) >= 1
    empty = histogram({"called": [0, 0]}, [0, 0.5, 1], names={})
    assert "rect" not in empty
    ElementTree.fromstring(empty)
