"""Maps in a real browser: zoom, move, isolate, find; light and dark; a large atlas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invatlas.report.page import write_report

Maker = Callable[..., Any]
PICTURE = "return maps[0].canvas.toDataURL()"
VIEW = "return maps.map(({ view }) => [view.x, view.y, view.zoom])"
WHOLE = [32767.5, 32767.5, 1]
# The nearest cell as the grid finds it, and as every cell's distance does.
FOUND = """const map = maps[0], [x, y, reach] = arguments;
map.grid ??= buildGrid(map.places);
const far = [...codesOf()].map((_, cell) =>
  (map.places[2 * cell] - x) ** 2 + (map.places[2 * cell + 1] - y) ** 2);
function codesOf() { return state.column.codes; }
const least = far.reduce((a, b) => Math.min(a, b));
const cell = findNearest(map, x, y, reach);
return [cell < 0 ? null : far[cell], least < reach ** 2 ? least : null];"""
# Pixels without and with a strong colour.
VIVID = """const { width } = maps[0].canvas, counts = [0, 0];
const copy = Object.assign(document.createElement("canvas"), { width, height: width });
const pen = copy.getContext("2d", { willReadFrequently: true });
pen.drawImage(maps[0].canvas, 0, 0);
const { data: seen } = pen.getImageData(0, 0, width, width);
for (let i = 0; i < seen.length; i += 4) if (seen[i + 3] > 60) {
  const part = seen.slice(i, i + 3);
  counts[Number(Math.max(...part) - Math.min(...part) > 60)]++;
}
return counts;"""
SHARES = """const { codes } = state.column, side = 65535, { x, y, zoom } = maps[0].view;
let inside = 0, all = 0;
for (let cell = 0; cell < codes.length; cell++) if (codes[cell] === state.pinned) {
  const half = side / 2 / zoom, near = (value, middle) => Math.abs(value - middle) <= half;
  all++;
  inside += near(maps[0].places[2 * cell], x) && near(maps[0].places[2 * cell + 1], y);
}
return [inside / all, zoom];"""


@pytest.fixture
def page(browser: Any, report: Maker, tmp_path: Path) -> Path:
    """Open an ordinary report."""
    path = write_report(tmp_path / "report.html", **report())
    browser.open_page(path)
    return path


def click(browser: Any, selector: str) -> None:
    """Click the first element, once it can be seen."""
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
    element.click()
    browser.settle()


def test_browser_zooms_one_map_and_shows_it_whole_again(browser: Any, page: Path) -> None:
    before = browser.execute_script(PICTURE)
    click(browser, '[data-map="invariant"] [data-zoom="in"]')
    (_, _, zoom), other = browser.execute_script(VIEW)
    assert zoom == pytest.approx(1.6) and other == WHOLE
    assert browser.execute_script(PICTURE) != before
    click(browser, '[data-map="invariant"] [data-zoom="all"]')
    assert browser.execute_script(VIEW) == [WHOLE, WHOLE]
    assert browser.execute_script(PICTURE) == before
    assert browser.get_log("browser") == []


def test_browser_drags_a_map_that_is_zoomed(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains

    canvas = browser.find_element("css selector", '[data-map="invariant"] canvas')
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    ActionChains(browser).drag_and_drop_by_offset(canvas, 60, -40).perform()
    assert browser.execute_script(VIEW)[0] == WHOLE, "a whole map has nowhere to go"
    ActionChains(browser).double_click(canvas).perform()
    x, y, zoom = browser.execute_script(VIEW)[0]
    assert zoom == pytest.approx(2)
    ActionChains(browser).drag_and_drop_by_offset(canvas, 60, -40).perform()
    moved = browser.execute_script(VIEW)[0]
    scale = browser.execute_script("return scaleOf(maps[0])")
    assert [moved[0], moved[1]] == pytest.approx([x - 60 / scale, y + 40 / scale], abs=2 / scale)
    assert browser.get_log("browser") == []


def test_browser_zooms_with_control_and_wheel_and_from_the_keyboard(
    browser: Any, page: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    wheel = """maps[0].canvas.dispatchEvent(new WheelEvent("wheel",
      { deltaY: -100, ctrlKey: arguments[0], bubbles: true, cancelable: true }));"""
    browser.execute_script(wheel, False)
    assert browser.execute_script(VIEW)[0] == WHOLE, "the bare wheel scrolls the page"
    browser.execute_script(wheel, True)
    assert browser.execute_script(VIEW)[0][2] > 1
    canvas = browser.find_element("css selector", '[data-map="invariant"] canvas')
    canvas.send_keys("0")
    assert browser.execute_script(VIEW)[0] == WHOLE
    canvas.send_keys("++", Keys.ARROW_LEFT)
    x, _, zoom = browser.execute_script(VIEW)[0]
    assert zoom == pytest.approx(1.6**2) and x < WHOLE[0]


def test_browser_isolates_a_cell_type_and_zooms_to_it(browser: Any, page: Path) -> None:
    around = browser.find_element("id", "around")
    grey, vivid = browser.execute_script(VIVID)
    assert vivid > 5 * grey
    assert not around.is_displayed()
    click(browser, "#legend li:nth-child(3) button")
    name = browser.find_element("css selector", "#legend li:nth-child(3) .label").text
    assert around.text == f"Zoom to {name}"
    grey, vivid = browser.execute_script(VIVID)
    assert grey > 2 * vivid > 100, "one cell type has a colour, the others are grey"
    click(browser, "#around")
    share, zoom = browser.execute_script(SHARES)
    assert share > 0.9 and zoom > 1.5
    click(browser, "#legend li:nth-child(3) button")
    assert not around.is_displayed()
    assert browser.get_log("browser") == []


def test_browser_finds_the_nearest_cell(browser: Any, page: Path) -> None:
    generator = np.random.default_rng(0)
    answers = set()
    for x, y in generator.uniform(-500, 66_000, (60, 2)).tolist():
        found, right = browser.execute_script(FOUND, x, y, 1500)
        assert found == right
        answers.add(right is None)
    assert answers == {True, False}, "some lie near a cell, some do not"


def test_browser_turns_dark_and_light(browser: Any, page: Path) -> None:
    page_colour = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(page_colour), browser.execute_script(PICTURE)
    assert before[0] == "rgb(255, 255, 255)"
    click(browser, "#theme")
    assert browser.execute_script(page_colour) == "rgb(19, 23, 27)"
    assert browser.execute_script(PICTURE) != before[1], "cells without a value are darker"
    assert browser.find_element("id", "theme").text == "Light"
    click(browser, "#theme")
    assert (browser.execute_script(page_colour), browser.execute_script(PICTURE)) == before
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    try:
        assert browser.execute_script(page_colour) == "rgb(255, 255, 255)", "as the reader chose"
        browser.refresh()
        assert browser.execute_script(page_colour) == "rgb(19, 23, 27)", "as the device has it"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert browser.get_log("browser") == []


def test_browser_opens_a_hundred_thousand_cells(
    browser: Any, report: Maker, latents: Maker, tmp_path: Path
) -> None:
    path = write_report(tmp_path / "large.html", **report(latents(100_000)))
    assert path.stat().st_size < 40e6
    browser.open_page(path)
    assert browser.execute_script("return performance.now()") < 5000
    assert browser.list_undrawn() == []
    assert browser.execute_script("return maps[0].places.length") == 200_000
    assert browser.get_log("browser") == []
    assert browser.list_requests(path) == [path.as_uri()]


def test_browser_spreads_a_map_with_two_fingers(browser: Any, page: Path) -> None:
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        browser.refresh()
        browser.settle()
        x, y = browser.execute_script(
            """maps[0].canvas.scrollIntoView({ block: "center" });
            const box = maps[0].canvas.getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2];"""
        )
        for kind, apart in (("touchStart", 30), ("touchMove", 45), ("touchMove", 60)):
            fingers = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
            browser.execute_cdp_cmd(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers}
            )
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        browser.settle()
        zoomed = browser.execute_script(VIEW)[0]
        assert zoomed == pytest.approx([WHOLE[0], WHOLE[1], 2], rel=0.02)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
