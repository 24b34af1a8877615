"""The report of a query: what it counts, that it escapes, and that a real browser draws it."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from invatlas.data.genes import GeneOverlap
from invatlas.report.page import render_report
from invatlas.report.query import (
    list_calls,
    list_colourings,
    render_query_report,
    tell_outcomes,
    write_query_report,
)

CELL_TYPES = (
    "B cells",
    "CD14+ monocytes",
    "CD4 T cells",
    "CD8 T cells",
    "Dendritic cells",
    "FCGR3A+ monocytes",
    "Megakaryocytes",
    "NK cells",
)
Maker = Callable[..., Any]
HOSTILE = "</script><script>window.broken = true; alert(1)</script>"
MISCHIEF = '"><img src=x onerror="window.broken = true"> & \u2028 \'{{ 7 * 7 }}'
ODD = 'two\nlines, "quotes", 🧬 = 1'


def read_data(html: str) -> dict[str, Any]:
    """Read the data block the map is drawn from."""
    found = re.search(r'<script type="application/json" id="maps-data">(.*?)</script>', html, re.S)
    assert found
    return dict(json.loads(found[1]))


def text_of(html: str) -> str:
    """Read the page as a person would, roughly: no tags, spaces in one."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", "", body).split())


def make_hostile(parts: dict[str, Any]) -> dict[str, Any]:
    """Give every name a user chooses a hostile value."""
    cells = parts["cells"]
    odd = np.array([HOSTILE, MISCHIEF, ODD])[np.arange(cells.n_obs) % 3]
    cells.obs = cells.obs.rename(columns={"donor": MISCHIEF, "author_label": HOSTILE})
    cells.obs[MISCHIEF] = odd
    cells.obs["predicted_joint"] = pd.Categorical(odd)
    cells.obs[f"predicted_{HOSTILE}"] = odd
    cells.obs[f"predicted_{HOSTILE}_probability"] = 1.0
    parts["summary"] |= {"title": HOSTILE, "atlas": MISCHIEF, "by": MISCHIEF}
    parts["summary"] |= {"covariates": ["cell_type", HOSTILE], "calibration": MISCHIEF}
    parts["overlap"] = GeneOverlap(10, 2, 0.1, ((HOSTILE, 0.06), (MISCHIEF, 0.04)))
    parts["notes"] = [HOSTILE, MISCHIEF]
    parts["groups"] = pd.DataFrame({HOSTILE: [MISCHIEF], "markers": [[HOSTILE, ODD]]})
    return parts


def uncalibrate(parts: dict[str, Any]) -> dict[str, Any]:
    """Take away what a calibration gives."""
    obs = parts["cells"].obs
    obs["novelty_score"] = obs["novelty_pvalue"] = np.nan
    obs["novelty_flag"] = False
    obs["abstained"] = obs["predicted_joint_probability"] < 0.5
    parts["summary"]["calibration"] = "Not calibrated: fewer than 20 labelled cells were held out."
    return parts


# What is escaped


def test_hostile_names_are_text_everywhere(query: Maker) -> None:
    html = render_query_report(**make_hostile(query(200)))
    assert "<script>window" not in html
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html, "a template language is not for users"
    assert html.count("<script") == 2, "the data and the page's own script"
    names = {name for column in read_data(html)["columns"] for name in column["names"]}
    assert {HOSTILE, MISCHIEF, ODD} <= names, "the map still knows the names as they are"


def test_nothing_is_loaded_from_elsewhere(query: Maker) -> None:
    html = render_query_report(**query(100))
    assert "default-src 'none'" in html
    assert not re.findall(r"(?:https?:)?//[a-z]+\.", html)
    assert not re.findall(r"<(?:link|img|script|iframe)[^>]+(?:src|href)=\"(?!data:)", html)


# What is said


def test_outcomes_are_told_in_words(query: Maker) -> None:
    parts = query(1200)
    outcome = tell_outcomes(parts["cells"].obs)
    called, weak, new = ((outcome == name).sum() for name in ("called", "too weak", "new"))
    assert called + weak + new == 1200 and min(called, weak, new) > 0
    text = text_of(render_query_report(**parts))
    assert "1,200 cells brought into the atlas Interferon response of blood cells" in text
    assert f"{called:,} cells are called. {weak} got no call" in text
    assert f"{new} cells are flagged as new and got no call either." in text
    assert "22 November 2025, 21:40 UTC" in text
    assert "61 of 2,000 genes of the atlas are not in the query. They held 3.4 %" in text
    assert "MT-CO11.2 %" in text
    assert "exponents 0.77 (cell_type)" in text


def test_notes_come_before_results(query: Maker) -> None:
    parts = query(50)
    assert "Read this first" not in render_query_report(**parts)
    parts["notes"] = ["the query holds 2 labels the atlas does not know"]
    html = render_query_report(**parts)
    place = [html.index(words) for words in ("Read this first", "2 labels", "What became of")]
    assert place == sorted(place)


def test_a_query_with_all_genes(query: Maker) -> None:
    parts = query(50)
    parts["overlap"] = GeneOverlap(2000, 0, 0.0, ())
    assert "All 2,000 genes of the atlas are in the query." in render_query_report(**parts)


def test_no_cell_is_flagged(query: Maker) -> None:
    text = text_of(render_query_report(**query(300, new=0.0) | {"groups": None}))
    assert "No cell is flagged as new." in text
    assert "Groups of new cells were not looked for." in text
    sure = query(300)
    sure["cells"].obs["abstained"] = sure["cells"].obs["novelty_flag"]
    assert "flagged as new and got no call." in text_of(render_query_report(**sure))
    none = query(300, new=0.0)
    none["groups"] = none["groups"].iloc[:0]
    assert "There is no group of new cells." in text_of(render_query_report(**none))


def test_an_atlas_without_calibration(query: Maker) -> None:
    html = render_query_report(**uncalibrate(query(300)))
    text = text_of(html)
    assert "no p-values, and no cell can be flagged as new" in text
    assert "None could be flagged as new" in text
    assert 'data-figure="novelty"' not in html
    score = next(c for c in read_data(html)["columns"] if c["name"] == "novelty_score")
    assert (score["missing"], score["names"]) == (300, [])
    assert ">nan" not in html and " nan" not in text


def test_no_layout_and_no_donor(query: Maker) -> None:
    parts = query(300)
    del parts["cells"].obsm["X_invariant_umap"]
    parts["summary"]["by"] = None
    html = render_query_report(**parts)
    assert read_data(html)["maps"] == {}
    assert "was not laid out" in html
    assert re.search(r'<th scope="row" data-value="all cells">', html)
    assert "<tfoot" not in html
    parts["summary"]["by"] = "absent"
    assert "Calls by" not in render_query_report(**parts)


def test_one_cell_and_none(query: Maker) -> None:
    for new in (0.0, 1.0):
        assert "1 cell brought into" in text_of(render_query_report(**query(1, new=new)))
    assert "0 cells brought into" in text_of(render_query_report(**query(0)))


def test_one_covariate_needs_no_joint_label() -> None:
    assert list_calls(["cell_type"]) == ["cell_type"]
    assert list_calls(["cell_type", "disease"]) == ["joint", "cell_type", "disease"]


# What is packed


def test_colourings_cover_calls_and_own_columns(query: Maker) -> None:
    parts = query(400)
    obs, summary = parts["cells"].obs, parts["summary"]
    obs["constant"] = 3.5
    obs["cluster"] = np.arange(400) % 5
    listed = {str(c.values.name): c for c in list_colourings(obs, summary)}
    assert next(iter(listed)) == "novelty_flag"
    assert {"predicted_cell_type", "predicted_condition", "predicted_joint"} <= set(listed)
    assert {"donor", "author_label", "n_counts", "constant", "cluster"} <= set(listed)
    assert "barcode" not in listed, "each cell has its own"
    assert list(listed)[-6] == "donor", "what calls are broken down by comes first"
    assert listed["novelty_flag"].top == 0
    nothing_new = list_colourings(obs.assign(novelty_flag=False), summary)
    assert nothing_new[0].values.name == "predicted_cell_type"
    counts = listed["n_counts"].values
    assert counts.notna().all() and 50 < counts.value_counts().min() < 80
    assert listed["cluster"].shades == ()
    for number in range(40):
        obs[f"extra {number}"] = "x"
    assert len(list_colourings(obs, summary)) == 3 + 4 + 20


def test_names_keep_the_colours_they_have_in_the_atlas(query: Maker, report: Maker) -> None:
    parts, order = query(400), {"cell_type": [*CELL_TYPES[::-1], "one the query lacks"]}
    order["donor"] = ["1488", "gone", "101"]
    parts["summary"]["order"] = order
    asked = {c["name"]: c for c in read_data(render_query_report(**parts))["columns"]}
    fitted = read_data(render_report(**report(order=order)))["columns"]
    for column in (asked["predicted_cell_type"], fitted[0]):
        assert column["tints"] == [order["cell_type"].index(name) for name in column["names"]]
    place = dict(zip(asked["donor"]["names"], asked["donor"]["tints"], strict=True))
    assert (place["1488"], place["101"]) == (0, 2)
    assert sorted(place.values()) == [0, *range(2, 9)], "new ones come after all known ones"
    assert "tints" not in asked["predicted_joint"]


def test_flags_are_packed_with_their_shades(query: Maker) -> None:
    parts = query(200)
    data = read_data(render_query_report(**parts))
    flag = data["columns"][0]
    new = int(parts["cells"].obs["novelty_flag"].sum())
    assert flag["names"] == ["flagged as new", "not flagged"]
    assert flag["counts"] == [new, 200 - new]
    assert (flag["shades"], flag["top"]) == (["--warn", "--none"], 0)
    codes = np.frombuffer(base64.b64decode(flag["codes"]), np.uint8)
    assert (codes == 0).sum() == new


def test_many_cells_are_quick_and_small(query: Maker) -> None:
    parts = query(60_000)
    start = time.perf_counter()
    html = render_query_report(**parts)
    assert time.perf_counter() - start < 10
    assert len(html) < 1_500_000
    assert "cells are drawn" not in html, "all of them are"


def test_report_leaves_the_cells_alone(query: Maker) -> None:
    parts = query(100)
    before: ad.AnnData = parts["cells"].copy()
    render_query_report(**parts)
    pd.testing.assert_frame_equal(parts["cells"].obs, before.obs)


def test_writing_replaces_in_one_step(query: Maker, tmp_path: Path) -> None:
    path = tmp_path / "mapped.html"
    path.write_text("old")
    assert write_query_report(path, **query(20)) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["mapped.html"]


# In a real browser

COLUMN = """return [...document.querySelectorAll("#" + arguments[0] + " tbody tr")]
  .map((row) => row.cells[arguments[1]].dataset.value)"""


@pytest.fixture
def page(browser: Any, query: Maker, tmp_path: Path) -> Path:
    """Open an ordinary report."""
    path = write_query_report(tmp_path / "mapped.html", **query())
    browser.open_page(path)
    return path


def find_heading(browser: Any, table: str, index: int) -> Any:
    """Find the button that sorts a table by a column."""
    return browser.find_elements("css selector", f"#{table} thead th button")[index]


def keep_csv(browser: Any, table: str, folder: Path) -> str:
    """Click the download of a table and read the file."""
    behaviour = {"behavior": "allow", "downloadPath": str(folder)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    browser.find_element("css selector", f'[data-keep="{table}"]').click()
    deadline = time.monotonic() + 10
    while not (found := list(folder.glob("*.csv"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found[0].read_bytes().decode()


def test_browser_draws_every_figure_and_loads_nothing(browser: Any, page: Path) -> None:
    assert browser.list_undrawn() == []
    figures = browser.find_elements("css selector", "[data-figure]")
    names = [figure.get_attribute("data-figure") for figure in figures]
    assert names == ["confidence", "novelty", "map-invariant"]
    assert min(browser.count_colours()) >= 2, "new cells stand out"
    assert browser.get_log("browser") == []
    assert browser.list_requests(page) == [page.as_uri()]


def test_browser_recolours_the_map(browser: Any, page: Path) -> None:
    picture = """return document.querySelector("canvas").toDataURL()"""
    seen = set()
    buttons = browser.find_elements("css selector", "[data-column]")
    for button in buttons:
        browser.execute_script("arguments[0].click()", button)
        browser.settle()
        seen.add(browser.execute_script(picture))
    assert len(buttons) == 3 + 4 + 4
    assert len(seen) == len(buttons)
    assert browser.get_log("browser") == []


def test_browser_paints_a_name_as_the_atlas_does(
    browser: Any, query: Maker, tmp_path: Path
) -> None:
    parts = query()
    parts["summary"]["order"] = {"donor": ["1488", "gone", "101"]}
    browser.open_page(write_query_report(tmp_path / "mapped.html", **parts))
    browser.execute_script("choose(columns.findIndex((column) => column.name === 'donor'))")
    swatches = """return Object.fromEntries([...document.querySelectorAll("#legend button")]
      .map((entry) => [entry.title, entry.querySelector(".swatch").style.background]))"""
    found = browser.execute_script(swatches)
    assert found["1488"] == "rgb(0, 114, 178)" and found["101"] == "rgb(0, 158, 115)"
    assert browser.get_log("browser") == []


def test_browser_sorts_a_table_at_a_click(browser: Any, page: Path) -> None:
    table = "table-calls-predicted-joint"
    before = browser.execute_script(COLUMN, table, 0)
    find_heading(browser, table, 4).click()
    falling = [int(value) for value in browser.execute_script(COLUMN, table, 4)]
    assert falling == sorted(falling, reverse=True)
    find_heading(browser, table, 4).click()
    rising = [int(value) for value in browser.execute_script(COLUMN, table, 4)]
    assert rising == sorted(rising)
    find_heading(browser, table, 0).click()
    names = browser.execute_script(COLUMN, table, 0)
    assert names == sorted(before, key=int), "numbers in names count as numbers"
    heads = browser.find_elements("css selector", f"#{table} th[aria-sort='ascending']")
    assert [head.text.strip(" ▲") for head in heads] == ["donor"]
    foot = browser.find_element("css selector", f"#{table} tfoot th")
    assert foot.text == "all cells"
    assert browser.get_log("browser") == []


def test_browser_shows_calls_of_one_covariate_at_a_time(browser: Any, page: Path) -> None:
    def shown() -> list[bool]:
        panels = browser.find_elements("css selector", "[data-panel]")
        return [panel.is_displayed() for panel in panels]

    assert shown() == [True, False, False]
    browser.find_elements("css selector", "[data-show]")[1].click()
    assert shown() == [False, True, False]


def test_browser_says_where_a_table_goes_on(browser: Any, page: Path) -> None:
    cut = """return [...document.querySelectorAll("[data-panel] .scroller")].map((scroller) =>
      [scroller.classList.contains("cut"), !scroller.previousElementSibling.hidden])"""
    assert browser.execute_script(cut)[0] == [True, True], "all combinations are wider than a page"
    browser.execute_script("document.querySelector('[data-panel] .scroller').scrollLeft = 1e6")
    browser.settle()
    assert browser.execute_script(cut)[0] == [False, True], "the end is reached"
    browser.find_elements("css selector", "[data-show]")[2].click()
    browser.settle()
    assert browser.execute_script(cut)[2] == [False, False], "two conditions fit"
    assert browser.get_log("browser") == []


def test_browser_shows_a_list_of_labels_whole(browser: Any, page: Path) -> None:
    hidden = """const list = document.getElementById("table-confidence-predicted-joint");
    const { scrollHeight, clientHeight } = list.parentNode;
    return [list.tBodies[0].rows.length, scrollHeight - clientHeight]"""
    rows, lost = browser.execute_script(hidden)
    assert rows == 16 and lost <= 0


def test_browser_keeps_a_table_as_csv(
    browser: Any, page: Path, query: Maker, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    text = keep_csv(browser, "table-calls-predicted-joint", folder)
    assert [file.name for file in folder.iterdir()] == ["calls-predicted-joint.csv"]
    kept = pd.read_csv(io.StringIO(text), dtype={"donor": str}).set_index("donor")
    obs = query()["cells"].obs
    assert kept["cells"].to_dict() == obs["donor"].value_counts().to_dict()
    called = obs[~obs["abstained"]]
    truth = called.groupby(["donor", "predicted_joint"], observed=True).size().unstack()
    for label in truth:
        assert kept[label].to_dict() == truth[label].fillna(0).astype(int).to_dict()
        np.testing.assert_allclose(kept[f"{label}, share"], kept[label] / kept["cells"], rtol=1e-5)
    assert kept["no call: new"].sum() == obs["novelty_flag"].sum()
    assert browser.get_log("browser") == []


def test_browser_shows_hostile_names_as_text(browser: Any, query: Maker, tmp_path: Path) -> None:
    path = write_query_report(tmp_path / "hostile.html", **make_hostile(query(300)))
    browser.open_page(path)
    for button in browser.find_elements("css selector", "[data-column]"):
        browser.execute_script("arguments[0].click()", button)
        browser.settle()
    folder = tmp_path / "kept"
    folder.mkdir()
    rows = list(csv.reader(io.StringIO(keep_csv(browser, "table-calls-predicted-joint", folder))))
    assert {row[0] for row in rows[1:]} == {HOSTILE, MISCHIEF, ODD}
    assert rows[0][0] == MISCHIEF
    assert browser.find_element("tag name", "h1").text == HOSTILE
    assert browser.execute_script("return window.broken") is None
    assert browser.list_undrawn() == []
    assert browser.get_log("browser") == []
    assert path.as_uri() in browser.list_requests(path)


@pytest.mark.parametrize("kind", ["one cell", "not calibrated", "no layout", "nothing new"])
def test_browser_copes_with_little(browser: Any, query: Maker, tmp_path: Path, kind: str) -> None:
    parts = query(1 if kind == "one cell" else 200, new=0.0 if kind == "nothing new" else 0.06)
    if kind == "not calibrated":
        uncalibrate(parts)
    if kind == "no layout":
        del parts["cells"].obsm["X_invariant_umap"]
        parts["summary"]["by"] = None
    browser.open_page(write_query_report(tmp_path / "little.html", **parts))
    for button in browser.find_elements("css selector", "[data-column]"):
        browser.execute_script("arguments[0].click()", button)
        browser.settle()
    for button in browser.find_elements("css selector", ".sortable thead button"):
        browser.execute_script("arguments[0].click()", button)
    assert browser.list_undrawn() == []
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
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
