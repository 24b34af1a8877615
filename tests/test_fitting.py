"""The command that fits an atlas, as a shell would call it."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import invatlas as ia
from invatlas.tasks.summary import describe_agreement
from invatlas.terminal import say
from invatlas.training.job import Job
from shell import COLUMNS, QUICK, call, refuse

QUICK_WITHOUT_GENES = QUICK[: QUICK.index("--genes")]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds"), row.pop("cells_per_second")
    return rows


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


def test_a_flag_of_its_own_wins_over_set(cells: Path, tmp_path: Path) -> None:
    both = ("--set", "seed=3", "--seed", 4, "--set", "likelihood=poisson")
    call("fit", cells, *COLUMNS, *QUICK, *both, "-o", tmp_path / "atlas")
    settings = ia.load(tmp_path / "atlas").settings
    assert (settings.seed, settings.likelihood, settings.hidden) == (4, "poisson", 16)


def test_fit_shows_an_audit_where_it_is_asked_for(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(ia.evaluate.leakage, permutations=1, boosted_permutations=1)
    monkeypatch.setattr(ia.evaluate, "leakage", quick)
    said = call("fit", cells, *COLUMNS, "--output", tmp_path / "atlas", *QUICK, "--audit")
    assert "cells the atlas was fitted to" in said and "new donors may be told more" in said
    page = (tmp_path / "atlas" / "report.html").read_text("utf-8")
    assert "What the latents tell of cells they were fitted to" in page


@pytest.mark.parametrize("share, enough", [(0.5, True), (0.1, False)])
def test_fit_audits_donors_held_out_where_they_are_enough(
    share: float, enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ia.simulate(
        cells=1200, genes=40, donors=40, batches=2, cell_types=2, diseases=2, truth=False
    )
    study.write_h5ad(tmp_path / "study.h5ad")
    asked = []

    def audit(atlas: ia.Atlas, adata: ad.AnnData, **choices: object) -> pd.DataFrame:
        asked.append(set(adata.obs["donor"]))
        return leakage(atlas, adata, permutations=1, boosted_permutations=1, **choices)

    leakage = ia.evaluate.leakage
    monkeypatch.setattr(ia.evaluate, "leakage", audit)
    flags = ("--technical", "batch", "--set", f"held_out={share}", "--audit")
    said = call("fit", tmp_path / "study.h5ad", *COLUMNS, *flags, *QUICK, "-o", tmp_path / "atlas")
    page = (tmp_path / "atlas" / "report.html").read_text("utf-8")
    held_out = ia.load(tmp_path / "atlas").record["held_out"]
    assert asked[0] == set(re.findall(r"donor_\d+", held_out)) and len(asked[0]) < 40
    assert ("donors held out of the fit" in said) is enough
    assert ("What the latents tell of donors held out of the fit" in page) is enough
    assert ("new donors may be told more" in said) is not enough
    assert len(asked) == (1 if enough else 2) and (len(asked[-1]) < 40) is enough


def test_fit_info_and_report_say_how_far_seeds_agree(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    output = tmp_path / "atlas"
    said = call("fit", cells, *COLUMNS, "--output", output, *QUICK, "--seeds", 2)
    told = describe_agreement(ia.load(output))
    assert "2 seeds agree on held-out cells" in told and "Within biology (30 cells less" in told
    assert told in said and told in call("info", output)
    assert told in (output / "report.html").read_text(encoding="utf-8")
    assert "seeds agree" not in call("info", fitted)
    assert "<dt>Seeds" not in (fitted / "report.html").read_text(encoding="utf-8")


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
    assert "give one of them" in refuse("fit", cells, *COLUMNS, "-o", tmp_path, *QUICK, *flags)
    call("fit", cells, *COLUMNS, "-o", tmp_path / "one", *QUICK_WITHOUT_GENES, *flags)
    (tmp_path / "genes.txt").unlink()
    call("fit", cells, "--config", tmp_path / "one" / "atlas.json", "-o", tmp_path / "two")
    assert ia.load(tmp_path / "two").genes == ia.load(tmp_path / "one").genes == tuple(wanted)
    assert history(tmp_path / "two") == history(tmp_path / "one")


@pytest.mark.parametrize("nearer", [("--genes", 60), ("--set", "genes=60")], ids=str)
@pytest.mark.parametrize("config", ["run.toml", "card/atlas.json"])
def test_a_number_of_genes_wins_over_a_list_in_the_config(
    cells: Path, tmp_path: Path, config: str, nearer: tuple[object, ...]
) -> None:
    (tmp_path / "genes.txt").write_text("gene_0002\ngene_0007\ngene_0018\ngene_0033\n")
    listed = f"genes_file = '{tmp_path / 'genes.txt'}'\n"
    (tmp_path / "run.toml").write_text(
        f'{listed}biological = ["cell_type"]\nhidden = 16\nepochs = 1\n'
    )
    call("fit", cells, "--config", tmp_path / "run.toml", "-o", tmp_path / "card")
    assert len(ia.load(tmp_path / "card").genes) == 4
    call("fit", cells, "--config", tmp_path / config, "-o", tmp_path / "atlas", *nearer)
    atlas = ia.load(tmp_path / "atlas")
    assert len(atlas.genes) == atlas.settings.genes == 60
    assert atlas.record["genes_given"] is False
    back = ("--genes-file", tmp_path / "genes.txt")  # and a list over a number
    call("fit", cells, "--config", tmp_path / "atlas" / "atlas.json", "-o", tmp_path / "b", *back)
    assert len(ia.load(tmp_path / "b").genes) == 4


def test_null_lets_the_data_choose_where_they_can(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'biological = ["cell_type"]\nhidden = 8\nepochs = 1\nminibatch_size = 64\n'
    )
    config = ("--config", tmp_path / "run.toml", "-o", tmp_path / "atlas")
    call("fit", cells, *config, "--set", "minibatch_size=null")
    settings = ia.load(tmp_path / "atlas").settings
    assert settings.minibatch_size is None and settings.epochs == 1
    said = refuse("fit", cells, *config, "--overwrite", "--set", "hidden=null")
    assert "hidden is None (NoneType); it takes int" in said


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
    "gene_names as a number": ('biological = ["cell_type"]\ngene_names = 3', "genes is 3 (int)"),
    "gene_names of numbers": (
        'biological = ["cell_type"]\ngene_names = [3]',
        "genes names 3 (int)",
    ),
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


def test_overwrite_replaces_an_atlas(cells: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        call("fit", cells, *COLUMNS, "-o", tmp_path / "a", *QUICK, "--seed", seed, "--overwrite")
    assert ia.load(tmp_path / "a").settings.seed == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


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
    assert "or fit without --strict." in said
    assert not output.exists() and [f.name for f in tmp_path.iterdir()] == ["study.h5ad"]
    said = call(*arguments)
    assert said.index("disease and [run]") < said.index("Laying cells out")
    assert "confounded" in said and "note: nested" in said
    assert "Warning: What disease=disease_1 does" not in said, "the table says it"
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


def test_fit_and_info_say_what_cannot_be_called_for_new_donors(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invatlas.training.calibration.EXPONENTS", (1e-3, 1e-3))
    said = call("fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *QUICK)
    told = "Values of cell_type, disease cannot be called for new donors"
    assert told in said and "more donors of each value" in said
    assert told in call("info", tmp_path / "atlas")
    assert told in (tmp_path / "atlas" / "report.html").read_text(encoding="utf-8")


def test_fit_takes_gene_names_from_a_column_and_repeats_it(cells: Path, tmp_path: Path) -> None:
    study = ad.read_h5ad(cells)
    symbols = tuple(study.var_names)
    study.var["symbol"] = study.var_names
    study.var_names = [f"ENSG{j:011d}" for j in range(120)]
    study.write_h5ad(tmp_path / "ids.h5ad")
    named = ("fit", tmp_path / "ids.h5ad", *COLUMNS, *QUICK, "--gene-column")
    assert "no column 'symbols'" in refuse(*named, "symbols", "-o", tmp_path / "none")
    call(*named, "symbol", "--seeds", 2, "-o", tmp_path / "one")
    assert ia.load(tmp_path / "one").genes == symbols
    config = ("--config", tmp_path / "one" / "atlas.json", "-o", tmp_path / "two")
    call("fit", tmp_path / "ids.h5ad", *config)
    assert ia.load(tmp_path / "two").genes == symbols
    latents = ad.read_h5ad(tmp_path / "two" / "latents.h5ad").obsm["X_invariant"]
    embedded = ia.embed(ia.load(tmp_path / "two"), study, gene_column="symbol")
    assert np.array_equal(latents, embedded)


def test_warnings_come_once_and_before_training(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ad.read_h5ad(cells)
    study.var_names = ["twin", "twin", *study.var_names[2:]]
    study.write_h5ad(tmp_path / "study.h5ad")
    run = Job.run

    def train(*arguments: object) -> object:
        say("Now training.")
        return run(*arguments)

    monkeypatch.setattr(Job, "run", train)
    asked = ("fit", tmp_path / "study.h5ad", "-b", "cell_type", "-o", tmp_path / "atlas")
    said = call(*asked, *QUICK, "--seeds", 2)
    for told in ("1 name of a gene comes more than once (twin)", "No technical column was named"):
        assert said.count(told) == 1 and said.index(told) < said.index("Now training.")


def test_one_epoch_is_one(cells: Path, tmp_path: Path) -> None:
    said = call("fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *QUICK, "--epochs", 1)
    assert "(1 epoch, " in said and "1 epoch, " in call("info", tmp_path / "atlas")
