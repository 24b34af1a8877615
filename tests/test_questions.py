"""The commands that ask an atlas, as a shell would call them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import invatlas as ia
from invatlas.tasks import donors
from invatlas.tasks.donors import Donors
from invatlas.tasks.samples import Samples
from shell import call


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, frozen_study: AnnData) -> Path:
    place = tmp_path_factory.mktemp("cells") / "study.h5ad"
    frozen_study.write_h5ad(place)
    return place


def test_explain_writes_genes_and_gene_sets(saved: Path, tmp_path: Path, atlas: ia.Atlas) -> None:
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("FIRST\t\t" + "\t".join(atlas.genes[:9]))
    said = call("explain", saved, "-o", tmp_path / "why.csv", "--gene-sets", gmt)
    assert "disease: disease_1 against healthy in type_2" in said and "FIRST" in said
    table = pd.read_csv(tmp_path / "why.csv", index_col="gene")
    expected = ia.explain(atlas, gene_sets=gmt)
    np.testing.assert_allclose(table[list(expected.shifts)], expected.shifts, atol=1e-6)
    scored = pd.read_csv(tmp_path / "why_gene_sets.csv")
    np.testing.assert_allclose(scored["t"], expected.gene_sets["t"], rtol=1e-4)


def test_donors_and_abundance_write_tables(
    saved: Path, cells: Path, tmp_path: Path, atlas: ia.Atlas, study: AnnData
) -> None:
    said = call("donors", saved, cells, "-o", tmp_path / "who.csv", "--drawings", 5)
    assert "healthy: 3 samples in 1 stratum." in said
    assert said.count("Ask donors that were all kept") == 1
    expected = ia.donors(atlas, study, drawings=5)
    assert pd.read_csv(tmp_path / "who.csv")["sample"].tolist() == list(expected.table["sample"])
    assert len(pd.read_csv(tmp_path / "who_strata.csv")) == 6
    told = tmp_path / "where.csv"
    said = call("abundance", saved, cells, "-o", told, "--between", "healthy", "disease_1")
    assert said.count("Ask donors that were kept from the fit") == 1
    found = pd.read_csv(told, index_col="cell")["log_density_ratio"]
    wanted = ia.abundance(atlas, study, between=("healthy", "disease_1"))["log_density_ratio"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_donors_says_why_distances_are_zero_and_names_its_second_table(
    saved: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("donors", saved, cells, "-o", tmp_path / "who.csv", "--drawings", 5, "--overwrite")
    compare = donors.compare_samples

    def compare_alike(samples: Samples, *choices: Any) -> Donors:
        return compare(replace(samples, z=np.ones_like(samples.z)), *choices)

    with monkeypatch.context() as patch:
        patch.setattr(donors, "compare_samples", compare_alike)
        assert "lie no further from it than so few cells lie apart by chance" in call(*asked)
    z = np.random.default_rng(0).normal(size=(40, 3)) + np.arange(4).repeat(10)[:, None] * 9
    table = pd.DataFrame({"sample": list("abcd"), "donor": list("abcd"), "condition": "all"})
    sample = np.arange(4).repeat(10)
    far = Samples(z, np.arange(40), sample, 0 * sample, table, ["T"])
    monkeypatch.setattr(donors, "gather_samples", lambda *_: far)
    assert "by chance" not in call(*asked)
    assert "NAME_strata.csv" in call("donors", "--help")


def test_design_ranks_the_candidates_of_a_file(
    saved: Path, cells: Path, tmp_path: Path, study: AnnData
) -> None:
    candidates = tmp_path / "candidates.csv"
    study.obs[["cell_type", "disease"]].drop_duplicates().to_csv(candidates, index=False)
    asked = ("design", saved, "-o", tmp_path / "next.csv", "--candidates", candidates)
    said = call(*asked, "--budget", 2, "--reference", cells)
    found = pd.read_csv(tmp_path / "next.csv")
    assert len(found) == 2 and f"1. {found['cell_type'][0]}, {found['disease'][0]}:" in said


def test_every_question_has_a_page(
    saved: Path, cells: Path, tmp_path: Path, study: AnnData
) -> None:
    candidates = tmp_path / "candidates.csv"
    study.obs[["cell_type", "disease"]].drop_duplicates().to_csv(candidates, index=False)
    ill, well = ("--group", "disease=disease_1"), ("--reference", "disease=healthy")
    for command, flags, words in (
        ("counterfactual", (cells, "--set", "disease=healthy", "--samples", 2), "measured_mean"),
        ("differential", (cells, *ill, *well), "disease=disease_1 against disease=healthy"),
        ("states", (cells, "--cell-type", "type_1", "--reference", "healthy"), "state_1"),
        ("explain", (), "Latents that carry the shifts"),
        ("donors", (cells, "--drawings", 5), "donor_01"),
        ("abundance", (cells,), "cells lie where densities differ"),
        ("design", ("--candidates", candidates, "--budget", 2), "2 combinations tell"),
    ):
        ending = ".h5ad" if command == "counterfactual" else ".csv"
        asked = (command, saved, *flags, "-o", tmp_path / f"{command}{ending}", "--report")
        assert "no ending .html" in call(*asked, tmp_path / "page.txt", status=1)
        page = tmp_path / f"{command}.html"
        assert f"Wrote {page}." in call(*asked, page)
        html = page.read_text(encoding="utf-8")
        assert words in html and "<svg" in html and "sortable" in html, command


def test_mistakes_are_explained(saved: Path, cells: Path, tmp_path: Path) -> None:
    asked = ("design", saved, "--budget", 1, "-o")
    assert "no ending .csv" in call(*asked, tmp_path / "next.txt", status=1)
    assert "Every combination" in call(*asked, tmp_path / "next.csv", status=1)
    absent = call(*asked, tmp_path / "next.csv", "--candidates", tmp_path / "no.csv", status=1)
    assert "cannot be read as a table" in absent
    (tmp_path / "who_strata.csv").write_text("mine")
    said = call("donors", saved, cells, "-o", tmp_path / "who.csv", status=1)
    assert "exists already" in said and not (tmp_path / "who.csv").exists()
