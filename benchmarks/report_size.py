"""How large the report of a large atlas is, and how soon and how smoothly a browser shows it.

The cells are made up: no fit is needed to draw them. Headless Chromium opens the page from disk;
seconds run from the start of the navigation to the frame in which every figure is drawn. Run
``python benchmarks/report_size.py --cells 100000``; it needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import invatlas as ia

OPENED = """const done = arguments[0];
(function wait() {
  const figures = [...document.querySelectorAll("[data-figure]")];
  if (figures.some((figure) => figure.dataset.drawn !== "true")) return requestAnimationFrame(wait);
  requestAnimationFrame(() => done(performance.now() / 1000));
})();"""
DRAW = """const times = [];
for (let turn = 0; turn < 15; turn++) {
  look(maps[0], SPAN / 2 + 300 * turn, SPAN / 2, arguments[0]);
  const start = performance.now(); draw(maps[0]); times.push(performance.now() - start);
}
look(maps[0], SPAN / 2, SPAN / 2, 1);
return times;"""
FIND = """const times = [];
for (let turn = 0; turn < 40; turn++) {
  const { left, top, width } = maps[0].canvas.getBoundingClientRect(), step = width * turn / 40;
  const start = performance.now();
  inspect(maps[0], { clientX: left + step, clientY: top + step });
  times.push(performance.now() - start);
}
return times;"""
RECOLOUR = """const start = performance.now(); choose(arguments[0]); maps.forEach(draw);
return performance.now() - start;"""


def make_parts(cells: int, columns: int, seed: int) -> dict[str, Any]:
    """Make the arguments of a report: clusters, donors, numbers, and 40 epochs of a history."""
    rng = np.random.default_rng(seed)
    kind, donor = rng.integers(30, size=cells), rng.integers(60, size=cells)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {k}" for k in kind]),
            "condition": pd.Categorical(rng.choice(["control", "treated", "recovered"], cells)),
            "donor": pd.Categorical([f"donor {k}" for k in donor]),
            "age": rng.integers(20, 90, cells).astype(float),
        },
        index=pd.RangeIndex(cells).astype(str),
    )
    for number in range(columns - obs.shape[1]):
        obs[f"covariate_{number}"] = pd.Categorical(rng.integers(9, size=cells).astype(str))
    latents = ad.AnnData(obs=obs)
    centres = rng.normal(scale=8, size=(30, 2))
    for name, middle in (
        ("invariant", centres[kind]),
        ("spurious", rng.normal(size=(60, 2))[donor]),
    ):
        latents.obsm[f"X_{name}"] = np.zeros((cells, 10), np.float32)
        latents.obsm[f"X_{name}_umap"] = (middle + rng.normal(size=(cells, 2))).astype(np.float32)
    epoch = np.arange(1, 41)
    terms = {f"{part}_{term}": 9 + 1 / epoch for part in ("train", "held_out")
             for term in ("objective", "reconstruction")}  # fmt: skip
    counts = {name: {str(k): int(n) for k, n in obs[name].value_counts().items()} for name in obs}
    summary = {
        "title": f"{cells:,} made-up cells", "version": ia.__version__, "created": "",
        "cells": cells, "genes": 2000, "held_out": "", "continuous": ["age"],
        "biological": {name: count for name, count in counts.items() if name != "donor"},
        "technical": {"donor": counts["donor"]}, "settings": {}, "versions": {},
        "training": {"epochs": 40, "best_epoch": 40, "seconds": 60.0, "cells_per_second": 2e4,
                     "stopped": "complete"},
    }  # fmt: skip
    return {
        "summary": summary,
        "latents": latents,
        "history": pd.DataFrame({"epoch": epoch, **terms}),
        "warnings": [],
    }


def start_browser(width: int) -> Any:
    """Start headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_script_timeout(120)
    return browser


def measure(page: Path, repeats: int) -> dict[str, float]:
    """Open a page several times; medians in seconds and milliseconds."""
    browser = start_browser(1280)
    try:
        opened = []
        for _ in range(repeats):
            browser.get("about:blank")
            browser.get(page.as_uri())
            opened.append(browser.execute_async_script(OPENED))
        columns = browser.execute_script("return columns.length")
        return {
            "megabytes": page.stat().st_size / 1e6,
            "seconds_to_drawn": statistics.median(opened),
            "seconds_to_drawn_worst": max(opened),
            "frame_ms": statistics.median(browser.execute_script(DRAW, 1)),
            "frame_zoomed_ms": statistics.median(browser.execute_script(DRAW, 6)),
            "hover_ms": statistics.median(browser.execute_script(FIND)),
            "recolour_ms": statistics.median(
                browser.execute_script(RECOLOUR, k) for k in range(columns)
            ),
        }
    finally:
        browser.quit()


def main() -> None:
    """Write reports, open them, and print one JSON line for each number of cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000])
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder to leave the pages in")
    plan = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for cells in plan.cells:
            parts = make_parts(cells, plan.columns, 0)
            start = time.perf_counter()
            page = ia.write_report((plan.keep or Path(scratch)) / f"{cells}.html", **parts)
            row = {"cells": cells, "columns": plan.columns}
            row |= {"seconds_to_write": time.perf_counter() - start}
            row |= measure(page, plan.repeats)
            print(json.dumps({k: round(v, 2) for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
