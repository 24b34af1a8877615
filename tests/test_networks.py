"""The commands about networks of genes, as a shell would call them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import invatlas as ia
import shell
from invatlas import folders
from invatlas.errors import DataError

QUICK = "--set steps=20 --set members=2 --set refine_steps=2".split()
COLUMNS = "--time time --lineage series --interventions target --experiment experiment".split()
call, refuse = partial(shell.call, "grn"), partial(shell.refuse, "grn")


@pytest.fixture(scope="module")
def expression(tmp_path_factory: pytest.TempPathFactory, frozen_expression: AnnData) -> Path:
    file = tmp_path_factory.mktemp("expression") / "expression.h5ad"
    frozen_expression.write_h5ad(file)
    return file


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, network: ia.grn.Network) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "grn"
    ia.grn.save(network, folder)
    return folder


def test_every_setting_is_listed_with_its_default() -> None:
    listed = (Path(__file__).parents[1] / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\S+)` \|", listed, re.M))
    defaults = asdict(ia.grn.NetworkSettings())
    assert rows == {name: json.dumps(value) for name, value in defaults.items()}


def write(adata: AnnData, folder: Path) -> Path:
    file = folder / "changed.h5ad"
    adata.write_h5ad(file)
    return file


def test_fit_says_what_was_read_and_found_and_equals_the_function(
    expression: Path, network: ia.grn.Network, tmp_path: Path
) -> None:
    cost = ("--set", "off_target_cost=0.5")
    said = call("fit", expression, *COLUMNS, *QUICK, *cost, "--output", tmp_path / "grn")
    for words in (
        "Read 27 rows x 5 genes.",
        "2 series of 8 times. In 2",
        "In 2 of them unknown genes may be perturbed during the first half.",
        "11 steady states; 5 knockout, 5 knockdown, 1 without intervention.",
        "The 10 strongest of 20 possible edges, by the size of the weight, whatever its sign:",
        "1 gene may have been moved by interventions not meant for it; ",
        f"Wrote {tmp_path / 'grn'} after",
    ):
        assert words in said, words
    assert len(network.off_targets) == 1
    found = ia.grn.load(tmp_path / "grn")
    assert found.settings == network.settings
    pd.testing.assert_frame_equal(ia.grn.edges(found), ia.grn.edges(network), check_exact=True)
    first = ia.grn.edges(network).iloc[0]
    assert re.search(rf"stability {first['regulator']} {first['target']} ", said)


def test_fit_reads_regulators_a_prior_and_cells_in_pseudotime(
    tmp_path: Path, frozen_expression: AnnData
) -> None:
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {
            "pseudotime": rng.random(120),
            "branch": ["l", "r"] * 60,
            "who": ["x", "x", "y", "y"] * 30,
        },
        index=[f"cell_{i}" for i in range(120)],
    )
    counts = rng.poisson(np.outer(1 + obs["pseudotime"], [9, 7, 5, 3, 8]))
    cells = AnnData(counts.astype("f4"), obs=obs, var=frozen_expression.var)
    cells.varm["motifs"] = np.eye(5)[::-1].copy()
    file = write(cells, tmp_path)
    (tmp_path / "tf.txt").write_text("\ufeffA\n# of the liver\nB\n\n", encoding="utf-8")
    (tmp_path / "prior.csv").write_text("regulator,target,sign\nA,C,+\nB,X,-\n")
    asked = ("fit", file, "--time", "pseudotime", "--lineage", "branch", "--donor", "who", *QUICK)
    chosen = ("--regulators", tmp_path / "tf.txt", "--bins", 4, "--seed", 3, "--overwrite", "-o")
    grn = tmp_path / "grn"
    said = call(*asked, *chosen, grn, "--prior-network", tmp_path / "prior.csv")
    for words in (
        "Read 120 rows x 5 genes, as log1p of counts per 10,000.",
        "4 series of 3 times, means of 120 rows. Genes",
        "Genes that may regulate: 2.",
        "Edges believed beforehand: 1.",
        "Warning: Left out of the prior network: 1 of 2 edges with a gene that was not measured",
        "The 8 strongest of 8 possible edges, by the size of the weight",
    ):
        assert words in said, words
    found = ia.grn.load(grn)
    assert found.lineages == ("l", "r") and found.settings.seed == 3
    assert set(ia.grn.edges(found)["regulator"]) == {"A", "B"}
    assert "beforehand: 2." in call(*asked, *chosen, grn, "--prior-network", "motifs")
    assert "varm has no prior network 'motif'" in refuse(
        *asked, *chosen, grn, "--prior-network", "motif"
    )
    assert "cannot be read as a table" in refuse(
        *asked, *chosen, grn, "--prior-network", tmp_path / "absent.csv"
    )
    assert ia.grn.load(grn).settings.seed == 3, "what is refused replaces nothing"


def test_edges_writes_the_table_and_leaves_unlikely_ones_out(
    fitted: Path, network: ia.grn.Network, tmp_path: Path
) -> None:
    expected = ia.grn.edges(network)
    assert "Wrote 20 of 20 possible" in call("edges", fitted, "-o", tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text() == (fitted / "edges.csv").read_text()
    found = pd.read_csv(tmp_path / "all.csv")
    assert list(found) == ["regulator", "target", "sign", "weight", "probability", "stability"]
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-6)
    assert "largest weight first whatever its sign, which is no order of probability" in call(
        "edges", "--help"
    )
    assert (np.diff(found["weight"].abs()) <= 0).all() and (found["weight"] < 0).any()
    middle = float(expected["probability"].median())
    call("edges", fitted, "-o", tmp_path / "few.csv", "--probability", middle)
    few = pd.read_csv(tmp_path / "few.csv")
    assert len(few) == (expected["probability"] >= middle).sum() < 20
    assert "exists already" in refuse("edges", fitted, "-o", tmp_path / "few.csv")


def test_knockout_equals_the_function(
    fitted: Path, network: ia.grn.Network, tmp_path: Path
) -> None:
    both = ("knockout", fitted, "--gene", "A", "--gene", "B")
    assert "A+B: knockout. At rest:" in call(*both, "-o", tmp_path / "out.h5ad")
    found, expected = ad.read_h5ad(tmp_path / "out.h5ad"), ia.grn.intervene(network, ["A", "B"])
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.layers["sd"], expected.layers["sd"])
    np.testing.assert_array_equal(found.obs["time"], expected.obs["time"])
    assert list(found.obs["state"]) == list(expected.obs["state"])
    partly = ("--kind", "knockdown", "--left", 0.3, "--method", "rk4", "--overwrite")
    said = call(*both, *partly, "-o", tmp_path / "out.h5ad")
    assert "A+B: 0.3 of its production left." in said
    expected = ia.grn.intervene(network, ["A", "B"], left=0.3, method="rk4")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "out.h5ad").X, expected.X)


def test_a_knockout_file_says_what_it_holds(
    fitted: Path, network: ia.grn.Network, tmp_path: Path
) -> None:
    ask = ("knockout", fitted, "-o", tmp_path / "out.h5ad", "--overwrite")
    called = ("--gene", "A", "--gene", "C", "--gene", "A")
    for flags, said, kind, left in (
        ((), "A+C: knockout. At", "knockout", 0.0),
        (("--kind", "knockdown"), "A+C: knockdown. At", "knockdown", 0.5),
        (("--left", 0.3), "A+C: 0.3 of its production left. At", "knockdown", 0.3),
        (("--left", 50), "A+C: 50 times its production. At", "overexpression", 50.0),
    ):
        assert said in call(*ask, *called, *flags)
        told = ad.read_h5ad(tmp_path / "out.h5ad").uns["intervention"]
        assert list(told.pop("genes")) == ["A", "C"]
        assert told == {
            "kind": kind,
            "left": left,
            "lineage": network.lineages[0],
            "method": "dopri5",
            "scale": "given",
        }


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("knockout", 0.3),
        ("knockdown", 1),
        ("knockdown", 50),
        ("overexpression", 1),
        ("overexpression", 0.3),
    ],
)
def test_a_share_that_is_no_such_kind_is_refused(
    fitted: Path, tmp_path: Path, kind: str, left: float
) -> None:
    ask = ("knockout", fitted, "-o", tmp_path / "out.h5ad", "--gene", "A", "--left", left)
    assert f"--left is {left}, no {kind}: 0 is a knockout" in refuse(*ask, "--kind", kind)
    if left == 1:
        assert "--left is 1, no intervention" in refuse(*ask)
    assert not list(tmp_path.iterdir())


def test_changes_that_are_next_to_nothing_are_not_told(
    network: ia.grn.Network, tmp_path: Path
) -> None:
    ask = ("knockout", tmp_path / "grn", "--gene", "A", "-o", tmp_path / "out.h5ad", "--overwrite")
    ia.grn.save(network, tmp_path / "grn")
    told = re.findall(r"([B-E]) [+-]\d", call(*ask))
    assert told, "or the test tells nothing"
    usual = network.usual.copy()
    usual["ABCDE".index(told[0])] = 1e5
    ia.grn.save(replace(network, usual=usual), tmp_path / "grn", overwrite=True)
    assert re.findall(r"([B-E]) [+-]\d", call(*ask)) == told[1:]
    shut = [replace(member, gates=0 * member.gates) for member in network.members]
    ia.grn.save(replace(network, members=tuple(shut)), tmp_path / "grn", overwrite=True)
    assert "A: knockout. At rest it moves no other gene." in call(*ask)


def test_nothing_is_written_into_the_folder_of_a_network(fitted: Path) -> None:
    before = {file: file.read_bytes() for file in fitted.iterdir()}
    for arguments in (
        ("edges", fitted, "-o", fitted / "edges.csv", "--overwrite", "--probability", 0.9),
        ("edges", fitted, "-o", fitted / "deeper" / "edges.csv"),
        ("knockout", fitted, "--gene", "A", "-o", fitted / ".." / fitted.name / "out.h5ad"),
    ):
        assert "is inside the folder of the network" in refuse(*arguments)
    assert {file: file.read_bytes() for file in fitted.iterdir()} == before


def test_cells_taken_for_steady_states_are_warned_of_before_the_fit(
    expression: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_nothing(*_: object, **__: object) -> None:
        raise DataError("here the fit begins")

    monkeypatch.setattr("invatlas.grn.network.fit_experiments", fit_nothing)
    said = call("fit", expression, "-o", tmp_path / "grn", status=1)
    assert said.index("27 steady states.") < said.index("with --time time ")


def test_one_of_a_thing_is_told_in_the_singular(frozen_expression: AnnData, tmp_path: Path) -> None:
    one = frozen_expression[[*range(8), 16]][:, ["A", "B"]].copy()
    (tmp_path / "tf.txt").write_text("A")
    ask = ("fit", write(one, tmp_path), *COLUMNS, *QUICK, "-o", tmp_path / "grn")
    said = call(*ask, "--regulators", tmp_path / "tf.txt")
    for words in (
        "1 series of 8 times.",
        " 1 steady state. Genes",
        "1 strongest of 1 possible edge, by the size of the weight",
    ):
        assert words in said, words
    assert "Wrote 1 of 1 possible edge to" in call(
        "edges", tmp_path / "grn", "-o", tmp_path / "e.csv"
    )


def make_constant(adata: AnnData) -> AnnData:
    adata.obs["time"] = 2.0
    return adata


def make_short(adata: AnnData) -> AnnData:
    """Cells in pseudotime, three of them in a lineage of their own."""
    rng = np.random.default_rng(0)
    lineage = ["long"] * 97 + ["short"] * 3
    obs = pd.DataFrame({"time": rng.random(100), "series": lineage}).rename(index=str)
    return AnnData(rng.random((100, 5)), obs=obs, var=adata.var)


def make_unknown(adata: AnnData) -> AnnData:
    adata.obs["target"] = adata.obs["target"].astype(str).replace("C", "GATA1")
    return adata


def make_missing(adata: AnnData) -> AnnData:
    adata.X[3, 1] = np.nan
    return adata


MISTAKES: list[tuple[Callable[[AnnData], AnnData], tuple[str, ...], str]] = [
    (lambda a: a, ("--time", "tyme"), "'tyme'"),
    (make_constant, ("--time", "time"), "'time' is 2 in every row; a time needs two values"),
    (make_short, ("--time", "time", "--lineage", "series"), "Lineage 'short' has 3 cells"),
    (make_short, ("--time", "time", "--lineage", "series"), "or say --bins 0 if each row"),
    (lambda a: a, ("--lineage", "series"), "no time is named"),
    (make_unknown, tuple(COLUMNS), "intervenes on 'GATA1', which is none of the 5 genes"),
    (make_missing, tuple(COLUMNS), "Expression is nan in row 'row_3', gene 'B'"),
    (lambda a: a, (*COLUMNS, "--layer", "raw"), "no layer 'raw'"),
    (lambda a: a, (*COLUMNS, "--bins", "1"), "--bins is 1"),
    (lambda a: a, (*COLUMNS, "--experiment", "series"), "holds 'one'"),
    (lambda a: a, (*COLUMNS, "--regulators", "TF"), "The regulators name 'a', 'Q' (2 of 3 names)"),
    (lambda a: a, (*COLUMNS, "--regulators", "NOWHERE"), "There is no file"),
    (lambda a: a, (*COLUMNS, "--regulators", "EMPTY"), "empty.txt names none; it takes one a line"),
    (lambda a: a, (*COLUMNS, "--set", "step=3"), "no setting 'step'; a network has production"),
    (lambda a: a, (*COLUMNS, "--set", "steps"), "name=value"),
    (lambda a: a, (*COLUMNS, "--set", "steps=many"), "steps is 'many'; it takes a whole number"),
    (lambda a: a, (*COLUMNS, "--set", "production=linear"), "production is 'linear'"),
    (lambda a: a, (*COLUMNS, "--set", "learning_rate=Infinity"), "learning_rate is inf"),
    (lambda a: a, (*COLUMNS, "--seed", "-1"), "seed is -1"),
    (lambda a: a, (*COLUMNS, "--set", "learning_rate=1e30"), "The loss is"),
]


@pytest.mark.parametrize(("change", "flags", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes_are_one_line_and_nothing_is_written(
    frozen_expression: AnnData,
    tmp_path: Path,
    change: Callable[[AnnData], AnnData],
    flags: tuple[str, ...],
    message: str,
) -> None:
    file = write(change(frozen_expression.copy()), tmp_path)
    (tmp_path / "tf.txt").write_text("A\na\nQ\n")
    (tmp_path / "empty.txt").write_text("# none yet\n\n")
    places = {name: tmp_path / f"{name.lower()}.txt" for name in ("TF", "NOWHERE", "EMPTY")}
    asked = ("fit", file, *QUICK, *(places.get(flag, flag) for flag in flags))
    assert message in refuse(*asked, "-o", tmp_path / "grn")
    assert {place.name for place in tmp_path.iterdir()} == {"changed.h5ad", "tf.txt", "empty.txt"}


def test_wrong_flags_and_wrong_files_are_refused(
    expression: Path, fitted: Path, tmp_path: Path
) -> None:
    grn, table, cells = tmp_path / "grn", tmp_path / "out.csv", tmp_path / "out.h5ad"
    for arguments, message in (
        (("fit", expression, *COLUMNS), "--output"),
        (("fit", expression, "-o", grn, "--colour", "red"), "--colour"),
        (("fit", expression, "-o", grn, "--threads", 0), "--threads"),
        (("edges", fitted, "-o", table, "--probability", 2), "--probability"),
        (("knockout", fitted, "-o", cells), "--gene"),
        (("knockout", fitted, "-o", cells, "--gene", "A", "--left", "half"), "--left"),
    ):
        assert message in call(*arguments, status=2)
    ask = ("knockout", fitted, "-o", cells)
    for arguments, message in (
        (("fit", tmp_path / "nowhere.h5ad", "-o", grn), "There is no file"),
        (("fit", fitted, "-o", grn), "is a folder; cells are read from an h5ad file"),
        (("edges", fitted, "-o", cells), "no ending .csv"),
        (("edges", expression, "-o", table), "is a file; a network is a folder with network.json"),
        (("edges", tmp_path, "-o", table), "holds no network: there is no network.json in it"),
        (("knockout", fitted, "-o", table, "--gene", "A"), "no ending .h5ad"),
        ((*ask, "--gene", "GATA1"), "names 'GATA1', which is none of the 5 genes"),
        (
            (*ask, "--gene", "A", "--kind", "knock"),
            "--kind is 'knock'; it takes knockout, knockdown",
        ),
        ((*ask, "--gene", "A", "--left", -1), "--left is -1.0; it takes a share"),
        ((*ask, "--gene", "a"), "(A, B, C, D, E; did you mean 'A'?)."),
        ((*ask, "--gene", "A,B"), "each after a --gene of its own in a command"),
        ((*ask, "--gene", "A", "--method", "euler"), "--method is 'euler'; it takes dopri5 or rk4"),
    ):
        assert message in refuse(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_lineage_that_is_none_is_refused(network: ia.grn.Network, tmp_path: Path) -> None:
    dynamics = deepcopy(network.members[0].dynamics)
    dynamics.lineage_offset.data = dynamics.lineage_offset.expand(2, -1).clone()
    two = replace(
        network,
        lineages=("left", "right"),
        times=network.times * 2,
        starts=np.repeat(network.starts, 2, axis=0),
        members=(replace(network.members[0], dynamics=dynamics),),
    )
    ia.grn.save(two, tmp_path / "grn")
    ask = ("knockout", tmp_path / "grn", "--gene", "A", "-o", tmp_path / "out.h5ad")
    said = refuse(*ask, "--lineage", "middle")
    assert "no lineage 'middle'; the network has left, right" in said
    call(*ask, "--lineage", "right")
    ia.grn.save(network, tmp_path / "grn", overwrite=True)
    assert "which all its series share; name no lineage" in refuse(
        *ask, "--overwrite", "--lineage", "one"
    )


def test_knockout_says_what_swings_and_what_is_at_rest_alone(
    frozen_expression: AnnData, tmp_path: Path
) -> None:
    rest = write(frozen_expression[16:].copy(), tmp_path)
    call("fit", rest, *COLUMNS[4:], *QUICK, "-o", tmp_path / "grn")
    network, ask = ia.grn.load(tmp_path / "grn"), ("knockout", tmp_path / "grn", "--gene", "A")
    assert "Wrote 2 rows x 5 genes" in call(*ask, "-o", tmp_path / "rest.h5ad")
    dynamics = deepcopy(network.members[0].dynamics)
    dynamics.production.weight.data[:] = -30 * (1 - torch.eye(5))
    member = replace(network.members[0], dynamics=dynamics, gates=torch.ones(5, 5))
    swings = replace(network, members=(member,))
    ia.grn.save(swings, tmp_path / "swings")
    said = call("knockout", tmp_path / "swings", "--gene", "A", "-o", tmp_path / "swings.h5ad")
    assert (
        "Note: No steady state is found for 5 of 5 genes" in said
        and "At rest it moves no other gene that comes to rest." in said
    )


def test_stiff_dynamics_are_a_clear_error(network: ia.grn.Network, tmp_path: Path) -> None:
    dynamics = deepcopy(network.members[0].dynamics)
    dynamics.log_decay.data += 16.0
    member = replace(network.members[0], dynamics=dynamics)
    ia.grn.save(replace(network, members=(member,)), tmp_path / "grn")
    ask = ("knockout", tmp_path / "grn", "--gene", "A", "-o", tmp_path / "out.h5ad")
    said = refuse(*ask)
    assert "dopri5 gave up within 7 of time" in said and "(--method rk4)" in said
    assert "too stiff" in refuse(*ask, "--method", "rk4")
    assert [place.name for place in tmp_path.iterdir()] == ["grn"]


def test_what_exists_is_kept_unless_told_otherwise(
    expression: Path, fitted: Path, tmp_path: Path
) -> None:
    asked = ("fit", expression, *COLUMNS, *QUICK, "-o")
    said = refuse(*asked, fitted)
    assert "exists already" in said and "Read 27" not in said, "refused before the work"
    (tmp_path / "mine.txt").write_text("mine")
    said = refuse(*asked, tmp_path, "--overwrite")
    assert "'mine.txt', which is no part of a network" in said and "Read 27" not in said
    assert "is a file; a network is written into a folder" in refuse(
        *asked, tmp_path / "mine.txt", "--overwrite"
    )
    for seed in (1, 2):
        given = ("--set", "seed=7", "--seed", seed)  # a flag wins
        call(*asked, tmp_path / "grn", *given, "--overwrite")
    assert ia.grn.load(tmp_path / "grn").settings.seed == 2
    assert sorted(place.name for place in tmp_path.iterdir()) == ["grn", "mine.txt"]


@pytest.mark.parametrize("where", ["network.fit_member", "storage.list_edges", "storage.save_file"])
def test_ctrl_c_leaves_nothing(
    expression: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    module, name = where.split(".")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        monkeypatch.setattr(f"invatlas.grn.{module}.{name}", interrupt)
        asked = ("fit", expression, *COLUMNS, *QUICK, "-o", tmp_path / "grn")
        said = call(*asked, status=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.endswith("Interrupted; nothing was written.")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_does_not_come_between_files_and_their_place(
    expression: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = folders._replace

    def interrupt(stage: Path, target: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        move(stage, target)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(folders, "_replace", interrupt)
        call("fit", expression, *COLUMNS, *QUICK, "-o", tmp_path / "grn")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    ia.grn.load(tmp_path / "grn")


def test_a_real_process_shows_progress_and_help(expression: Path, tmp_path: Path) -> None:
    code = "import sys; from invatlas.cli import app; sys.argv[0] = 'invatlas'; app()"
    asked = ("grn", "fit", expression, *COLUMNS, *QUICK, "-o", tmp_path / "grn")
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, asked)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "fitting: member 2" in run.stderr and "left" in run.stderr
    assert "Traceback" not in run.stderr and "Warning" not in run.stderr
    assert run.stdout.split()[:6] == list(ia.grn.edges(ia.grn.load(tmp_path / "grn")))
    said = call("--help")
    assert all(command in said for command in ("fit", "edges", "knockout"))
