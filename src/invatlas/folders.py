"""A folder that holds one fitted thing: written whole or not at all, checked as it is read.

It is written beside its place and moved there; a load compares names, shapes and types of tensors
with what the card, a JSON file, promises before any is allocated. The card holds digests of itself
and of the other files, and gets its name last: a folder whose writing was killed has none, and is
no atlas. No file is a pickle.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from invatlas.errors import StorageError

MAXIMUM_CARD_BYTES = 256 * 2**20
CARD_DIGEST = "card_sha256"
UNFINISHED = ".part"
DAY = 86_400  # seconds
_DAMAGE = (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}


@dataclass(frozen=True)
class Kind:
    """What a folder may hold.

    Attributes
    ----------
    named
        What it is, with its article: ``an atlas``.
    card
        Name of the JSON file that describes it.
    version
        Of its format.
    files
        Names of all files that may belong to it.
    """

    named: str
    card: str
    version: int
    files: frozenset[str]

    @property
    def noun(self) -> str:
        """What it is, without the article."""
        return self.named.split()[-1]

    @property
    def format(self) -> str:
        """Name of the format, as the card has it."""
        return f"invatlas {self.noun}"


@contextmanager
def staged(path: str | Path, kind: Kind) -> Iterator[Path]:
    """Give a new folder to write into; it takes the place of ``path`` once all went well."""
    target = Path(path).resolve()
    check_target(target, kind)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_stages(target, kind)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StorageError(f"Nothing can be written at {target}: {error.strerror}.") from error
    try:
        yield stage
        umask = os.umask(0)
        os.umask(umask)
        stage.chmod(0o777 & ~umask)
        for file in stage.iterdir():
            file.chmod(0o666 & ~umask)
            _flush(file)
        (stage / (kind.card + UNFINISHED)).rename(stage / kind.card)
        _replace(stage, target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_target(target: Path, kind: Kind) -> None:
    """Refuse a place where something else lies.

    Raises
    ------
    StorageError
        If the place is a file, or a folder with files that are no part of such a thing.
    """
    standing = next(place for place in (target, *target.parents) if place.exists())
    if not standing.is_dir():
        raise StorageError(f"{standing} is a file; {kind.named} is written into a folder.")
    if target == Path.cwd():
        raise StorageError(f"{target} is the current folder; name a folder in it.")
    if target.is_dir() and (foreign := {file.name for file in target.iterdir()} - kind.files):
        raise StorageError(
            f"{target} holds {sorted(foreign)[0]!r}, which is no part of {kind.named}; "
            f"name a new or empty folder, or one that holds {kind.named} alone."
        )


def write_card(said: Mapping[str, Any], stage: Path, kind: Kind) -> None:
    """Write what the card says, its format and its digest; :func:`staged` gives it its name."""
    card = {"format": kind.format, "format_version": kind.version, **said}
    text = json.dumps({CARD_DIGEST: digest_card(card), **card}, indent=1, allow_nan=False)
    (stage / (kind.card + UNFINISHED)).write_text(text, encoding="utf-8")


def read_card(folder: Path, kind: Kind) -> dict[str, Any]:
    """Read the card of a folder and check that it is one this version understands.

    Raises
    ------
    StorageError
        If it is absent, too large, no JSON, foreign, of a newer format, or was changed.
    """
    file = folder / kind.card
    try:
        if file.stat().st_size > MAXIMUM_CARD_BYTES:
            raise StorageError(
                f"{file} is larger than any {kind.noun} card ({MAXIMUM_CARD_BYTES:,} bytes)."
            )
        card = json.loads(file.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise StorageError(
            f"{folder} is a file; {kind.named} is a folder with {kind.card} in it."
        ) from None
    except FileNotFoundError:
        raise StorageError(
            f"{folder} holds no {kind.noun}: there is no {kind.card} in it."
        ) from None
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{file} is damaged: it is no JSON ({error}).") from error
    if not isinstance(card, dict) or card.get("format") != kind.format:
        raise StorageError(f"{file} is no {kind.noun} of invatlas.")
    if card.get("format_version") != kind.version:
        raise StorageError(
            f"{file} has format version {card.get('format_version')!r}; "
            f"this invatlas reads version {kind.version}. Fit the {kind.noun} again, or load it "
            "with the version of invatlas that wrote it."
        )
    with reading(file):
        if card.get(CARD_DIGEST) != digest_card(card):
            raise StorageError(f"{file} is damaged: it was changed after the fit.")
    return card


def read_names(file: Path, kind: Kind) -> set[str]:
    """Names of the tensors in a file, no tensor read.

    Raises
    ------
    StorageError
        If the file is absent, truncated, or no safetensors file.
    """
    with _opened(file, kind) as tensors:
        return set(tensors.keys())


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Call a file damaged if what is made of its content is impossible."""
    try:
        yield
    except _DAMAGE as error:
        raise StorageError(f"{file} is damaged: {error!r}.") from error


def read_tensors(
    file: Path, promised: Mapping[str, torch.Tensor], digest: object, kind: Kind
) -> dict[str, torch.Tensor]:
    """Read the tensors that a card promises, no other and no fewer.

    Parameters
    ----------
    file
        In safetensors format.
    promised
        Names, shapes and types, on the meta device.
    digest
        Of the file, as the card has it.
    kind
        Of the folder.

    Raises
    ------
    StorageError
        If the file is absent, truncated, or not the one the card was written with.
    """
    with _opened(file, kind) as tensors:
        names = set(tensors.keys())
        if names != set(promised):
            odd = sorted(names ^ set(promised))[0]
            raise StorageError(f"{file} does not belong to its {kind.card}: tensor {odd!r} is odd.")
        for name, tensor in promised.items():
            stored = tensors.get_slice(name)
            found = (stored.get_dtype(), tuple(stored.get_shape()))
            wanted = (_TYPES[tensor.dtype], tuple(tensor.shape))
            if found != wanted:
                raise StorageError(
                    f"{file} does not belong to its {kind.card}: tensor {name!r} is {found}, "
                    f"not {wanted}."
                )
        found_tensors = {name: tensors.get_tensor(name) for name in promised}
    if digest_file(file) != digest:
        raise StorageError(f"{file} does not belong to its {kind.card}: another fit wrote it.")
    return found_tensors


@contextmanager
def _opened(file: Path, kind: Kind) -> Iterator[Any]:
    """Open a safetensors file; what fails while it is open is told as its damage."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except FileNotFoundError:
        raise StorageError(
            f"{file.parent} holds no whole {kind.noun}: {file.name} is missing."
        ) from None
    except (SafetensorError, OSError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{file} is truncated or no safetensors file ({error}).") from error


def check_finite(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Refuse weights that are no numbers."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StorageError(
                f"{file} is damaged: tensor {name!r} holds values that are not finite."
            )


def digest_file(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_card(card: Mapping[str, Any]) -> str:
    """SHA-256 of what a card says, its own digest aside; spaces do not matter."""
    said = {name: value for name, value in card.items() if name != CARD_DIGEST}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of what a fit depends on."""
    packages = ("invatlas", "torch", "anndata", "scanpy", "numpy", "scipy", "safetensors")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _clear_stages(target: Path, kind: Kind) -> None:
    """Remove what writes of this place that were killed a day ago or earlier left behind."""
    ours = kind.files - {kind.card} | {kind.card + UNFINISHED}
    for stage in target.parent.glob(f".{glob.escape(target.name)}-????????"):
        with suppress(OSError):  # another's, or gone meanwhile
            old = time.time() - stage.stat().st_mtime > DAY
            if old and {file.name for file in stage.iterdir()} <= ours:
                shutil.rmtree(stage)


def _replace(stage: Path, target: Path) -> None:
    if not target.exists():
        stage.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(old / "old")
    try:
        stage.rename(target)
    except BaseException:
        (old / "old").rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
