"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="Folder of an atlas.")]
Cells = Annotated[Path, typer.Argument(help="h5ad file with raw counts and covariates.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")]
Layer = Annotated[str | None, typer.Option(help="Layer that holds the raw counts; X by default.")]
GeneColumn = Annotated[
    str | None, typer.Option(help="Column of var with gene names; var_names by default.")
]
Condition = Annotated[
    str | None, typer.Option(help="obs column; by default the second biological one.")
]
CellType = Annotated[
    str | None, typer.Option(help="obs column; by default the first biological one.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; half of the cores by default.")
]
Report = Annotated[
    Path | None, typer.Option(help="HTML page to write: figures and tables to sort and keep.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def use_threads(threads: int | None) -> None:
    """Set the threads of torch.

    By default half of what it would take, which is as quick, since counts are read ahead in a
    thread of their own, and does not stall where other programs keep the cores busy.
    """
    import torch

    if threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // 2))
