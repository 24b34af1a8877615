"""The command line, as a shell would call it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from typer.testing import CliRunner, Result

import invatlas as ia
from invatlas.cli import app

QUICK = (
    "--set hidden=16 --set invariant_latents=2 --set spurious_latents=2 --epochs 2 --genes 0"
).split()
COLUMNS = "--biological cell_type --biological disease --technical donor".split()


def call(*arguments: object, status: int = 0) -> str:
    result: Result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"traceback for {arguments}") from result.exception
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def refuse(*arguments: object) -> str:
    """Call in vain; exactly one line says why."""
    said = call(*arguments, status=1)
    assert said.count("Error:") == 1
    return said


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds"), row.pop("cells_per_second")
    return rows


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, frozen_study: AnnData) -> Path:
    file = tmp_path_factory.mktemp("cells") / "study.h5ad"
    frozen_study[:300].copy().write_h5ad(file)
    return file


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, cells: Path) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "atlas"
    said = call("fit", cells, *COLUMNS, "--output", folder, *QUICK)
    assert "Fitted 300 cells x 120 genes" in said and "2 epochs" in said
    return folder


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


def test_fit_writes_the_six_files(fitted: Path, cells: Path) -> None:
    assert sorted(file.name for file in fitted.iterdir()) == [
        "atlas.json",
        "calibration.safetensors",
        "history.csv",
        "latents.h5ad",
        "model.safetensors",
        "report.html",
    ]
    latents = ad.read_h5ad(fitted / "latents.h5ad")
    assert latents.X is None and not latents.layers and latents.n_vars == 0
    assert {"X_invariant", "X_spurious"} <= set(latents.obsm)
    study = ad.read_h5ad(cells)
    assert list(latents.obs_names) == list(study.obs_names)
    assert list(latents.obs.columns) == list(study.obs.columns)
    assert np.array_equal(latents.obsm["X_invariant"], ia.embed(ia.load(fitted), study))
    assert "<html" in (fitted / "report.html").read_text(encoding="utf-8")[:500].lower()
    assert len(history(fitted)) == 2


def test_info_says_what_an_atlas_holds(fitted: Path) -> None:
    said = call("info", fitted)
    for word in ("300", "120", "cell_type", "disease_1", "healthy", "donor_01", "2 epochs"):
        assert word in said, word


def test_audit_says_what_the_latents_tell(fitted: Path, cells: Path, tmp_path: Path) -> None:
    asked = ("audit", fitted, cells, "--permutations", "2", "--most-cells", "200")
    said = call(*asked, "--json", tmp_path / "audit.json")
    for word in ("cell_type", "spurious", "boosted", "Wrote 27 answers"):
        assert word in said, word
    rows = json.loads((tmp_path / "audit.json").read_text())
    assert len(rows) == 3 * 3 * 3 and rows[0]["permutations"] == 2
    assert "exists already" in refuse(*asked, "--json", tmp_path / "audit.json")
    assert "cells is 0" in refuse("audit", fitted, cells, "--most-cells", "0")


def test_fit_shows_an_audit_where_it_is_asked_for(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(ia.evaluate.leakage, permutations=1, boosted_permutations=1)
    monkeypatch.setattr(ia.evaluate, "leakage", quick)
    call("fit", cells, *COLUMNS, "--output", tmp_path / "atlas", *QUICK, "--audit")
    assert "What the latents tell" in (tmp_path / "atlas" / "report.html").read_text("utf-8")


def test_map_adds_latents_to_cells_without_labels(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    study = ad.read_h5ad(cells)
    query = AnnData(study.X[:50], var=study.var[[]])[:, ::-1].copy()
    query.write_h5ad(tmp_path / "query.h5ad")
    said = call("map", fitted, tmp_path / "query.h5ad", "--output", tmp_path / "mapped.h5ad")
    assert "All 120 genes of the atlas are in the query" in said
    mapped = ad.read_h5ad(tmp_path / "mapped.h5ad")
    assert mapped.shape == (50, 120) and mapped.X.sum() == query.X.sum()
    expected = ia.embed(ia.load(fitted), study)[:50]
    np.testing.assert_allclose(mapped.obsm["X_invariant"], expected, rtol=1e-4, atol=1e-5)
    assert mapped.obsm["X_spurious"].shape == (50, 2)
    assert mapped.obsm["X_invariant_umap"].shape == (50, 2)
    page = (tmp_path / "mapped.html").read_text(encoding="utf-8")
    assert "query" in page and "50" in page and "not laid out" not in page
    again = ("map", fitted, tmp_path / "query.h5ad", "--output", tmp_path / "other.h5ad")
    call(*again, "--no-report")
    assert not (tmp_path / "other.html").exists()
    (tmp_path / "other.h5ad").unlink()
    (tmp_path / "other.html").write_text("mine")
    assert "other.html exists already" in refuse(*again)


def test_map_accounts_for_missing_genes_and_refuses_too_few(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    study, atlas = ad.read_h5ad(cells), ia.load(fitted)
    order = np.argsort(-atlas.gene_shares)
    names = np.array(atlas.genes)[order]
    study[:, names[5:]].copy().write_h5ad(tmp_path / "some.h5ad")
    said = call("map", fitted, tmp_path / "some.h5ad", "-o", tmp_path / "mapped.h5ad")
    assert "5 of 120 genes" in said and names[0] in said and "%" in said
    study[:, names[60:]].copy().write_h5ad(tmp_path / "few.h5ad")
    query, output = tmp_path / "few.h5ad", tmp_path / "no.h5ad"
    assert "Only 60 of 120 genes" in refuse("map", fitted, query, "-o", output)
    assert not output.exists()
    call("map", fitted, query, "-o", output, "--minimum-overlap", "0.01")


def test_map_takes_gene_names_from_a_column(fitted: Path, cells: Path, tmp_path: Path) -> None:
    query, output = tmp_path / "query.h5ad", tmp_path / "mapped.h5ad"
    study = ad.read_h5ad(cells)[:50].copy()
    expected = ia.embed(ia.load(fitted), study)
    study.var["symbol"] = [
        name.upper() if j % 2 else name for j, name in enumerate(study.var_names)
    ]
    study.var_names = [f"ENSG{j:011d}" for j in range(120)]
    study.write_h5ad(query)
    assert "pass gene_column='symbol'" in refuse("map", fitted, query, "-o", output)
    said = refuse("map", fitted, query, "-o", output, "--gene-column", "symbols")
    assert "no column 'symbols'" in said and "symbol" in said
    said = call("map", fitted, query, "-o", output, "--gene-column", "symbol")
    assert "All 120 genes of the atlas are in the query" in said and "60 by another case" in said
    assert np.array_equal(ad.read_h5ad(output).obsm["X_invariant"], expected)


def test_simulate_writes_a_study_and_the_same_one_for_one_seed(tmp_path: Path) -> None:
    small = ("--cells", 150, "--genes", 40, "--donors", 6)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        call("simulate", tmp_path / f"{name}.h5ad", *small, "--seed", seed)
    a, b, c = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in "abc")
    assert a.shape == (150, 40) and a.obs["donor"].nunique() == 6
    assert (a.X != b.X).nnz == 0 and (a.X != c.X).nnz > 0
    assert "z_invariant_true" in a.obsm and "differential_genes" in a.uns


def test_a_run_is_repeated_from_its_card(fitted: Path, cells: Path, tmp_path: Path) -> None:
    call("fit", cells, "--config", fitted / "atlas.json", "--output", tmp_path / "again")
    assert history(tmp_path / "again") == history(fitted)
    again, first = ia.load(tmp_path / "again"), ia.load(fitted)
    assert (again.settings, again.genes, again.schema) == (
        first.settings,
        first.genes,
        first.schema,
    )
    call("fit", cells, "--config", fitted / "atlas.json", "-o", tmp_path / "other", "--seed", 5)
    assert history(tmp_path / "other") != history(fitted)


def test_a_run_with_its_own_genes_is_repeated_from_its_card(cells: Path, tmp_path: Path) -> None:
    wanted = [f"gene_{i:04d}" for i in (90, 7, 33, 52, 18, 2, 61)]
    (tmp_path / "genes.txt").write_text("\n".join(wanted) + "\n\n")
    flags = ("--genes-file", tmp_path / "genes.txt")
    call("fit", cells, *COLUMNS, "-o", tmp_path / "one", *QUICK, *flags)
    (tmp_path / "genes.txt").unlink()
    call("fit", cells, "--config", tmp_path / "one" / "atlas.json", "-o", tmp_path / "two")
    assert ia.load(tmp_path / "two").genes == ia.load(tmp_path / "one").genes == tuple(wanted)
    assert history(tmp_path / "two") == history(tmp_path / "one")


def test_a_toml_file_takes_every_setting_and_flags_win(cells: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'biological = ["cell_type"]\ntechnical = ["batch"]\nhidden = 8\nepochs = 3\nseed = 4\n'
        "invariant_latents = 2\nspurious_latents = 1\ngenes = 0\ndependence_weight = 3\n"
        'likelihood = "poisson"\ntechnical_in_decoder = false\n'
    )
    flags = ("--epochs", 1, "--likelihood", "gaussian", "--technical", "donor")
    call("fit", cells, "--config", config, "-o", tmp_path / "atlas", *flags)
    atlas = ia.load(tmp_path / "atlas")
    found = atlas.settings
    assert (found.epochs, found.likelihood) == (1, "gaussian")
    assert (found.hidden, found.seed, found.dependence_weight) == (8, 4, 3.0)
    assert found.technical_in_decoder is False
    assert [c.name for c in atlas.schema.covariates] == ["cell_type", "donor"]


WRONG_CONFIG = {
    "an unknown setting": ("batch_size = 3", "Unknown setting batch_size"),
    "a wrong type": ('hidden = "many"', "hidden is 'many' (str); it takes int"),
    "a table": ("[settings]\nhidden = 3", "settings"),
    "no TOML": ("hidden = = 3", "no TOML file"),
    "columns as text": ('biological = "cell_type"', "list"),
    "columns as a number": ("biological = 3", "biological"),
    "a column as a number": ("biological = [3]", "biological"),
    "a layer as a number": ('biological = ["cell_type"]\nlayer = 3', "layer"),
    "genes_file as a number": ('biological = ["cell_type"]\ngenes_file = 3', "genes"),
    "an infinity": ("learning_rate = inf", "learning_rate is inf"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_CONFIG.values(), ids=WRONG_CONFIG)
def test_a_wrong_config_is_refused(cells: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    said = refuse("fit", cells, "--config", tmp_path / "run.toml", "-o", tmp_path / "atlas")
    assert message in said
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"run": 3}', '{"run": {"settings": 3}}', '{"run": {}}', "null"]
)
def test_a_card_that_is_none_is_refused_as_config(cells: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "atlas.json").write_text(text)
    said = refuse("fit", cells, "--config", tmp_path / "atlas.json", "-o", tmp_path / "atlas")
    assert "atlas.json" in said


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
    (("fit", "CELLS", *COLUMNS, "-o", "OUT", "--set", "hiden=3"), 1, "did you mean hidden?"),
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


def test_overwrite_replaces_an_atlas(cells: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        call("fit", cells, *COLUMNS, "-o", tmp_path / "a", *QUICK, "--seed", seed, "--overwrite")
    assert ia.load(tmp_path / "a").settings.seed == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


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


# Writes a line at the end of an epoch, so that a signal can be sent at a known time.
TELLING = """
import sys, time
from invatlas import cli
from invatlas.tasks import map
from invatlas.training import loop
original, seen = {place}, [0]

def telling(*args, **kwargs):
    seen[0] += 1
    if seen[0] == {number}:
        print("NOW", flush=True)
    time.sleep(0.05)
    return original(*args, **kwargs)

{place} = telling
sys.argv[0] = "invatlas"
cli.app()
"""


def interrupt_at(
    number: int, *arguments: object, place: str = "loop.objective_terms", times: int = 1
) -> tuple[int, str]:
    """Send SIGINT when the number-th minibatch is looked at."""
    code = TELLING.format(place=place, number=number)
    run = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # where the tests run in the background of a shell, SIGINT is ignored, also by children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    assert run.stdout.readline().strip() == "NOW"
    for _ in range(times):
        run.send_signal(signal.SIGINT)
        time.sleep(0.02 if times > 1 else 0)
    _, said = run.communicate(timeout=120)
    return run.returncode, said


def test_ctrl_c_after_the_first_epoch_leaves_a_usable_atlas(cells: Path, tmp_path: Path) -> None:
    flags = (*QUICK[:-4], "--genes", 0, "--epochs", 400, "--minibatch-size", 100)
    status, said = interrupt_at(9, "fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *flags)
    assert status == 130, said
    assert "Traceback" not in said
    assert said.count("Interrupted: keeping what was learnt") == 1
    assert "The calibration on values of donor that training never met was left out" in said
    atlas = ia.load(tmp_path / "atlas")
    assert atlas.record["training"]["stopped"] == "interrupted"
    assert 1 <= len(atlas.history) < 400
    assert np.isfinite(ia.embed(atlas, ad.read_h5ad(cells))).all()
    assert (tmp_path / "atlas" / "report.html").exists()


@pytest.mark.parametrize("place", ["loop.objective_terms", "map.lay_out"])
def test_a_second_ctrl_c_quits_at_once(cells: Path, tmp_path: Path, place: str) -> None:
    flags = (*QUICK[:-4], "--genes", 0, "--epochs", 9, "--minibatch-size", 100)
    number = 9 if place == "loop.objective_terms" else 1
    asked = ("fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *flags)
    status, said = interrupt_at(number, *asked, place=place, times=2)
    assert status == 130, said
    assert "Traceback" not in said and said.count("nothing was written") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_the_end_of_the_first_epoch_leaves_nothing(
    cells: Path, tmp_path: Path
) -> None:
    flags = (*QUICK[:-4], "--genes", 0, "--epochs", 400, "--minibatch-size", 20)
    status, said = interrupt_at(2, "fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *flags)
    assert status == 130, said
    assert "Traceback" not in said and "nothing was written" in said
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_run_is_json_that_any_reader_accepts(fitted: Path) -> None:
    def refuse_constant(name: str) -> None:
        raise AssertionError(name)

    card = json.loads((fitted / "atlas.json").read_text(), parse_constant=refuse_constant)
    assert card["run"]["technical"] == ["donor"]


def test_a_hierarchy_of_labels_comes_from_a_file_and_repeats_from_the_card(
    cells: Path, tmp_path: Path
) -> None:
    study = ad.read_h5ad(cells)
    kinds = study.obs["cell_type"].astype(str)
    study.obs["cell_type"] = kinds.where(np.arange(len(kinds)) % 4 > 0, "cell")
    study.write_h5ad(tmp_path / "coarse.h5ad")
    finer = sorted(kinds.unique())
    (tmp_path / "tree.toml").write_text(f"[cell_type]\ncell = {finer}\n", encoding="utf-8")
    first, again = tmp_path / "first", tmp_path / "again"
    tree = ("--hierarchy", tmp_path / "tree.toml")
    call("fit", tmp_path / "coarse.h5ad", *COLUMNS, *tree, "--output", first, *QUICK)
    covariate = ia.load(first).schema.biological[0]
    assert covariate.categories == tuple(finer)
    assert covariate.groups == (("cell", tuple(finer)),)
    card = ("--config", first / "atlas.json")
    call("fit", tmp_path / "coarse.h5ad", *card, "--output", again)
    assert ia.load(again).schema == ia.load(first).schema
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_hierarchy_of_an_absent_value_is_explained(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "tree.toml").write_text('[cell_type]\ntype_1 = ["nobody"]\n', encoding="utf-8")
    tree = ("--hierarchy", tmp_path / "tree.toml")
    said = call("fit", cells, *COLUMNS, *tree, "--output", tmp_path / "atlas", *QUICK, status=1)
    assert "none of them is a value of the column" in said
    assert not (tmp_path / "atlas").exists()


def test_map_adapts_a_copy_and_leaves_the_atlas_alone(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    query = ad.read_h5ad(cells)[:80].copy()
    query.obs["donor"] = "newcomer"
    query.write_h5ad(tmp_path / "query.h5ad")
    before = {file.name: file.read_bytes() for file in fitted.iterdir()}
    asked = ("map", fitted, tmp_path / "query.h5ad", "--output", tmp_path / "mapped.h5ad")
    assert "--adapt takes another folder" in refuse(*asked, "--adapt", fitted, "--overwrite")
    said = call(*asked, "--adapt", tmp_path / "adapted")
    assert "Wrote the adapted atlas" in said
    assert {file.name: file.read_bytes() for file in fitted.iterdir()} == before
    adapted = ia.load(tmp_path / "adapted")
    assert adapted.schema.technical[0].categories[-1] == "newcomer"
    assert "newcomer" in call("info", tmp_path / "adapted")


def test_map_adapts_to_nothing_new_with_an_error(fitted: Path, cells: Path, tmp_path: Path) -> None:
    asked = ("map", fitted, cells, "--output", tmp_path / "mapped.h5ad")
    assert "nothing to adapt to" in refuse(*asked, "--adapt", tmp_path / "adapted")
    assert not list(tmp_path.iterdir())


def test_confounding_is_told_before_training_kept_and_refused_if_strict(
    cells: Path, tmp_path: Path
) -> None:
    study = ad.read_h5ad(cells)
    study.obs["[run]"] = study.obs["disease"].astype(str) + " run"
    study.write_h5ad(tmp_path / "study.h5ad")
    output, columns = tmp_path / "atlas", (*COLUMNS, "--technical", "[run]")
    arguments = ("fit", tmp_path / "study.h5ad", *columns, "-o", output, *QUICK)
    said = refuse(*arguments, "--strict")
    assert "The design is confounded. What disease=disease_1 does cannot be told from" in said
    assert not output.exists() and [f.name for f in tmp_path.iterdir()] == ["study.h5ad"]
    said = call(*arguments)
    assert said.index("disease and [run]") < said.index("Laying cells out")
    assert "confounded" in said and "note: nested" in said
    kinds = [
        row["kind"]
        for row in json.loads((output / "atlas.json").read_text())["record"]["confounding"]
    ]
    assert kinds == ["full", "nested"]
    said = call("info", output)
    assert "confounded disease and [run]" in said and "note: nested disease and donor" in said
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "What this study cannot tell" in page
    assert page.count("What disease=disease_1 does cannot be told") >= 2, "a warning and a row"
    call("fit", cells, *COLUMNS, "-o", tmp_path / "sound", *QUICK, "--strict")


def test_a_simulated_query_is_mapped(tmp_path: Path) -> None:
    study, query = tmp_path / "study.h5ad", tmp_path / "query.h5ad"
    call("simulate", study, "--query", query, "--cells", 300, "--genes", 60)
    call("fit", study, *COLUMNS, "-o", tmp_path / "atlas", *QUICK)
    call("map", tmp_path / "atlas", query, "-o", tmp_path / "m.h5ad", "--threads", 1)
    assert ad.read_h5ad(tmp_path / "m.h5ad").obs["predicted_cell_type"].notna().all()


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
