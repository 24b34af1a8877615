"""A made-up atlas and query, as a report gets them: numpy only, no fit; and a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from invatlas.data.genes import GeneOverlap

CELL_TYPES = (
    "CD14+ monocytes",
    "CD4 T cells",
    "B cells",
    "NK cells",
    "CD8 T cells",
    "FCGR3A+ monocytes",
    "Dendritic cells",
    "Megakaryocytes",
)
DONORS = ("101", "107", "1015", "1016", "1039", "1244", "1256", "1488")
TERMS = {
    "reconstruction": 812.0,
    "invariant_divergence": 14.0,
    "spurious_divergence": 4.5,
    "classification": 1.9,
    "dependence": 0.12,
}


def make_latents(cells: int = 3000, seed: int = 0, spurious: int = 5) -> ad.AnnData:
    """Make clusters of cell types, shifted by condition, and a spurious plane of donors."""
    generator = np.random.default_rng(seed)
    shares = np.array([0.31, 0.26, 0.13, 0.11, 0.09, 0.055, 0.035, 0.01])
    kind = generator.choice(len(CELL_TYPES), cells, p=shares)
    stimulated = generator.random(cells) < 0.5
    donor = generator.choice(len(DONORS), cells)
    angle = 2 * np.pi * (kind * 3 % len(CELL_TYPES)) / len(CELL_TYPES)
    centre = np.c_[9 * np.cos(angle), 6 * np.sin(angle)]
    shift = np.where(stimulated, 1.0, -1.0)[:, None] * np.c_[0.9 + 0 * kind, 0.3 + 0.12 * kind]
    bend = generator.normal(size=(cells, 1))
    invariant = centre + shift + np.c_[bend, 0.35 * bend**2] * 0.7
    invariant += generator.normal(scale=0.28, size=(cells, 2))
    turn = 2 * np.pi * donor / len(DONORS) + generator.normal(scale=0.22, size=cells)
    radius = 4 + generator.gamma(3, 0.35, size=cells)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(CELL_TYPES)[kind]),
            "condition": pd.Categorical(np.where(stimulated, "stimulated", "control")),
            "donor": pd.Categorical(np.array(DONORS)[donor]),
        },
        index=[f"cell{number}" for number in range(cells)],
    )
    obs.loc[generator.random(cells) < 0.08, "cell_type"] = np.nan
    latents = ad.AnnData(obs=obs)
    latents.obsm["X_invariant"] = generator.normal(size=(cells, 20)).astype(np.float32)
    latents.obsm["X_invariant_umap"] = invariant.astype(np.float32)
    latents.obsm["X_spurious"] = generator.normal(size=(cells, spurious)).astype(np.float32)
    if spurious:
        latents.obsm["X_spurious_umap"] = np.c_[
            radius * np.cos(turn), radius * np.sin(turn) + generator.normal(scale=0.3, size=cells)
        ].astype(np.float32)
    return latents


def make_history(epochs: int = 46, seed: int = 0) -> pd.DataFrame:
    """Make curves that fall, held-out ones turning up a little towards the end."""
    generator = np.random.default_rng(seed)
    epoch = np.arange(1, epochs + 1)
    history = pd.DataFrame({"epoch": epoch, "seconds": 0.8 * epoch, "cells_per_second": 2.4e4})
    history["learning_rate"] = 1e-3
    for kind, turn in (("train", 0.0), ("held_out", 2.5e-5)):
        for term, level in TERMS.items():
            fall = 1 + 0.35 * np.exp(-epoch / 6.0) + turn * np.maximum(0, epoch - 30) ** 2
            noise = generator.normal(scale=0.003, size=epochs)
            history[f"{kind}_{term}"] = level * (fall + noise + (kind == "held_out") * 0.01)
        parts = [history[f"{kind}_{term}"] for term in TERMS]
        history[f"{kind}_objective"] = np.sum(parts, axis=0)
    return history


def make_report(latents: ad.AnnData | None = None, **changes: Any) -> dict[str, Any]:
    """Make the keyword arguments of a report; `changes` replace parts of its summary."""
    latents = make_latents() if latents is None else latents
    counts = {
        column: {str(name): int(n) for name, n in latents.obs[column].value_counts().items()}
        for column in latents.obs.columns
    }
    technical = {column: counts.pop(column) for column in ("donor",) if column in counts}
    summary = {
        "title": "Interferon response of blood cells",
        "version": "0.1.0",
        "created": "2025-11-22T21:40:12+00:00",
        "cells": latents.n_obs,
        "genes": 2000,
        "held_out": "Two whole donors, 1015 and 1244, 722 cells, were kept out of training.",
        "biological": counts,
        "technical": technical,
        "missing": {name: int(n) for name, n in latents.obs.isna().sum().items() if n},
        "training": {
            "epochs": 46,
            "best_epoch": 31,
            "seconds": 71.6,
            "cells_per_second": 24310.4,
            "stopped": "early",
        },
        "settings": {
            "biological": ["cell_type", "condition"],
            "technical": ["donor"],
            "layer": None,
            "genes": 2000,
            "minibatch_size": 256,
            "hidden": [256, 128],
            "learning_rate": 0.001,
            "likelihood": "negative_binomial",
            "technical_in_decoder": True,
            "seed": 0,
        },
        "versions": {"invatlas": "0.1.0", "torch": "2.13.0", "anndata": "0.12.2"},
    }
    return {
        "summary": summary | changes,
        "latents": latents,
        "history": make_history(),
        "warnings": [],
    }


def make_audit(seed: int = 0) -> pd.DataFrame:
    """Make the table of a leakage audit; the batch has no answer."""
    generator = np.random.default_rng(seed)
    rows = []
    for covariate in ("cell_type", "condition", "donor", "batch"):
        technical, lost = covariate in ("donor", "batch"), covariate == "batch"
        for latents in ("invariant", "spurious", "both"):
            told = (latents == "spurious") == technical or latents == "both"
            for probe in ("linear", "neighbours", "boosted"):
                row = {
                    "covariate": covariate,
                    "role": "technical" if technical else "biological",
                    "latents": latents,
                    "given": "cell_type and condition" if technical else "",
                    "probe": probe,
                    "judged": False,
                    "note": "what both tell cannot be told apart" if lost else "",
                }
                if not lost:
                    row |= {"score": 0.9 if told else 0.3, "null_mean": 0.25, "null_05": 0.2}
                    row |= {
                        "null_95": 0.31,
                        "p_value": 0.025,
                        "judged": True,
                        "chance": 0.25,
                        "share": 0.1,
                    }
                    row |= {"cells": 2500, "strata": 13}
                if latents == "both" and not lost:
                    row["importance_invariant"] = generator.random()
                    row["importance_spurious"] = -0.004
                rows.append(row)
    return pd.DataFrame(rows)


def make_query(cells: int = 3000, new: float = 0.06, seed: int = 0) -> dict[str, Any]:
    """Make the keyword arguments of the report of a query, as a calibrated atlas gives them."""
    generator = np.random.default_rng(seed)
    mapped = make_latents(cells, seed)
    obs = mapped.obs.rename(columns={"cell_type": "author_label"})
    truth = np.array(CELL_TYPES)[generator.choice(len(CELL_TYPES), cells)]
    truth = np.where(obs["author_label"].notna(), obs["author_label"].astype(object), truth)
    obs["n_counts"] = generator.lognormal(7.5, 0.5, cells).round()
    obs["barcode"] = [f"{number:08x}-1" for number in range(cells)]
    sure = generator.beta(7, 1.2, cells)
    obs["predicted_cell_type"] = pd.Categorical(truth.astype(str), CELL_TYPES)
    obs["predicted_cell_type_probability"] = np.sqrt(sure).astype(np.float32)
    treated = (obs["condition"] == "stimulated") ^ (generator.random(cells) < 0.05)
    condition = pd.Series(np.where(treated, "stimulated", "control"), obs.index)
    obs["predicted_condition"] = condition.astype("category")
    obs["predicted_condition_probability"] = np.sqrt(sure).astype(np.float32)
    joint = obs["predicted_cell_type"].astype(str) + " | " + condition
    obs["predicted_joint"] = joint.astype("category")
    obs["predicted_joint_probability"] = sure.astype(np.float32)
    strange = generator.random(cells) < new
    mapped.obsm["X_invariant_umap"][strange] = generator.normal(0, 0.7, (int(strange.sum()), 2))
    obs["novelty_score"] = generator.normal(size=cells) + 5 * strange
    obs["novelty_pvalue"] = np.where(strange, 0.001, 1.0) * generator.random(cells)
    obs["novelty_flag"] = strange
    obs["abstained"] = strange | (sure < 0.5)
    mapped.obs = obs
    return {
        "summary": {
            "title": "blood_2026",
            "atlas": "Interferon response of blood cells",
            "version": "0.1.0",
            "created": "2025-11-22T21:40:12+00:00",
            "calibration": "Calls were calibrated on 722 held-out cells of donors nobody trained "
            "on: exponents 0.77 (cell_type); expected calibration error 0.021, Brier score 0.203.",
            "abstain_below": 0.5,
            "false_discovery_rate": 0.05,
            "covariates": ["cell_type", "condition"],
            "by": "donor",
        },
        "cells": mapped,
        "overlap": GeneOverlap(2000, 61, 0.034, (("MT-CO1", 0.012), ("ISG15", 0.00361))),
        "notes": [],
        "groups": pd.DataFrame(
            {
                "group": [1, 2],
                "cells": [140, 35],
                "nearest_known_label": ["B cells | control", "NK cells | stimulated"],
                "share_called_so": [0.913, 0.4],
                "marker_genes": [["JCHAIN", "MZB1", "IGHG1"], ["TRDC", "KLRC1"]],
            }
        ),
    }


@pytest.fixture
def report() -> Callable[..., dict[str, Any]]:
    """Give the maker of a report's arguments."""
    return make_report


@pytest.fixture
def query() -> Callable[..., dict[str, Any]]:
    """Give the maker of a query report's arguments."""
    return make_query


@pytest.fixture
def latents() -> Callable[..., ad.AnnData]:
    """Give the maker of latents."""
    return make_latents


@pytest.fixture
def audit() -> Callable[..., pd.DataFrame]:
    """Give the maker of a leakage audit."""
    return make_audit


@pytest.fixture
def history() -> Callable[..., pd.DataFrame]:
    """Give the maker of a history."""
    return make_history


COLOURS = """return [...document.querySelectorAll("canvas")].map((canvas) => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < pixels.length; i += 4)
    if (pixels[i + 3] > 200) colours.add(`${pixels[i]},${pixels[i + 1]},${pixels[i + 2]}`);
  return colours.size;
});"""
UNDRAWN = """return [...document.querySelectorAll("[data-figure]")]
  .filter((figure) => figure.dataset.drawn !== "true").map((figure) => figure.dataset.figure)"""


class Reading:
    """What a test asks of a browser that has a report open; mixed into the driver."""

    def settle(self: Any) -> None:
        """Wait for two frames, so that what was asked for is drawn."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        self.execute_async_script(frames)

    def open_page(self: Any, path: Path) -> None:
        """Open a page, with the logs of the one before emptied."""
        for log in ("browser", "performance"):
            self.get_log(log)
        self.get(path.as_uri())
        self.settle()

    def list_requests(self: Any, page: Path) -> list[str]:
        """List what the page, not the browser for itself, asked for; `data:` aside."""
        urls = []
        for entry in self.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                ours = message["params"]["documentURL"] == page.as_uri()
                if ours and not url.startswith("data:"):
                    urls.append(url)
        return urls

    def list_undrawn(self: Any) -> list[str]:
        """List the figures that are not drawn."""
        return list(self.execute_script(UNDRAWN))

    def count_colours(self: Any) -> list[int]:
        """Count the colours on each map."""
        return list(self.execute_script(COLOURS))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a headless Chromium that logs its console and its requests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver on PATH (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    profile: Path = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1280,900",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    chrome = type("Chrome", (Reading, webdriver.Chrome), {})(options=options, service=service)
    yield chrome
    chrome.quit()
