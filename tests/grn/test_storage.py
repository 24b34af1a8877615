"""A network on disk: whole or not at all, and nothing foreign gets in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file

import cards
import invatlas as ia
from invatlas import folders
from invatlas.errors import SettingsError, StorageError
from invatlas.grn import storage

TABLES = ("history", "strengths", "off_targets")
FILES = {"network.safetensors", "network.json", "edges.csv", *(f"{name}.csv" for name in TABLES)}


@pytest.fixture(scope="module")
def saved(network: ia.grn.Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "grn"
    ia.grn.save(network, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy, to be broken at will."""
    return Path(shutil.copytree(saved, tmp_path / "grn"))


def edit_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    cards.edit_card(folder / "network.json", change)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_same(back: ia.grn.Network, network: ia.grn.Network) -> None:
    """Same in every field, and the same predictions bit for bit."""
    gene, lineage = str(network.genes[0]), network.lineages[-1]
    for asked in ({"genes": gene}, {"genes": list(network.genes[1:3]), "left": 0.3}):
        found, expected = (
            ia.grn.intervene(n, lineage=lineage, **asked)  # type: ignore[arg-type]
            for n in (back, network)
        )
        assert np.array_equal(found.X, expected.X)
        assert np.array_equal(found.layers["sd"], expected.layers["sd"])
    pd.testing.assert_frame_equal(
        ia.grn.edges(back), ia.grn.edges(network), check_exact=True, check_index_type=False
    )
    for name in TABLES:
        found, expected = getattr(back, name), getattr(network, name)
        typed = len(expected) > 0
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=typed)
    for name in ("genes", "regulators", "starts", "usual"):
        assert np.array_equal(getattr(back, name), getattr(network, name))
    for name in ("lineages", "times", "settings", "scale", "warnings"):
        assert getattr(back, name) == getattr(network, name)
    assert repr(back) == repr(network)
    for found, expected in zip(back.members, network.members, strict=True):
        assert torch.equal(found.gates, expected.gates)
        assert not any(p.requires_grad for p in found.dynamics.parameters())


def test_a_saved_network_predicts_the_same_bit_for_bit(
    network: ia.grn.Network, saved: Path
) -> None:
    assert len(network.off_targets) and len(network.strengths) == 10, "or the test tells nothing"
    check_same(ia.grn.load(saved), network)


@pytest.mark.parametrize("production", [None, "network", "additive", "multiplicative"])
def test_every_kind_of_network_comes_back(
    frozen_expression: AnnData, tmp_path: Path, production: str | None
) -> None:
    timed = frozen_expression[:16].copy()
    timed.var_names = ["NA", 'B "β",\n', "C\r,é", "nan", "1"]
    obs = timed.obs.iloc[np.repeat(range(16), 4)].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    cells = AnnData(np.repeat(timed.X, 4, axis=0), obs=obs, var=timed.var)
    cells.X = cells.X + 0.01 * np.random.default_rng(0).normal(size=cells.shape)
    settings = ia.grn.NetworkSettings(
        production=production, steps=2, members=2, refine_steps=0, proteins=production != "additive"
    )
    made = ia.grn.fit(
        cells, time="time", lineage="series", regulators=["NA", "nan"], settings=settings
    )
    assert made.lineages == ("one", "two")
    ia.grn.save(made, tmp_path / "deep" / "er" / "grn")
    check_same(ia.grn.load(str(tmp_path / "deep" / "er" / "grn")), made)


def test_odd_names_of_genes_and_rows_survive(frozen_expression: AnnData, tmp_path: Path) -> None:
    rest = frozen_expression[16:22].copy()
    names = ["N A", 'B "β",\n,', "C\r,é", "007", "1"]
    rest.obs["target"] = ["none", *names]
    rest.var_names, rest.obs_names = names, ["0", "007", "NA", "null", 'a"b', "1e5"]
    settings = ia.grn.NetworkSettings(steps=2, members=1)
    made = ia.grn.fit(rest, interventions="target", experiment="experiment", settings=settings)
    ia.grn.save(made, tmp_path / "grn")
    assert list(made.strengths["experiment"]) == list(rest.obs_names[1:])
    check_same(ia.grn.load(tmp_path / "grn"), made)


def test_files_are_plain_and_edges_are_the_table(network: ia.grn.Network, saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == FILES

    def refuse_constant(name: str) -> None:
        raise AssertionError(name)

    card = json.loads((saved / "network.json").read_text(), parse_constant=refuse_constant)
    assert (card["format"], card["format_version"]) == ("invatlas network", 2)
    assert card["genes"] == card["regulators"] == list("ABCDE")
    assert card["settings"]["steps"] == 20 and "torch" in card["versions"]
    table, expected = pd.read_csv(saved / "edges.csv"), ia.grn.edges(network)
    assert list(table) == list(expected) and len(table) == 20
    np.testing.assert_allclose(table["weight"], expected["weight"], rtol=1e-6)
    assert b"pickle" not in (saved / "network.safetensors").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.3, 0.999, 1.001])
def test_truncated_or_lengthened_numbers_are_refused(folder: Path, share: float) -> None:
    file = folder / "network.safetensors"
    whole = file.read_bytes()
    file.write_bytes((whole + whole)[: int(len(whole) * share)])
    with pytest.raises(StorageError, match=r"network\.safetensors"):
        ia.grn.load(folder)


def test_a_flipped_bit_is_refused(folder: Path) -> None:
    file = folder / "network.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-20] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(StorageError, match="another fit wrote it"):
        ia.grn.load(folder)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("1.log_decay")


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["extra"] = torch.zeros(2)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["1.gates"] = tensors["1.gates"].reshape(25)


def retype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["starts"] = tensors["starts"].float()


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.production.weight"][0, 1] = float("nan")


def open_wide(tensors: dict[str, torch.Tensor]) -> None:
    tensors["1.gates"][0, 1] = 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "tensor '1.log_decay' is odd"),
        (add, "tensor 'extra' is odd"),
        (reshape, "tensor '1.gates' is"),
        (retype, "tensor 'starts' is"),
        (spoil, "not finite"),
        (open_wide, "impossible values"),
    ],
)
def test_numbers_that_do_not_fit_the_card_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    file = folder / "network.safetensors"

    def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        digest = folders.digest_file(file)
        edit_card(folder, lambda card: card.update(network_sha256=digest))

    rewrite(lambda tensors: None)
    ia.grn.load(folder)  # rewriting alone does no harm
    rewrite(change)
    with pytest.raises(StorageError, match=message):
        ia.grn.load(folder)


PLACES = [
    ("settings",),
    ("settings", "steps"),
    ("members",),
    ("members", 0),
    ("members", 0, "production"),
    ("members", 0, "proteins"),
    ("lineages",),
    ("times",),
    ("scale",),
    ("tables",),
    ("tables", "history"),
    ("tables", "history", "sha256"),
    ("tables", "history", "columns"),
    ("tables", "history", "columns", "loss"),
    ("regulators",),
    ("genes",),
]
JUNK: list[object] = [None, "x", [], {}, -1, 10**30, 1e400, ["a", "a"], {"a": 1}]
HARMLESS = {
    "settings": [{}],
    "steps": [10**30],
    "loss": [None],
    "lineages": ["x", {"a": 1}],  # one name each
    "times": [[], {}],  # as without series
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_card_with_junk_in_any_place_is_refused_or_harmless(
    folder: Path, place: tuple[Any, ...]
) -> None:
    whole = (folder / "network.json").read_text()
    loaded = []
    for junk in JUNK:
        card = json.loads(whole)
        inner = card
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = junk
        edit_card(folder, lambda found, junk=card: found.update(junk))  # type: ignore[misc]
        try:
            found = ia.grn.load(folder)
        except StorageError as error:
            assert "network." in str(error) or "history.csv" in str(error)
            continue
        loaded.append(junk)
        assert np.isfinite(ia.grn.intervene(found, "A").X).all(), junk
    assert loaded == HARMLESS.get(place[-1], [])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": "invatlas atlas"}'])
def test_a_card_that_is_no_card_is_refused(folder: Path, text: str) -> None:
    (folder / "network.json").write_text(text)
    with pytest.raises(StorageError, match=r"network\.json"):
        ia.grn.load(folder)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_refused_by_number(folder: Path, version: int) -> None:
    edit_card(folder, lambda card: card.update(format_version=version))
    message = rf"format version {version}.*reads version 2\. Fit the network again"
    with pytest.raises(StorageError, match=message):
        ia.grn.load(folder)


def test_sizes_are_checked_before_anything_is_allocated(folder: Path) -> None:
    genes = [str(i) for i in range(10**5)]  # 40 GB a matrix
    edit_card(folder, lambda card: card.update(genes=genes, regulators=genes))
    with pytest.raises(StorageError, match=r"network\.safetensors"):
        ia.grn.load(folder)


def test_members_are_counted_before_any_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_card(folder, lambda card: card.update(members=card["members"][:1] * 10**5))
    monkeypatch.setattr(storage, "_lay_out", lambda *_: pytest.fail("built"))
    with pytest.raises(StorageError, match="it holds 2 members, not 100,000"):
        ia.grn.load(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"edges.csv"}))
def test_a_file_edited_by_hand_is_told(folder: Path, name: str) -> None:
    file = folder / name
    text = file.read_bytes()
    assert text.count(b"A") > 0 or name == "history.csv"
    file.write_bytes(
        text.replace(b"1", b"2") if name == "history.csv" else text.replace(b"A", b"Z")
    )
    with pytest.raises(StorageError, match=rf"{name} (is|does not)".replace(".", r"\.")):
        ia.grn.load(folder)


def test_spaces_in_the_card_do_not_matter_and_edges_are_for_readers(
    folder: Path, network: ia.grn.Network
) -> None:
    card = json.loads((folder / "network.json").read_text())
    (folder / "network.json").write_text(json.dumps(card))
    (folder / "edges.csv").unlink()
    check_same(ia.grn.load(folder), network)


@pytest.mark.parametrize("name", sorted(FILES - {"edges.csv"}))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        ia.grn.load(folder)
    (folder / name).mkdir()
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        ia.grn.load(folder)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_none_is_refused(folder: Path, table: str) -> None:
    file = folder / f"{table}.csv"
    lines = file.read_text().splitlines(keepends=True)
    for text in ("", "a,b\n1,2\n", "\x00\x01", '"', "".join(lines[:-1]), "".join(lines) * 2):
        file.write_text(text)
        with pytest.raises(StorageError, match=rf"{table}\.csv is damaged"):
            ia.grn.load(folder)


def test_what_is_no_network_is_refused(
    tmp_path: Path, folder: Path, network: ia.grn.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="'edges' is no network"):
        ia.grn.save("edges", tmp_path / "new")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="nowhere holds no network"):
        ia.grn.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    for refused in (ia.grn.load, lambda place: ia.grn.save(network, place)):
        with pytest.raises(StorageError, match="file is a file; a network is"):
            refused(tmp_path / "file")
    (folder / "thesis.docx").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(StorageError, match=r"thesis\.docx.*no part of a network"):
        ia.grn.save(network, folder, overwrite=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="current folder"):
        ia.grn.save(network, ".")
    assert contents(tmp_path) == before


def test_saving_again_needs_leave(network: ia.grn.Network, folder: Path) -> None:
    (folder / "edges.csv").write_text("old")
    with pytest.raises(StorageError, match="overwrite=True"):
        ia.grn.save(network, folder)
    assert (folder / "edges.csv").read_text() == "old"
    ia.grn.save(network, folder, overwrite=True)
    assert {file.name for file in folder.iterdir()} == FILES
    assert [place.name for place in folder.parent.iterdir()] == ["grn"]
    check_same(ia.grn.load(folder), network)


BREAKS: list[tuple[object, str]] = [
    (storage, "save_file"),
    (folders.json, "dumps"),
    (pd.DataFrame, "to_csv"),
    (folders.os, "fsync"),
]


@pytest.mark.parametrize(("owner", "name"), BREAKS, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_leaves_the_earlier_network_and_nothing_else(
    network: ia.grn.Network,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: BaseException,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    before = contents(folder.parent)
    wanted = StorageError if isinstance(error, OSError) else KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        for target in (folder, folder.parent / "new"):
            with pytest.raises(wanted):
                ia.grn.save(network, target, overwrite=True)
    assert contents(folder.parent) == before
    assert [place.name for place in folder.parent.iterdir()] == ["grn"]
