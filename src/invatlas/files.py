"""The files a user names on the command line: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invatlas.errors import DataError, SettingsError, StorageError
from invatlas.settings import read_toml

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def read_run(config: Path | None) -> dict[str, Any]:
    """Read a TOML file with any setting, or the run in an atlas.json; nothing without a file."""
    if config is None:
        return {}
    if config.suffix != ".json":
        return read_toml(config)
    try:
        card = json.loads(config.read_text(encoding="utf-8"))
        run = dict(card["run"])
        settings = run.pop("settings")
        if run.pop("genes_given"):
            run["gene_names"] = card["genes"]
        return {**settings, **{k: v for k, v in run.items() if v is not None}}
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{config} is no atlas.json with a run in it ({error!r}).") from error


def read_genes(path: str) -> list[str]:
    """Read names of genes, one a line; lines that begin with # are comments."""
    try:  # the mark that some editors put before the first line is no part of a name
        lines = Path(str(path)).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SettingsError(f"There is no file {path} of genes.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The list of genes {path} cannot be read: {error}.") from error
    genes = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not genes:
        raise SettingsError(f"The list of genes {path} names none; it takes one a line.")
    return genes


def read_cells(path: Path) -> AnnData:
    """Read an h5ad file."""
    import anndata

    if path.is_dir():
        raise DataError(f"{path} is a folder; cells are read from an h5ad file.")
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds for a file that is no h5ad
        raise DataError(f"{path} cannot be read as h5ad: {error}.") from error


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file, every value as text."""
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}.") from error


def write_cells(adata: AnnData, path: Path) -> None:
    """Write an h5ad file."""
    with _whole(path) as unfinished:
        adata.write_h5ad(unfinished, compression="gzip")


def write_text(text: str, path: Path) -> None:
    """Write a text file."""
    with _whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def name_beside(output: Path, what: str) -> Path:
    """Name the second table of an answer: ``donors_strata.csv`` beside ``donors.csv``."""
    return output.with_name(f"{output.stem}_{what}.csv")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write to; the file is moved there once it is whole."""
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def refuse_output(path: Path, overwrite: bool) -> None:
    """Refuse a place that is taken, unless it may be overwritten, or where nothing can be written.

    Whether it can is tried, so that no work is done in vain.
    """
    try:
        occupied = any(path.iterdir()) if path.is_dir() else path.exists()
        if occupied and not overwrite:
            raise StorageError(f"{path} exists already; give another place, or --overwrite.")
        standing = next(place for place in path.absolute().parents if place.exists())
        tempfile.TemporaryDirectory(prefix=".invatlas-", dir=standing).cleanup()
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror} ({error.filename})."
        ) from None


def refuse_as_table(path: Path, overwrite: bool) -> None:
    """Refuse a place where no CSV file can be written, as :func:`refuse_output` does."""
    _refuse_as(path, overwrite, ".csv", "a table is written to a CSV file")


def refuse_as_page(path: Path | None, overwrite: bool) -> None:
    """Refuse a place where no HTML file can be written, if one is wanted."""
    if path:
        _refuse_as(path, overwrite, ".html", "a page is written to an HTML file")


def refuse_as_cells(path: Path, overwrite: bool) -> None:
    """Refuse a place where no h5ad file can be written, as :func:`refuse_output` does."""
    _refuse_as(path, overwrite, ".h5ad", "cells are written to an h5ad file")


def _refuse_as(path: Path, overwrite: bool, ending: str, what: str) -> None:
    if path.is_dir():
        raise StorageError(f"{path} is a folder; {what}.")
    if path.suffix != ending:
        raise StorageError(f"{path} has no ending {ending}; {what}.")
    refuse_output(path, overwrite)
