"""What the latents tell: the figures of a leakage audit, in numbers and in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from invatlas.report.leaks import dots_and_bands, draw_audit, paired_bars
from invatlas.report.page import render_report, write_report

Maker = Callable[..., Any]
HOSTILE = "</script><script>window.broken = true; alert(1)</script>"


def marks(svg: str) -> list[str]:
    """Class of each mark, in the order of the rows."""
    return re.findall(r'class="((?:held_out|train) (?:full|hollow|unjudged))"', svg)


def test_the_section_is_there_only_if_it_was_asked_for(report: Maker, audit: Maker) -> None:
    assert "What the latents tell" not in render_report(**report())
    html = render_report(**report(), audit=audit())
    assert "What the latents tell" in html and 'data-file="leakage"' in html
    assert "given cell_type and condition" in html
    assert html.count("what both tell cannot be told apart") == 1 + 2 * 9, "once, and in the table"
    assert "nan" not in re.sub(r"data:[^\"]+", "", html[html.index("What the latents") :])[:9000]


def test_the_title_says_whose_cells_were_asked(report: Maker, audit: Maker) -> None:
    fitted = render_report(**report(), audit=audit())
    assert "What the latents tell of cells they were fitted to" in fitted
    assert "new donors may be told more" in fitted
    unseen = render_report(**report(), audit=audit(), unseen=True)
    assert "What the latents tell of donors held out of the fit" in unseen
    assert "new donors may be told more" not in unseen


def test_marks_are_filled_above_the_band(audit: Maker) -> None:
    rows = audit()
    cell_type = rows[(rows["covariate"] == "cell_type") & (rows["latents"] != "both")]
    assert marks(dots_and_bands(cell_type, "")) == ["held_out full"] * 3 + ["train hollow"] * 3
    below_guessing = cell_type.assign(score=0.24, null_95=0.2)
    assert set(marks(dots_and_bands(below_guessing, ""))) == {"held_out hollow", "train hollow"}
    bandless = cell_type.assign(null_mean=np.nan, null_05=np.nan, null_95=np.nan)
    assert 'class="null"' not in dots_and_bands(bandless, "")


def test_what_cannot_be_judged_is_drawn_neither_safe_nor_leaking(audit: Maker) -> None:
    """With four donors the band reaches the score of a plain leak, which is no all-clear."""
    rows = audit()[lambda frame: frame["latents"] != "both"].query("covariate == 'cell_type'")
    svg = dots_and_bands(rows.assign(null_95=rows["score"], judged=False), "")
    assert set(marks(svg)) == {"held_out unjudged", "train unjudged"}
    assert "too few exchanges to judge it" in svg


def test_bars_have_the_length_of_the_importance(audit: Maker) -> None:
    rows = audit()[lambda frame: frame["latents"] == "both"].head(2)
    rows = rows.assign(importance_invariant=[0.25, 0.5])
    svg = ElementTree.fromstring(paired_bars(rows, ""))
    long = [float(bar.get("width", 0)) for bar in svg.iter("rect") if bar.get("class") == "called"]
    assert abs(long[1] - 2 * long[0]) < 0.11
    assert "z_S 0.00" in [text.text for text in svg.iter("text")], "a tiny loss has no sign"


def test_a_single_set_has_no_importance(audit: Maker) -> None:
    rows = audit()
    figures = draw_audit(rows[rows["latents"] == "invariant"])
    assert [figure["importance"] for figure in figures] == [None] * 4


def test_hostile_names_are_text(report: Maker, audit: Maker) -> None:
    rows: pd.DataFrame = audit().replace({"cell_type": HOSTILE, "linear": HOSTILE})
    html = render_report(**report(), audit=rows.assign(given=HOSTILE, note=HOSTILE))
    assert "<script>window" not in html


def test_browser_draws_the_audit_and_loads_nothing(
    browser: Any, report: Maker, audit: Maker, tmp_path: Path
) -> None:
    path = write_report(tmp_path / "report.html", **report(), audit=audit())
    browser.open_page(path)
    assert browser.list_undrawn() == []
    figures = browser.find_elements("css selector", '[data-figure^="leakage-"]')
    assert [figure.get_attribute("data-figure") for figure in figures] == [
        f"leakage-{name}" for name in ("cell_type", "condition", "donor", "batch")
    ]
    assert browser.get_log("browser") == []
    assert browser.list_requests(path) == [path.as_uri()]
