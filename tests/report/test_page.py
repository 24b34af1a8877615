"""The report: what it says, that it escapes, and that a real browser draws all of it."""

from __future__ import annotations

import base64
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from invatlas.model.objective import weigh
from invatlas.report import packing
from invatlas.report.packing import pack_maps, pack_places
from invatlas.report.page import (
    TERMS,
    draw_curves,
    list_colourings,
    render_report,
    write_report,
)
from invatlas.report.plots import (
    choose_cells,
    code_categories,
    horizontal_bars,
    line_chart,
    palette,
)
from invatlas.report.template import (
    format_breakable,
    format_date,
    format_duration,
    format_setting,
    format_share,
)

Maker = Callable[..., Any]
HOSTILE = "</script><script>window.broken = true; alert(1)</script>"
MISCHIEF = '"><img src=x onerror="window.broken = true"> & \u2028 \'{{ 7 * 7 }}'


def read_data(html: str) -> dict[str, Any]:
    """Read the data block the maps are drawn from."""
    found = re.search(r'<script type="application/json" id="maps-data">(.*?)</script>', html, re.S)
    assert found
    return dict(json.loads(found[1]))


def make_hostile(latents: ad.AnnData) -> ad.AnnData:
    """Give every name a user chooses a hostile value."""
    latents.obs = latents.obs.rename(columns={"condition": MISCHIEF})
    latents.obs[MISCHIEF] = np.where(np.arange(latents.n_obs) % 2, HOSTILE, MISCHIEF)
    return latents


# What is escaped


def test_hostile_names_are_text_everywhere(report: Maker, latents: Maker) -> None:
    parts = report(make_hostile(latents(200)), title=HOSTILE, held_out=MISCHIEF)
    parts["warnings"] = [HOSTILE, MISCHIEF]
    parts["summary"]["settings"] = {HOSTILE: MISCHIEF}
    parts["summary"]["versions"] = {MISCHIEF: HOSTILE}
    html = render_report(**parts)
    assert "<script>window" not in html
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html, "a template language is not for users"
    assert html.count("<script") == 2, "the data and the page's own script"
    names = {name for column in read_data(html)["columns"] for name in column["names"]}
    assert {HOSTILE, MISCHIEF} <= names, "the maps still know the names as they are"


def test_svg_is_well_formed_with_hostile_names() -> None:
    root = ElementTree.fromstring(horizontal_bars({HOSTILE: 3, MISCHIEF: 2, "a&b": 1}, missing=2))
    assert "a&b" in [text.text for text in root.iter("text")]
    ElementTree.fromstring(line_chart([1, 2], {"train": [1.0, 2.0]}, label=HOSTILE))


def test_nothing_is_loaded_from_elsewhere(report: Maker) -> None:
    html = render_report(**report())
    assert "default-src 'none'" in html
    assert not re.findall(r"(?:https?:)?//[a-z]+\.", html)
    assert not re.findall(r"<(?:link|img|script|iframe)[^>]+(?:src|href)=\"(?!data:)", html)


# What is said


def test_header_says_what_was_fitted(report: Maker) -> None:
    html = render_report(**report())
    for words in ("Interferon response of blood cells", "2,000", "24,310 cells/s", "1 min 11 s"):
        assert words in html
    assert "Two whole donors, 1015 and 1244" in html
    assert "22 November 2025, 21:40 UTC" in html
    assert "negative_binomial" in html
    assert "<noscript>" in html
    assert "stopped early" in html


@pytest.mark.parametrize(
    ("stopped", "words"), [("complete", "ran through all"), ("interrupted", "was interrupted")]
)
def test_how_training_ended(report: Maker, stopped: str, words: str) -> None:
    parts = report()
    parts["summary"]["training"]["stopped"] = stopped
    assert words in render_report(**parts)


def test_what_was_kept_and_what_the_terms_are_is_said(report: Maker) -> None:
    html = render_report(**report(kept="It has the lowest objective of the last quarter."))
    assert "lowest objective of the last quarter" in html
    assert "The weights of epoch 31 were kept." in render_report(**report())
    for meaning in ("in nats a cell", "Minus the log likelihood of the counts", "cross entropy"):
        assert html.count(meaning) == 1


def test_every_term_of_the_objective_is_explained() -> None:
    weighed = re.findall(r'^        "(\w+)": ', inspect.getsource(weigh), re.M)
    assert len(weighed) == 9 and set(weighed) | {"objective"} == set(TERMS)


def test_warnings_are_shown_only_if_there_are_any(report: Maker) -> None:
    parts = report()
    assert '<aside class="warnings"' not in render_report(**parts)
    parts["warnings"] = ["condition and run are confounded"]
    html = render_report(**parts)
    assert '<aside class="warnings"' in html
    assert html.index("are confounded") < html.index("Maps of the latents")


def test_what_cannot_be_told_is_a_table_only_if_there_is_any(report: Maker) -> None:
    assert "What this study cannot tell" not in render_report(**report())
    row = {"kind": "full", "alarm": True, "biological": "condition", "beside": MISCHIEF}
    row |= {"values": "a with b", "cells": 3519, "explained": 1.0, "sentence": HOSTILE}
    html = render_report(**report(confounding=[row]))
    assert "What this study cannot tell" in html and 'data-file="confounding"' in html
    assert "3,519" in html and "confounded" in html and "100.0 %" in html
    assert "<script>window" not in html and "<img" not in html


def test_missing_values_are_counted_and_coded(report: Maker) -> None:
    parts = report()
    missing = int(parts["latents"].obs["cell_type"].isna().sum())
    html = render_report(**parts)
    assert f"{missing} without a value" in html
    column = read_data(html)["columns"][0]
    codes = np.frombuffer(base64.b64decode(column["codes"]), np.uint8)
    assert column["missing"] == (codes == 255).sum() == missing


def test_one_category_and_no_biology(report: Maker, latents: Maker) -> None:
    cells = latents(50)
    cells.obs = pd.DataFrame({"donor": "only"}, index=cells.obs_names)
    html = render_report(**report(cells))
    assert "1 category" in html
    assert read_data(html)["columns"][0]["names"] == ["only"]


def test_thousands_of_categories(report: Maker, latents: Maker) -> None:
    cells = latents(9000)
    cells.obs["donor"] = [f"donor {number % 7000}" for number in range(cells.n_obs)]
    html = render_report(**report(cells))
    assert "and 6,980 more" in html
    column = read_data(html)["columns"][-1]
    assert (column["bytes"], column["categories"], len(column["names"])) == (2, 7000, 500)
    codes = np.frombuffer(base64.b64decode(column["codes"]), "<u2")
    assert codes.max() == 6999
    assert len(html) < 3_000_000


def test_what_maps_should_show_is_a_wish_that_an_audit_checks(
    report: Maker, latents: Maker
) -> None:
    cells = latents(60)
    reading = list_colourings(cells, report(cells)["summary"])[-1].reading
    assert reading.startswith("donor is a technical covariate: wanted is that its categories mix")
    assert "lie apart as far as they differ in the spurious one" in reading
    assert reading.endswith("invatlas audit measures how much each latent tells of donor.")


def test_no_spurious_dimensions(report: Maker, latents: Maker) -> None:
    html = render_report(**report(latents(60, spurious=0)))
    assert list(read_data(html)["maps"]) == ["invariant"]
    assert "no spurious dimensions" in html
    cells = latents(60, spurious=0)
    cells.obsm["X_spurious_umap"] = np.zeros((60, 2))  # a layout of nothing is not drawn either
    assert list(read_data(render_report(**report(cells)))["maps"]) == ["invariant"]


def test_one_epoch_and_gaps(report: Maker, history: Maker) -> None:
    parts = report()
    parts["history"] = history(1)
    assert render_report(**parts).count('<circle class="train"') == 7, "a point, not a line"
    gaps = history(12)
    gaps.loc[3:4, "held_out_objective"] = np.nan
    gaps["held_out_dependence"] = np.nan
    gaps["train_dependence"] = np.inf
    parts["history"] = gaps
    html = render_report(**parts)
    assert "no values" in html
    assert ">nan" not in html and " nan" not in html and "inf " not in html


def test_terms_are_found_by_their_prefix(report: Maker) -> None:
    parts = report()
    parts["history"] = pd.DataFrame(
        {"epoch": [0, 1], "train_surprise": [2.0, 1.0], "train_objective": [3.0, 2.0]}
    )
    figures = re.findall(r'data-figure="curve-(\w+)"', render_report(**parts))
    assert figures == ["objective", "surprise"]


# What is drawn


def test_many_cells_are_subsampled_the_same_way_each_time(report: Maker, latents: Maker) -> None:
    cells = latents(110_000)
    html = render_report(**report(cells))
    assert "100,000 of 110,000 cells are drawn" in html
    assert len(html) < 3_000_000
    assert html == render_report(**report(cells))
    assert len(set(choose_cells(50_000))) == 20_000
    assert sorted(choose_cells(7)) == list(range(7))


def test_many_covariates_draw_fewer_cells(
    report: Maker, latents: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", 200_000)
    cells = latents(3000)
    for number in range(60):
        cells.obs[f"covariate {number}"] = (np.arange(cells.n_obs) % (300 + number)).astype(str)
    maps = pack_maps(cells, list_colourings(cells, report(cells)["summary"]))
    assert 1000 < maps["drawn"] < 2000
    packed = [*maps["maps"].values(), *(column["codes"] for column in maps["columns"])]
    assert sum(map(len, packed)) <= 200_000 * 4 / 3 + 4 * len(packed)


def test_places_keep_their_proportions() -> None:
    packed = pack_places(np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0]]))
    places = np.frombuffer(base64.b64decode(packed), "<u2").reshape(-1, 2) / 65535
    np.testing.assert_allclose(places, [[0, 0.75], [1, 0.75], [1, 0.25]], atol=1e-4)
    single = np.frombuffer(base64.b64decode(pack_places(np.array([[3.0, 9.0]]))), "<u2")
    assert list(single) == [32768, 32768]


def test_cells_without_a_place_are_left_out(report: Maker, latents: Maker) -> None:
    cells = latents(40)
    cells.obsm["X_spurious_umap"][3] = np.nan
    maps = pack_maps(cells, list_colourings(cells, report(cells)["summary"]))
    assert (maps["cells"], maps["drawn"]) == (40, 39)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["b", "a", "b", None]),
        pd.Series(["b", "a", "b", np.nan], dtype=pd.CategoricalDtype(["z", "a", "b"])),
        pd.Series([2, 1, 2, pd.NA], dtype="Int64"),
        pd.Series([True, False, True, None], dtype=object),
        pd.Series(["b", 1, "b", np.nan], dtype=object),
    ],
)
def test_categories_are_coded_by_size(values: pd.Series) -> None:
    numbers = code_categories(pd.Series([1.0, 2.0, 1.0, np.nan]), np.arange(4))[1]
    assert numbers == ["1", "2"], "as the categories of an atlas are spelled"
    codes, names, counts = code_categories(values, np.array([3, 0, 1]))
    assert list(codes) == [-1, 0, 1]
    assert counts == [2, 1]
    assert "z" not in names


def test_bars_name_the_largest_and_sum_up_the_rest() -> None:
    svg = horizontal_bars({f"c{n}": n for n in range(1, 61)}, missing=5)
    assert svg.count('class="bar"') == 20
    assert svg.count('class="bar hollow"') == 1
    assert "and 40 more, 820 cells" in svg
    one_left = horizontal_bars({f"c{n}": n for n in range(1, 22)})
    assert one_left.count('class="bar"') == 21 and " more, " not in one_left
    ElementTree.fromstring(horizontal_bars({}))
    ElementTree.fromstring(horizontal_bars({"none": 0}))


def test_first_epochs_do_not_flatten_the_rest() -> None:
    curve = [1e6, *np.linspace(20, 10, 30)]
    svg = line_chart(range(31), {"train": curve}, best_epoch=30)
    assert "first epochs lie above the axis" in svg
    steady = line_chart(range(31), {"train": list(np.linspace(20, 10, 31))}, best_epoch=30)
    assert "first epochs" not in steady
    assert 'class="best"' in steady and 'class="dot"' in steady
    spiked = [*np.linspace(20, 10, 20), 1e3, *np.linspace(10, 9, 10)]
    svg = line_chart(range(31), {"train": spiked})
    assert "some epochs lie above the axis" in svg and ">1,000<" not in svg
    ElementTree.fromstring(line_chart([1, 2, 3], {"train": [0.0, 0.0, 0.0]}))
    ElementTree.fromstring(line_chart([], {"train": []}))


def find_heights(svg: str, kind: str) -> list[float]:
    """Heights of the points of the curves of a kind, from the top."""
    paths = re.findall(rf'<path class="{kind}" d="M([^"]+)"', svg)
    return [float(point.split()[1]) for path in paths for point in path.split("L")]


def test_what_lies_above_the_axis_is_said_above_all_curves() -> None:
    curve = [1e6, *np.linspace(20, 10, 10), 1e3, np.nan, *np.linspace(10, 9, 19)]
    svg = line_chart(range(32), {"train": curve, "held_out": curve[::-1]})
    said = re.search(r' y="([0-9.]+)">some epochs lie above', svg)
    assert said and float(said[1]) > 10, "within the drawing"
    for kind in ("train", "held_out"):
        heights = find_heights(svg, kind)
        assert min(heights) == pytest.approx(26), "curves end where the axis does"
        assert min(heights) > float(said[1]) + 5
    assert "nan" not in svg
    steady = line_chart(range(4), {"train": [2.0, 1.0, 0.5, np.inf]})
    assert len(find_heights(steady, "train")) == 3, "infinity is a gap"


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 400])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    svg = line_chart(range(1, epochs + 1), {"train": np.linspace(2, 1, epochs).tolist()})
    marks = re.findall(r'class="tick middle"[^>]*>([^<]+)<', svg)
    assert marks and not any("." in mark for mark in marks)


def test_a_term_that_stays_zero_is_left_out(history: Maker) -> None:
    table = history(5).assign(train_shrinkage=0.0, held_out_shrinkage=0.0)
    assert "shrinkage" not in [curve["term"] for curve in draw_curves(table, 3)]


def test_palette_starts_with_distinct_colours() -> None:
    assert len(set(palette(120))) == 120
    assert palette(121)[120] == palette(1)[0]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in palette(120))


def test_small_formats() -> None:
    assert [format_duration(s) for s in (3.456, 71.6, 599.9, 1800, 7300)] == [
        "3.46 s",
        "1 min 11 s",
        "10 min",
        "30 min",
        "2 h 2 min",
    ]
    assert format_date("yesterday") == "yesterday"
    assert [format_setting(v) for v in (None, "x", [1, 2], True)] == ["none", "x", "[1, 2]", "true"]
    names = {"log2_fold_change_sd": "log2_<wbr>fold_<wbr>change_sd", "disease_2": "disease_2"}
    names |= {"<b>_": "&lt;b&gt;_", "": ""}
    assert {name: str(format_breakable(name)) for name in names} == names
    shares = [format_share(share) for share in (0, 1e-5, 0.123, 0.9999, 1)]
    assert shares == ["0.0 %", "<0.1 %", "12.3 %", ">99.9 %", "100.0 %"]


def test_writing_replaces_in_one_step(report: Maker, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(path, **report()) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


# In a real browser

PICTURES = """return [...document.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL())"""


@pytest.fixture
def page(browser: Any, report: Maker, tmp_path: Path) -> Path:
    """Open an ordinary report."""
    path = write_report(tmp_path / "report.html", **report())
    browser.open_page(path)
    return path


def test_browser_draws_every_figure_and_loads_nothing(browser: Any, page: Path) -> None:
    assert browser.list_undrawn() == []
    assert len(browser.find_elements("css selector", "[data-figure]")) == 2 + 3 + 6
    assert min(browser.count_colours()) > 8, "a colour a category"
    assert browser.get_log("browser") == []
    assert browser.list_requests(page) == [page.as_uri()]


def test_browser_recolours_at_a_click_and_from_the_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    before = browser.execute_script(PICTURES)
    browser.find_element("css selector", '[data-column="1"]').click()
    browser.settle()
    by_condition = browser.execute_script(PICTURES)
    assert all(a != b for a, b in zip(before, by_condition, strict=True))
    assert len(browser.find_elements("css selector", "#legend button")) == 2
    browser.find_element("css selector", '[data-column="2"]').send_keys(Keys.ENTER)
    browser.settle()
    assert browser.execute_script(PICTURES) != by_condition
    pressed = browser.find_elements("css selector", '[data-column][aria-pressed="true"]')
    assert [button.text for button in pressed] == ["donor"]
    assert "donor is a technical covariate" in browser.find_element("id", "reading").text
    assert browser.get_log("browser") == []


def test_browser_singles_out_a_category(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    before = browser.execute_script(PICTURES)
    entry = browser.find_element("css selector", "#legend button")
    entry.click()
    browser.settle()
    assert entry.get_attribute("aria-pressed") == "true"
    assert browser.execute_script(PICTURES) != before
    entry.send_keys(Keys.ESCAPE)
    assert entry.get_attribute("aria-pressed") == "false"


def test_browser_shows_a_cell_under_the_pointer(browser: Any, page: Path) -> None:
    browser.execute_script(
        """const map = maps[0], box = map.canvas.getBoundingClientRect();
        const place = (i) => margin + map.places[i] * (box.width - 2 * margin) / 65535;
        map.canvas.dispatchEvent(new PointerEvent("pointermove",
          { clientX: box.left + place(0), clientY: box.top + place(1) }));"""
    )
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert {"cell_type", "condition", "donor"} <= set(re.findall(r"\w+", tip.text))
    assert len(browser.find_elements("css selector", ".ring:not([hidden])")) == 2


def test_browser_shows_hostile_names_as_text(
    browser: Any, report: Maker, latents: Maker, tmp_path: Path
) -> None:
    parts = report(make_hostile(latents(300)), title=HOSTILE)
    parts["warnings"] = [HOSTILE, MISCHIEF]
    path = write_report(tmp_path / "hostile.html", **parts)
    browser.open_page(path)
    browser.find_element("css selector", '[data-column="1"]').click()
    browser.settle()
    labels = browser.find_elements("css selector", "#legend .label")
    assert {label.get_attribute("textContent") for label in labels} == {HOSTILE, MISCHIEF}
    assert browser.find_element("tag name", "h1").text == HOSTILE
    assert browser.execute_script("return window.broken") is None
    assert browser.list_undrawn() == []
    assert browser.get_log("browser") == []
    assert browser.list_requests(path) == [path.as_uri()]


def test_browser_copes_with_the_smallest_atlas(
    browser: Any, report: Maker, latents: Maker, history: Maker, tmp_path: Path
) -> None:
    parts = report(latents(1, spurious=0))
    parts["history"] = history(1)
    browser.open_page(write_report(tmp_path / "small.html", **parts))
    assert browser.list_undrawn() == []
    assert min(browser.count_colours()) >= 1
    assert browser.get_log("browser") == []


def test_browser_fits_a_telephone(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        browser.refresh()
        browser.settle()
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert browser.list_undrawn() == []
        width = browser.execute_script("return maps[0].canvas.width / maps[0].canvas.clientWidth")
        assert width == pytest.approx(2, abs=0.02), "drawn at the resolution of the screen"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
