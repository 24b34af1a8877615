"""How an atlas takes its place on disk: whole or not at all, and never over foreign files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from safetensors.torch import save_file

import invatlas as ia
from invatlas import folders, storage
from invatlas.errors import StorageError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_with_foreign_files_is_refused_and_left_alone(
    atlas: ia.Atlas, folder: Path
) -> None:
    (folder / "thesis.docx").write_text("years of work")
    before = contents(folder.parent)
    with pytest.raises(StorageError, match=r"thesis\.docx"):
        ia.save(atlas, folder)
    assert contents(folder.parent) == before


def test_a_place_that_cannot_hold_an_atlas_is_refused(
    atlas: ia.Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(StorageError, match="file is a file"):
        ia.save(atlas, tmp_path / "file")
    with pytest.raises(StorageError, match="file"):
        ia.save(atlas, tmp_path / "file" / "atlas")
    assert (tmp_path / "file").read_text() == "text"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StorageError, match="here"):
        ia.save(atlas, ".")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "here"]


def test_saving_again_replaces_the_atlas_and_what_belonged_to_it(
    atlas: ia.Atlas, saved: Path, folder: Path, frozen_study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    (folder / "report.html").write_text("of the old one")
    other = fit(frozen_study, seed=2, epochs=1)
    with pytest.raises(StorageError, match="overwrite=True"):
        ia.save(other, folder)
    assert (folder / "report.html").exists()
    ia.save(other, folder, overwrite=True)
    assert contents(folder).keys() == contents(saved).keys()
    assert [p.name for p in folder.parent.iterdir()] == ["atlas"]
    found = ia.embed(ia.load(folder), frozen_study)
    assert np.array_equal(found, ia.embed(other, frozen_study))


def test_an_empty_folder_may_be_written_into(atlas: ia.Atlas, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ia.save(atlas, tmp_path / "empty")
    assert ia.load(tmp_path / "empty").genes == atlas.genes


def fail(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


BREAKS: list[tuple[object, str]] = [
    (storage, "save_file"),
    (folders.json, "dumps"),
    (pd.DataFrame, "to_csv"),
    (folders, "_flush"),
    (folders.os, "fsync"),
]


@pytest.mark.parametrize(("owner", "name"), BREAKS, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("error", [fail, KeyboardInterrupt], ids=["disk full", "Ctrl-C"])
def test_a_save_that_fails_leaves_the_earlier_atlas_and_nothing_else(
    atlas: ia.Atlas,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: Any,
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = contents(folder.parent)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail if error is fail else interrupt)
        with pytest.raises(StorageError if error is fail else KeyboardInterrupt):
            ia.save(atlas, folder, overwrite=True)
        with pytest.raises(StorageError if error is fail else KeyboardInterrupt):
            ia.save(atlas, folder.parent / "new")
    assert contents(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == ["atlas"]


def test_a_move_that_fails_puts_the_earlier_atlas_back(
    atlas: ia.Atlas, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    original, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 3:  # the card has its name, the earlier atlas is aside
            raise OSError(28, "No space left on device")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(StorageError):
            ia.save(atlas, folder, overwrite=True)
    assert len(calls) >= 3
    assert contents(folder) == before


def kill_while_saving(atlas: ia.Atlas, target: Path, where: str) -> None:
    """Save in a child process that is killed (SIGKILL) in the middle of one of its files."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, where
        return

    def die(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(self: Path, text: str, **kwargs: object) -> None:
        with self.open("w") as handle:
            handle.write(text[: len(text) // 2])
        die()

    def save_half(weights: object, file: Path, *args: object, **kwargs: object) -> None:
        save_file(weights, file)  # type: ignore[arg-type]
        os.truncate(file, file.stat().st_size // 2)
        die()

    try:
        if where == "model":
            storage.save_file = save_half
        elif where == "card":
            Path.write_text = write_half  # type: ignore[method-assign, assignment]
        elif where == "history":
            pd.DataFrame.to_csv = lambda self, file, **_: write_half(file, "epoch,seconds\n1,2")
        else:
            os.fsync = die  # type: ignore[assignment]
        ia.save(atlas, target, overwrite=True)
    finally:
        os._exit(3)  # never back into pytest


@pytest.mark.parametrize("where", ["model", "card", "history", "flush"])
def test_a_killed_save_leaves_the_earlier_atlas_and_none_that_is_half_written(
    atlas: ia.Atlas, folder: Path, tmp_path: Path, where: str
) -> None:
    before = contents(folder)
    for target in (folder, tmp_path / "new"):
        kill_while_saving(atlas, target, where)
    assert contents(folder) == before
    assert not (tmp_path / "new").exists()
    left = [place for place in tmp_path.iterdir() if place.name != "atlas"]
    assert len(left) == 2
    for place in left:
        with pytest.raises(StorageError, match=r"there is no atlas\.json"):
            ia.load(place)
    ia.save(atlas, folder, overwrite=True)  # what lies about is in nobody's way
    ia.load(folder)


def test_what_was_killed_after_the_card_was_written_is_no_atlas(
    atlas: ia.Atlas, tmp_path: Path
) -> None:
    with folders.staged(tmp_path / "new", storage.ATLAS) as stage:
        storage.write_atlas(atlas, stage)
        with pytest.raises(StorageError, match=r"there is no atlas\.json"):
            ia.load(stage)  # as it lies if the report is never finished
    assert ia.load(tmp_path / "new").genes == atlas.genes


def test_old_stages_of_killed_writes_go_at_the_next_write_and_nothing_else(
    atlas: ia.Atlas, tmp_path: Path
) -> None:
    for name in ("new", "new-er", "kept"):
        kill_while_saving(atlas, tmp_path / name, "flush")
    (young,) = tmp_path.glob(".kept-*")
    young = young.rename(tmp_path / ".new-12345678")
    (tmp_path / ".new-a_report").mkdir()
    (tmp_path / ".new-a_report" / "thesis.docx").write_text("years of work")
    ia.save(atlas, tmp_path / ".new-wasatlas")  # hidden, but whole
    for place in tmp_path.iterdir():
        if place != young:
            os.utime(place, (0, 0))
    before = {place.name for place in tmp_path.iterdir()}
    ia.save(atlas, tmp_path / "new")
    gone = before - {place.name for place in tmp_path.iterdir()}
    assert len(gone) == 1 and gone.pop().startswith(".new-")


def test_files_can_be_read_by_others(saved: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask
