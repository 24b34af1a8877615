"""The page of an answer: what it says, that it escapes, and that a real browser shows it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import invatlas as ia
from invatlas.errors import DataError

Maker = Callable[..., Any]
HOSTILE = '</script><script>window.broken = 1</script> & "$x_1$" <img src=x>'


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Draw without a screen, and close what was drawn."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    yield
    pyplot.close("all")


def make_genes(count: int = 40) -> pd.DataFrame:
    """Make a table of differential genes, the first with a hostile name, one without a value."""
    generator = np.random.default_rng(0)
    change = generator.normal(0, 2, count)
    table = pd.DataFrame(
        {"log2_fold_change": change, "false_discovery_rate": np.exp(-3 * np.abs(change))},
        index=pd.Index([HOSTILE, *(f"gene {k}" for k in range(1, count))], name="gene"),
    )
    table.iloc[5, 1] = np.nan
    return table


def make_page(folder: Path, latents: Maker, **changes: Any) -> Path:
    """Write a page with a figure, two tables and maps."""
    genes = make_genes()
    parts: dict[str, Any] = {
        "title": f"Genes {HOSTILE}",
        "lead": "30 of 40 genes differ.",
        "figures": {"Genes": ia.pl.volcano(genes)},
        "tables": {"Genes": genes, HOSTILE: genes.head(3)},
        "notes": {"Genes": "Read from the left."},
        "cells": latents(300),
    }
    return ia.write_page(folder / "answer.html", **parts | changes)


def test_a_page_says_what_it_was_given_and_loads_nothing(latents: Maker, tmp_path: Path) -> None:
    html = make_page(tmp_path, latents, warnings=[HOSTILE]).read_text()
    for words in ("30 of 40 genes differ.", "Read from the left.", "gene 39", "Maps of the cells"):
        assert words in html
    assert html.count("<script") == 2 and "<img" not in html and "<style type" not in html
    assert not re.findall(r"<(?:link|img|script|iframe|image)[^>]+href=\"(?!data:)", html)
    bare = make_page(tmp_path, latents, figures=None, tables={"T": make_genes()}, notes=None)
    assert "<svg" not in bare.read_text()
    assert "maps-data" not in make_page(tmp_path, latents, cells=None).read_text()


def test_figures_take_the_colours_of_the_page() -> None:
    from invatlas.report.answer import inline_figure
    from invatlas.report.figures.paper import SHADES

    svg = inline_figure(ia.pl.volcano(make_genes()), 'a "figure"')
    ElementTree.fromstring(svg)
    assert "var(--ink)" in svg and not [c for c in SHADES.values() if f": {c}" in svg]
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(f"#{name}" in svg for name in ids), "ids that nothing uses would meet on a page"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to show; allowed are figures, tables and cells"):
        ia.write_page(tmp_path / "page.html", title="Nothing")
    with pytest.raises(DataError, match="notes on Absent; there are only Genes"):
        ia.write_page(
            tmp_path / "page.html",
            title="Notes",
            tables={"Genes": make_genes()},
            notes={"Absent": "what?"},
        )
    assert not list(tmp_path.iterdir())


CSV = """const texts = [], make = URL.createObjectURL, done = arguments[0];
URL.createObjectURL = (blob) => { blob.text().then(done); return make.call(URL, blob); };
HTMLAnchorElement.prototype.click = () => {};
document.querySelector("[data-keep]").click();"""


def test_browser_sorts_and_keeps_a_table(browser: Any, latents: Maker, tmp_path: Path) -> None:
    page = make_page(tmp_path, latents)
    browser.open_page(page)
    assert browser.list_undrawn() == []
    browser.find_elements("css selector", ".sortable thead button")[1].click()
    column = "return [...document.querySelector('.sortable').tBodies[0].rows].map((row) =>"
    values = browser.execute_script(f"{column} Number(row.cells[1].dataset.value))")
    assert values == sorted(values, reverse=True) and len(values) == 40
    kept = list(csv.reader(io.StringIO(browser.execute_async_script(CSV))))
    genes = make_genes().sort_values("log2_fold_change", ascending=False)
    assert kept[0] == ["gene", "log2_fold_change", "false_discovery_rate"]
    assert [row[0] for row in kept[1:]] == list(genes.index)
    numbers = [float(row[2] or "nan") for row in kept[1:]]
    np.testing.assert_allclose(numbers, genes["false_discovery_rate"], rtol=1e-5)
    assert browser.execute_script("return window.broken") is None
    assert browser.get_log("browser") == []
    assert browser.list_requests(page) == [page.as_uri()]


def test_browser_shows_a_figure_in_light_and_dark(
    browser: Any, latents: Maker, tmp_path: Path
) -> None:
    samples = pd.DataFrame({"sample": ["d1"], "condition": ["x"], "stratum": [1]})
    figure = ia.pl.donors(samples.assign(axis_1=0.0, axis_2=1.0))
    browser.open_page(make_page(tmp_path, latents, figures={"Genes": figure}))
    mark = "return getComputedStyle(document.querySelector('.drawn use[style*=fill] ')).fill"
    assert browser.execute_script(mark) == "rgb(0, 114, 178)"
    ink = """const label = document.querySelector(".drawn text");
    return [getComputedStyle(label).fill, getComputedStyle(document.body).color];"""
    light = browser.execute_script(ink)
    browser.find_element("id", "theme").click()
    dark = browser.execute_script(ink)
    assert light[0] != dark[0] and light[1] != dark[1]
    assert browser.get_log("browser") == []


def test_browser_shows_an_answer_on_a_telephone(
    browser: Any, latents: Maker, tmp_path: Path
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        browser.open_page(make_page(tmp_path, latents))
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert browser.list_undrawn() == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
