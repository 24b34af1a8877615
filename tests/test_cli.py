"""The command line, as a shell would call it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import anndata as ad
import pytest
import typer

import invatlas as ia
from invatlas.errors import InvatlasError
from invatlas.terminal import explained
from shell import COLUMNS, QUICK, call, refuse


def test_info_says_what_an_atlas_holds(fitted: Path) -> None:
    said = call("info", fitted)
    for word in ("300", "120", "cell_type", "disease_1", "healthy", "donor_01", "2 epochs"):
        assert word in said, word


def test_audit_says_what_the_latents_tell(fitted: Path, cells: Path, tmp_path: Path) -> None:
    asked = ("audit", fitted, cells, "--permutations", "2", "--most-cells", "200")
    said = call(*asked, "--json", tmp_path / "audit.json")
    assert said.index("Balanced accuracy of each probe") < said.index("spurious")
    assert "the 95 % quantile once values are exchanged" in said
    for word in ("cell_type", "spurious", "boosted", "Wrote 27 answers"):
        assert word in said, word
    rows = json.loads((tmp_path / "audit.json").read_text())
    assert len(rows) == 3 * 3 * 3 and rows[0]["permutations"] == 2
    assert "exists already" in refuse(*asked, "--json", tmp_path / "audit.json")
    assert "cells is 0" in refuse("audit", fitted, cells, "--most-cells", "0")


def test_simulate_writes_a_study_and_the_same_one_for_one_seed(tmp_path: Path) -> None:
    small = ("--cells", 150, "--genes", 40, "--donors", 6)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        call("simulate", tmp_path / f"{name}.h5ad", *small, "--seed", seed)
    a, b, c = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in "abc")
    assert a.shape == (150, 40) and a.obs["donor"].nunique() == 6
    assert (a.X != b.X).nnz == 0 and (a.X != c.X).nnz > 0
    assert "z_invariant_true" in a.obsm and "differential_genes" in a.uns


def test_files_that_are_absent_or_no_h5ad_are_refused(
    cells: Path, fitted: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.h5ad").write_text("once upon a time")
    (tmp_path / "folder.json").mkdir()
    out, nowhere, text = tmp_path / "out", tmp_path / "nowhere.h5ad", tmp_path / "text.h5ad"
    assert "no file" in refuse("fit", nowhere, *COLUMNS, "-o", out)
    assert "cannot be read as h5ad" in refuse("fit", text, *COLUMNS, "-o", out)
    assert "is a folder" in refuse("fit", tmp_path, *COLUMNS, "-o", out)
    mapped = tmp_path / "mapped.h5ad"
    assert "cannot be read as h5ad" in refuse("map", fitted, text, "-o", mapped)
    assert "no file" in refuse("map", fitted, nowhere, "-o", mapped)
    assert "holds no atlas" in refuse("map", tmp_path, cells, "-o", mapped)
    assert "first argument" in refuse("map", cells, fitted, "-o", mapped)
    assert "holds no atlas" in refuse("info", tmp_path)
    for config in ("nowhere.toml", "nowhere.json", "folder.json", "."):
        refuse("fit", cells, "--config", tmp_path / config, "-o", out)
    refuse("fit", cells, *COLUMNS, "--genes-file", tmp_path / "nowhere.txt", "-o", out)
    assert not out.exists() and not mapped.exists()


WRONG_FLAGS = [
    (("fit", "CELLS", "-b", "cell_typ", "-o", "OUT"), 1, "Did you mean 'cell_type'"),
    (("fit", "CELLS", "-o", "OUT"), 1, "No biological covariate"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--layer", "raw"), 1, "no layer 'raw'"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--likelihood", "zinb"), 1, "likelihood is 'zinb'"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--set", "hidden"), 1, "name=value"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--set", "hiden=3"), 1, "Did you mean 'hidden'?"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--set", "hiden=3"), 1, "the settings are genes, "),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--set", "hidden=true"), 1, "hidden is True"),
    (
        ("fit", "CELLS", *COLUMNS, "-o", "OUT", "--set", "gradient_norm=Infinity"),
        1,
        "gradient_norm is inf",
    ),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--epochs", "0"), 1, "epochs is 0"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--epochs", "many"), 2, "--epochs"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--colour", "red"), 2, "--colour"),
    (("fit", "CELLS", *COLUMNS), 2, "--output"),
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--threads", "0"), 2, "--threads"),
    (("map", "ATLAS", "CELLS", "-o", "OUT", "--minimum-overlap", "2"), 2, "--minimum-overlap"),
    (("simulate", "FILE", "--cells", "-3"), 1, "cells"),
    (("simulate", "FILE", "--correlation", "2"), 1, "correlation"),
    (("simulate", "FILE", "--query", "FILE"), 1, "another file"),
    (("simulate", "OUT"), 1, "no ending .h5ad"),
    (("map", "ATLAS", "CELLS", "-o", "OUT"), 1, "no ending .h5ad"),
    (("map", "ATLAS", "CELLS", "-o", "CELLS", "--overwrite"), 1, "is the query itself"),
    (("fit", "CELLS", *COLUMNS, "-o", "/proc/foo/bar"), 1, "cannot be written"),
    (("map", "ATLAS", "CELLS", "-o", "/proc/foo/bar.h5ad"), 1, "cannot be written"),
    (("simulate", "/proc/foo/bar.h5ad"), 1, "cannot be written"),
    (("explain", "ATLAS"), 2, "explain"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), WRONG_FLAGS)
def test_wrong_flags_are_refused_and_nothing_is_written(
    arguments: tuple[str, ...],
    status: int,
    message: str,
    cells: Path,
    fitted: Path,
    tmp_path: Path,
) -> None:
    places = {"CELLS": cells, "ATLAS": fitted, "OUT": tmp_path / "out"} | {
        "FILE": tmp_path / "a.h5ad"
    }
    said = call(*(places.get(a, a) for a in arguments), status=status)
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept_unless_told_otherwise(
    cells: Path, fitted: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.h5ad").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    there, folder = tmp_path / "there.h5ad", tmp_path / "folder"
    assert "--overwrite" in refuse("simulate", there, "--cells", 150)
    assert "--overwrite" in refuse("map", fitted, cells, "-o", there)
    assert "--overwrite" in refuse("fit", cells, *COLUMNS, "-o", folder, *QUICK)
    assert "--overwrite" in refuse("fit", cells, *COLUMNS, "-o", fitted, *QUICK)
    assert there.read_text() == "mine"
    said = refuse("fit", cells, *COLUMNS, "-o", folder, *QUICK, "--overwrite")
    assert "mine.txt" in said and "Laying cells" not in said, "refused before the work"
    for command in (("map", fitted, cells, "-o"), ("simulate",)):
        said = refuse(*command, folder, "--overwrite")
        refuse(*command, there / "below.h5ad")
    assert (folder / "mine.txt").read_text() == "mine"
    said = refuse("fit", cells, *COLUMNS, "-o", there / "atlas", *QUICK)
    assert "Laying cells" not in said, "refused before the work"
    call("simulate", there, "--cells", 150, "--genes", 20, "--overwrite")
    assert ad.read_h5ad(there).n_obs == 150
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "there.h5ad"]


def start(*arguments: object) -> subprocess.Popen[str]:
    code = "import sys; from invatlas.cli import app; sys.argv[0] = 'invatlas'; app()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_real_process_says_help_and_version_of_commands() -> None:
    run = start("--help")
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert all(command in out for command in ("fit", "map", "info", "simulate"))
    assert call("--version") == f"invatlas {ia.__version__}"
    help_of_fit = call("fit", "--help")
    assert "[finer values]" in help_of_fit and "2000" in help_of_fit


def test_every_setting_is_listed_with_its_default() -> None:
    listed = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w\S*)` \|", listed, re.M))
    assert rows == {name: json.dumps(v).strip('"') for name, v in asdict(ia.Settings()).items()}
    for text in re.findall(r"^    \w[\w, ]*\n((?: {8}.*\n)+)", ia.Settings.__doc__ or "", re.M):
        assert " ".join(text.replace("``", "`").split()) in listed


def test_what_is_known_of_an_atlas_fits_a_few_lines(fitted: Path) -> None:
    said = repr(ia.load(fitted))
    assert said.count("\n") < 12 and "donor_01" in said and "tensor" not in said


def test_nothing_of_other_packages_is_said(cells: Path, fitted: Path, tmp_path: Path) -> None:
    study = ad.read_h5ad(cells)
    study.var_names = ["gene_0002", *study.var_names[1:]]
    study.write_h5ad(tmp_path / "twice.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call("fit", tmp_path / "twice.h5ad", *COLUMNS, "-o", tmp_path / "atlas", *QUICK)
        call("map", fitted, tmp_path / "twice.h5ad", "-o", tmp_path / "mapped.h5ad")


@pytest.mark.parametrize(
    ("told", "spelled"),
    [
        ("pass gene_column='symbol'.", "pass --gene-column symbol."),
        ("pass gene_column='Gene name'.", "pass --gene-column 'Gene name'."),
        ("pass layer='raw,all'.", "pass --layer raw,all."),
        ("pass layer='counts (raw)'.", "pass --layer 'counts (raw)'."),
        ('pass layer="it\'s".', "pass --layer 'it'\"'\"'s'."),
        ("Column 'gene_column' is there; leave gene_column out.", None),
        ("or fit without strict=True.", "or fit without --strict."),
        ("A strict reader.", "A strict reader."),
    ],
)
def test_names_of_arguments_are_spelled_as_flags(
    told: str, spelled: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit), explained(("strict",)):
        raise InvatlasError(told)
    expected = spelled or "Column 'gene_column' is there; leave --gene-column out."
    assert capsys.readouterr().err == f"Error: {expected}\n"


@pytest.mark.parametrize("asked", [(), ("fit",), ("map",), ("grn",)], ids=str)
def test_help_cuts_no_name_and_no_sentence(
    asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = call(*asked, "--help")
    assert "…" not in said and "..." not in said.replace("[ARGS]...", "")
    if asked == ("fit",):
        assert "--minibatch-size" in said and "column:continuous" in said
        assert "--no-technical-in-decoder" in said and "= [finer values]" in said
