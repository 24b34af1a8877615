"""An atlas on disk: it comes back bit for bit, and nothing foreign gets in."""

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
from invatlas.errors import StorageError

FILES = {"model.safetensors", "calibration.safetensors", "atlas.json", "history.csv"}


def edit_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    cards.edit_card(folder / "atlas.json", change)


def test_a_saved_atlas_embeds_the_same_bit_for_bit(
    atlas: ia.Atlas, saved: Path, frozen_study: AnnData
) -> None:
    back = ia.load(saved)
    for which in ("invariant", "spurious"):
        found, expected = (ia.embed(a, frozen_study, which) for a in (back, atlas))
        assert np.array_equal(found, expected)
    assert (back.genes, back.schema, back.settings) == (atlas.genes, atlas.schema, atlas.settings)
    assert back.record == json.loads(json.dumps(atlas.record))
    assert np.array_equal(back.gene_shares, atlas.gene_shares)
    pd.testing.assert_frame_equal(back.history, atlas.history, check_exact=True, check_dtype=False)
    assert not any(module.training for module in back.model.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"likelihood": "gaussian", "spurious_latents": 0},
        {"likelihood": "poisson", "technical_in_decoder": False},
        {"technical_in_decoder": True, "layers": 3},
        {"technical": []},
        {"prior": "low_rank", "interaction_rank": 2},
        {"prior": "exponential_family"},
        {"biological": ["cell_type"], "technical": ["batch"], "epochs": 1},
    ],
    ids=str,
)
def test_every_kind_of_atlas_comes_back(
    study: AnnData, fit: Callable[..., ia.Atlas], tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = fit(study, **changes)
    ia.save(made, tmp_path / "deep" / "er" / "atlas")
    back = ia.load(str(tmp_path / "deep" / "er" / "atlas"))
    for which in ("invariant", "spurious"):
        found, expected = (ia.embed(a, study, which) for a in (back, made))
        assert np.array_equal(found, expected)


def test_odd_names_survive(fit: Callable[..., ia.Atlas], study: AnnData, tmp_path: Path) -> None:
    study.obs["cell_type"] = study.obs["cell_type"].astype(str) + ' \u03b1 "β",\n\\ \u2028é'
    study.var_names = [f'gène "{i}",\t\\' for i in range(120)]
    made = fit(study)
    ia.save(made, tmp_path / "ätlas")
    back = ia.load(tmp_path / "ätlas")
    assert (back.schema, back.genes) == (made.schema, made.genes)


def test_files_are_plain(saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == FILES
    card = json.loads((saved / "atlas.json").read_text(encoding="utf-8"))
    assert card["format_version"] == 8
    assert len(card["genes"]) == 120
    assert card["run"]["biological"] == ["cell_type", "disease"]
    assert card["run"]["settings"]["hidden"] == 16
    assert "torch" in card["record"]["versions"]
    history = pd.read_csv(saved / "history.csv")
    assert {"epoch", "seconds", "cells_per_second", "learning_rate"} <= set(history)
    assert b"pickle" not in (saved / "model.safetensors").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_model_is_refused(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        ia.load(folder)


def test_a_model_with_more_behind_it_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        ia.load(folder)


def test_a_flipped_bit_in_a_weight_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-20] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        ia.load(folder)


def test_the_model_of_another_atlas_is_refused(
    folder: Path, frozen_study: AnnData, fit: Callable[..., ia.Atlas], tmp_path: Path
) -> None:
    for number, changes in enumerate(({"seed": 2}, {"hidden": 17}, {"invariant_latents": 6})):
        ia.save(fit(frozen_study, **changes), tmp_path / f"other{number}")
        shutil.copy(tmp_path / f"other{number}" / "model.safetensors", folder)
        with pytest.raises(StorageError, match=r"model\.safetensors"):
            ia.load(folder)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change weights, and let the card vouch for the file."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    digest = folders.digest_file(file)
    edit_card(folder, lambda card: card.update(model_sha256=digest))


def biggest(weights: dict[str, torch.Tensor]) -> str:
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    return max(floats, key=lambda name: floats[name].numel())


def drop(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(biggest(weights))


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["extra"] = torch.zeros(2)


def reshape(weights: dict[str, torch.Tensor]) -> None:
    name = biggest(weights)
    weights[name] = weights[name].T.contiguous()


def retype(weights: dict[str, torch.Tensor]) -> None:
    name = biggest(weights)
    weights[name] = weights[name].double()


def spoil(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[biggest(weights)].view(-1)[3] = value

    return change


def misplace(weights: dict[str, torch.Tensor]) -> None:
    weights["prior_invariant.combinations"][0, 0] = 99


@pytest.mark.parametrize(
    "change",
    [drop, add, reshape, retype, spoil(float("nan")), spoil(float("inf")), misplace],
    ids=["dropped", "added", "reshaped", "retyped", "nan", "inf", "code out of range"],
)
def test_weights_that_do_not_fit_the_card_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]
) -> None:
    rewrite(folder, lambda weights: None)
    ia.load(folder)  # rewriting alone does no harm
    rewrite(folder, change)
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        ia.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"atlas"', "{}", "[" * 100_000, '{"format": "other"}']
)
def test_a_card_that_is_no_card_is_refused(folder: Path, text: str) -> None:
    (folder / "atlas.json").write_text(text)
    with pytest.raises(StorageError, match=r"atlas\.json"):
        ia.load(folder)


def test_a_card_of_bytes_is_refused(folder: Path) -> None:
    (folder / "atlas.json").write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(StorageError, match=r"atlas\.json"):
        ia.load(folder)


@pytest.mark.parametrize("version", [5, 7, 0, "8", None])
def test_another_format_version_is_refused_by_number(folder: Path, version: object) -> None:
    edit_card(folder, lambda card: card.update(format_version=version))
    with pytest.raises(StorageError, match=rf"format version {version!r}.*reads version 8"):
        ia.load(folder)


PLACES = [
    ("run",),
    ("run", "settings"),
    ("run", "settings", "hidden"),
    ("schema",),
    ("schema", "biological"),
    ("combinations",),
    ("combinations", "biological"),
    ("median_library_size",),
    ("record",),
    ("genes",),
    ("gene_shares",),
]
JUNK: list[object] = [None, "x", [], {}, -1, 10**30, 1e400, float("nan"), ["a"], {"a": 1}]


def put(card: Any, place: tuple[object, ...], value: object) -> None:
    for key in place[:-1]:
        card = card[key]
    card[place[-1]] = value


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_card_with_junk_in_any_place_is_refused_or_harmless(
    folder: Path, place: tuple[str, ...], frozen_study: AnnData
) -> None:
    whole = (folder / "atlas.json").read_text()
    refused = 0
    for junk in JUNK:
        (folder / "atlas.json").write_text(whole)
        edit_card(folder, lambda card, junk=junk: put(card, place, junk))  # type: ignore[misc]
        try:
            found = ia.load(folder)
        except StorageError:
            refused += 1
            continue
        assert np.isfinite(ia.embed(found, frozen_study)).all(), junk
        ia.summarise(found, frozen_study.obs)
    assert refused >= (8 if place != ("median_library_size",) else 6)


@pytest.mark.parametrize("key", ["run", "schema", "combinations", "record", "genes", "gene_shares"])
def test_a_card_that_lacks_a_part_is_refused(folder: Path, key: str) -> None:
    edit_card(folder, lambda card: card.pop(key))
    with pytest.raises(StorageError, match=r"atlas\.json is damaged"):
        ia.load(folder)


def test_sizes_are_checked_before_anything_is_allocated(folder: Path) -> None:
    edit_card(folder, lambda card: card["run"]["settings"].update(hidden=100_000, layers=50))
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        ia.load(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        ia.load(folder)
    (folder / name).mkdir()
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        ia.load(folder)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01", '"', "epoch,seconds\n1,2\n"])
def test_a_history_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "history.csv").write_text(text)
    with pytest.raises(StorageError, match=r"history\.csv"):
        ia.load(folder)


@pytest.mark.parametrize("letters", [-1, -4, -30], ids=str)
def test_a_truncated_history_is_refused(folder: Path, letters: int) -> None:
    text = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(text[:letters])
    with pytest.raises(StorageError, match=r"history\.csv"):
        ia.load(folder)


def test_a_history_of_other_epochs_is_refused(folder: Path) -> None:
    lines = (folder / "history.csv").read_text().splitlines(keepends=True)
    (folder / "history.csv").write_text("".join(lines[:-1]))
    digest = folders.digest_file(folder / "history.csv")
    edit_card(folder, lambda card: card.update(history_sha256=digest))
    with pytest.raises(StorageError, match=r"history\.csv is damaged.*3 epochs"):
        ia.load(folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("record", "cells"), "many"),
        (("record", "cells"), 3),
        (("record", "training", "stopped"), None),
        (("record", "warnings"), ["all is well"]),
    ],
    ids=str,
)
def test_a_card_that_was_changed_is_refused(
    folder: Path, place: tuple[str, ...], value: object
) -> None:
    card = json.loads((folder / "atlas.json").read_text())
    (folder / "atlas.json").write_text(json.dumps(card))
    ia.load(folder)  # spaces do not matter
    put(card, place, value)
    (folder / "atlas.json").write_text(json.dumps(card))
    with pytest.raises(StorageError, match=r"atlas\.json is damaged: it was changed"):
        ia.load(folder)


def negate(card: dict[str, Any]) -> None:
    shares = card["gene_shares"]
    shares[0], shares[1] = -1.0, shares[0] + shares[1] + 1


def repeat_category(card: dict[str, Any]) -> None:
    categories = card["schema"]["biological"][0]["categories"]
    categories[0] = categories[1]


WRONG_GENES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a negative share": negate,
    "a share that is no number": lambda card: put(card["gene_shares"], (3,), float("nan")),
    "shares beyond 1": lambda card: put(card["gene_shares"], (3,), 1.0),
    "a gene twice": lambda card: put(card["genes"], (3,), card["genes"][4]),
    "a category twice": repeat_category,
}


@pytest.mark.parametrize("change", WRONG_GENES.values(), ids=WRONG_GENES)
def test_impossible_genes_and_categories_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_card(folder, change)
    with pytest.raises(StorageError, match=r"atlas\.json is damaged: ValueError"):
        ia.load(folder)


def test_no_folder_or_a_file_instead_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere holds no atlas"):
        ia.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    with pytest.raises(StorageError, match="file is a file"):
        ia.load(tmp_path / "file")
    with pytest.raises(StorageError, match="holds no atlas"):
        ia.load(tmp_path)


@pytest.mark.parametrize(
    "adapted",
    [
        None,
        5,
        "xx",
        [1],
        [{"values": {"donor": ["nobody"]}, "combinations": 1}],
        [{"values": {"absent": ["x"]}, "combinations": 1}],
        [{"values": {}, "combinations": -1}],
        [{"values": {}}],
    ],
)
def test_adaptations_that_cannot_be_are_refused(folder: Path, adapted: object) -> None:
    edit_card(folder, lambda card: card["record"].update(adapted=adapted))
    with pytest.raises(StorageError, match=r"atlas\.json is damaged"):
        ia.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "odd"},
        {"matches": []},
        {"matches": [{"values": ["a"]}]},
        {"matches": None},
        {"sentence": None},
    ],
)
def test_findings_that_cannot_be_are_refused(folder: Path, change: dict[str, object]) -> None:
    edit_card(folder, lambda card: card["record"]["confounding"][0].update(change))
    with pytest.raises(StorageError, match=r"atlas\.json is damaged"):
        ia.load(folder)


def test_an_atlas_from_before_confounding_was_looked_for_loads(folder: Path) -> None:
    edit_card(folder, lambda card: card["record"].pop("confounding"))
    assert ia.load(folder).record["confounding"] == []


@pytest.mark.parametrize("name", ["prior_invariant.admits_0", "prior_spurious.has_value"])
def test_tables_that_do_not_follow_from_the_card_are_refused(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors")
    digest = folders.digest_file(folder / "model.safetensors")
    edit_card(folder, lambda card: card.update(model_sha256=digest))
    with pytest.raises(StorageError, match="does not follow from its"):
        ia.load(folder)
