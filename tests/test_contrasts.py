"""The commands that hold cells against others, as a shell would call them."""

from __future__ import annotations

import csv
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import invatlas as ia
from invatlas.tasks.states import States
from invatlas.terminal import show_states
from shell import call, refuse


def test_counterfactual_takes_other_fits(fitted: Path, cells: Path, tmp_path: Path) -> None:
    change = ("--set", "disease=disease_1", "--samples", 2)
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    call("counterfactual", fitted, cells, *change, "-o", one)
    call("counterfactual", fitted, cells, *change, "-o", two, "--also", fitted)
    alone, twice = (ad.read_h5ad(file).layers["counterfactual"] for file in (one, two))
    np.testing.assert_allclose(alone, twice, rtol=1e-5)
    nobody = ("--also", tmp_path / "nobody")
    refuse("counterfactual", fitted, cells, *change, "-o", tmp_path / "x.h5ad", *nobody)


def test_counterfactual_equals_the_function(fitted: Path, cells: Path, tmp_path: Path) -> None:
    file = tmp_path / "changed.h5ad"
    change = ("--set", "disease=disease_1", "--set", "donor=reference")
    said = call("counterfactual", fitted, cells, *change, "-o", file, "--samples", 2)
    assert "Wrote 300 cells x 120 genes" in said
    written, wanted = ad.read_h5ad(file), {"disease": "disease_1", "donor": "reference"}
    direct = ia.counterfactual(ia.load(fitted), ad.read_h5ad(cells), wanted, samples=2)
    for layer in ("counterfactual", "counterfactual_sd"):
        np.testing.assert_array_equal(written.layers[layer], direct.layers[layer])
    again = ("counterfactual", fitted, cells, "-o", tmp_path / "other.h5ad")
    assert "--set gives donor twice" in refuse(*again, "--set", "donor=a", "--set", "donor=b")
    assert "no covariate of the atlas" in refuse(*again, "--set", "diet=rich")
    assert not (tmp_path / "other.h5ad").exists()


def test_differential_names_flags_and_spares_the_cells(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "cells.h5ad"
    kept.write_bytes(cells.read_bytes())
    ill, well = ("--group", "disease=disease_1"), ("--reference", "disease=healthy")
    ask = ("differential", fitted, kept, "-o", tmp_path / "genes.csv")
    for flags, message in (
        ((*ill, "--reference", "disease=well"), "--reference: no cell has disease 'well'"),
        (("--group", "disease=ill", *well), "--group: no cell has disease 'ill'"),
        ((*ill, *well, "--within", "cell_type=t"), "--within: no cell has cell_type 't'"),
        ((*ill, *well, "--within", "disease=healthy"), "what --within and --group ask for"),
    ):
        assert message in refuse(*ask, *flags)
    for command in (("differential", *ill, *well), ("states", "--cell-type", "type_1", *well)):
        asked = (command[0], fitted, kept, *command[1:], "--overwrite", "-o")
        assert "no ending .csv" in refuse(*asked, kept)
        assert "is a folder" in refuse(*asked, tmp_path)
    assert kept.read_bytes() == cells.read_bytes()
    assert "Wrote" in call(*ask, *ill, *well, "--within", "cell_type=type_1")
    assert len((tmp_path / "genes.csv").read_text().splitlines()) == 121


def test_differential_writes_a_table(fitted: Path, cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    asked = ("differential", fitted, cells, "--group", "disease=disease_1", "--output", table)
    asked = (*asked, "--within", "cell_type=type_1", "--threshold", "0.1")
    said = call(*asked, "--reference", "disease=healthy")
    assert "of 120 genes differ at a false discovery rate of 5 %" in said
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120 and {"gene", "log2_fold_change", "probability"} <= set(rows[0])
    assert "exists already" in refuse(*asked, "--reference", "disease=healthy")
    said = refuse(*asked, "--reference", "disease=flu", "--overwrite")
    assert "no cell has disease 'flu'" in said
    assert "--group 'disease' has no value" in refuse(
        "differential", fitted, cells, "--group", "disease", "--reference", "a=b", "-o", table,
        "--overwrite",
    )  # fmt: skip


def test_states_writes_the_state_of_each_cell(fitted: Path, cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "states.csv"
    asked = ("states", fitted, cells, "--reference", "healthy", "--output", table)
    said = call(*asked, "--cell-type", "type_1")
    assert "state_1" in said and "Wrote the states of" in said
    study = ad.read_h5ad(cells)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    wanted = study.obs_names[study.obs["cell_type"] == "type_1"]
    assert [row["cell"] for row in rows] == list(wanted) and rows[0]["state"].startswith("state_")
    assert "no cell has cell_type 'flu'" in refuse(*asked, "--cell-type", "flu", "--overwrite")
    found = ia.states(
        ia.load(fitted), study, cell_type="type_1", reference="healthy", disease="disease"
    )
    shares = pd.read_csv(tmp_path / "states_shares.csv")
    assert len(shares) == len(found.shares) and set(shares) == {*found.table, *found.shares}
    np.testing.assert_allclose(shares["share"], found.shares["share"], rtol=1e-5)
    table.unlink()
    assert "states_shares.csv exists already" in refuse(*asked, "--cell-type", "type_1")


def test_states_say_which_diseases_are_left_out_for_a_small_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["state_1", "state_2", "state_3"]
    table = pd.DataFrame(
        {"state": names, "cells": 9, "stability": 1.0, "diseases": "", "markers": ""}
    )
    shares = pd.DataFrame(
        {
            "state": names,
            "disease": "ill",
            "share": [0.853, 0.147, 0.1],
            "reference_share": [1.0, 0.0, 0.0],
            "false_discovery_rate": [2e-8, 2e-8, 0.2],
        }
    )
    show_states(States(pd.Series(dtype=str), table, shares, pd.Series(dtype=float)))
    said = capsys.readouterr().err
    assert "at least 15 points more of their donors' cells in the state than the reference" in said
    assert "state_2 is not said to be more in ill, for its size alone: 14.7 % against 0.0 %" in said
    assert said.count("is not said") == 1
