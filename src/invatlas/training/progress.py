"""A progress bar over epochs, with the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class EpochBar:
    """The bar of one fit."""

    progress: Progress
    task: TaskID

    def on_epoch(self, row: dict[str, float]) -> None:
        """Go on by an epoch, whose history row says how it went."""
        value = row.get("held_out_objective", row["train_objective"])
        self.progress.update(
            self.task,
            advance=1,
            objective=f"objective {value:,.0f}",
            speed=f"{row['cells_per_second']:,.0f} cells/s",
        )

    def say_early(self, best_epoch: int) -> None:
        """Say why the bar stops short of its end."""
        told = f"ended: epoch {best_epoch} was best"
        self.progress.update(self.task, objective="", speed=told)


@contextmanager
def watch(epochs: int, show: bool, title: str) -> Iterator[EpochBar]:
    """Draw a bar of so many epochs on standard error; nothing is drawn unless ``show``."""
    columns = (
        TextColumn("{task.description}: epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[objective]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        yield EpochBar(progress, progress.add_task(title, total=epochs, objective="", speed=""))
