"""The pages of answers: what they say of figures and tables that could be misread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from invatlas.report.replies import show_abundance, show_counterfactual, show_explained


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Draw without a screen, and close what was drawn."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    yield
    pyplot.close("all")


def make_explained(counts: dict[str, tuple[int, int]]) -> SimpleNamespace:
    genes = pd.Index([f"gene {k}" for k in range(5)], name="gene")
    shifts = pd.DataFrame({name: np.arange(5.0) - k for k, name in enumerate(counts)}, genes)
    return SimpleNamespace(
        shifts=shifts,
        latents=pd.DataFrame({"z_I 1": np.ones(5)}, genes),
        carriers=pd.DataFrame({name: [1.0] for name in counts}, ["z_I 1"]),
        gene_sets=pd.DataFrame(),
        cells=pd.DataFrame(counts, ["cells", "cells_against"]).T.rename_axis("shift"),
    )


def list_drawn(html: str) -> list[str]:
    return re.findall(r'<svg role="img" aria-label="([^"]*)"', html)


def test_shifts_say_of_how_many_cells_they_are(tmp_path: Path) -> None:
    counts = {"in B": (400, 300), "in T": (29, 500), "in NK": (30, 31)}
    show_explained(tmp_path / "page.html", make_explained(counts))  # type: ignore[arg-type]
    html = (tmp_path / "page.html").read_text()
    assert list_drawn(html) == ["in B", "in T", "in NK"]
    assert "Learnt from 400 cells against 300." in html
    assert html.count("take it with caution") == 1
    assert "29 cells against 500. Fewer than 30 on a side: take it with caution." in html
    assert html.count(">few cells<") == 1 and "are drawn" not in html
    show_explained(tmp_path / "page.html", make_explained({"in NK": (1, 30)}))  # type: ignore[arg-type]
    assert "Learnt from 1 cell against 30." in (tmp_path / "page.html").read_text()


def test_shifts_of_the_fewest_cells_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    counts = {f"in type {k}": (10 * k, 500) for k in range(1, 16)}
    show_explained(tmp_path / "page.html", make_explained(counts))  # type: ignore[arg-type]
    html = (tmp_path / "page.html").read_text()
    assert list_drawn(html) == [f"in type {k}" for k in range(4, 16)]
    assert "The 12 shifts with most cells on their smaller side are drawn; the others" in html


def test_abundance_names_its_conditions(tmp_path: Path) -> None:
    table = pd.DataFrame({"cell_type": ["B", "T"], "log_density_ratio": [1.0, -1.0]})
    table = table.assign(false_discovery_rate=0.01)
    table.attrs["between"] = ["ctrl", "stim"]
    show_abundance(tmp_path / "page.html", table, "", [])
    html = (tmp_path / "page.html").read_text()
    assert "to the right stim has more, to the left ctrl" in html and "natural log" in html
    table.attrs = {}
    show_abundance(tmp_path / "page.html", table, "", [])
    assert "the second condition has more" in (tmp_path / "page.html").read_text()


def test_a_counterfactual_says_whose_means_are_shown(tmp_path: Path) -> None:
    names = [f"counterfactual_mean{end}" for end in ("", "_low", "_high")]
    var = pd.DataFrame(1.0, ["a", "b"], [*names, "measured_mean", "log2_fold_change"])
    obs = pd.DataFrame({"condition": ["stim", "stim", "ctrl", None, "stim"], "age": 30.0})
    obs.index = obs.index.astype(str)
    obs["counterfactual_supported"] = [True, True, True, True, False]
    predicted = AnnData(obs=obs, var=var.assign(false_discovery_rate=0.0))
    show_counterfactual(tmp_path / "page.html", predicted, {"condition": "stim"})
    html = (tmp_path / "page.html").read_text()
    assert "the 2 that have condition=stim already among them" in html
    assert "Bars are 90 % intervals of the mean" in html
    assert "Rates too small to be told from 0" in html
    predicted.var["false_discovery_rate"] = 0.1
    show_counterfactual(tmp_path / "page.html", predicted, {"condition": "ctrl+stim"})
    html = (tmp_path / "page.html").read_text()
    assert "already among them" not in html and "told from 0" not in html
    predicted.obs["condition"] = "alpha, beta"
    show_counterfactual(tmp_path / "page.html", predicted, {"condition": "alpha, beta"})
    html = (tmp_path / "page.html").read_text()
    assert "the 4 that have condition=alpha, beta already among them" in html


def test_a_heading_breaks_between_words(tmp_path: Path) -> None:
    table = pd.DataFrame({"cell_type": ["<b>"], "log_density_ratio": [1.0]})
    show_abundance(tmp_path / "page.html", table.assign(false_discovery_rate=1.0), "", [])
    html = (tmp_path / "page.html").read_text()
    assert '<button type="button">cell_<wbr>type</button>' in html
    assert 'data-name="cell_type"' in html and "<b>" not in html.split("<body>")[1][500:]
