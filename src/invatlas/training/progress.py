"""A progress bar over epochs, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def watch(epochs: int, show: bool, title: str) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function to call with the history row of every epoch."""
    columns = (
        TextColumn("{task.description}: epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[objective]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(title, total=epochs, objective="", speed="")

        def on_epoch(row: dict[str, float]) -> None:
            value = row.get("held_out_objective", row["train_objective"])
            bar.update(
                task,
                advance=1,
                objective=f"objective {value:,.1f}",
                speed=f"{row['cells_per_second']:,.0f} cells/s",
            )

        yield on_epoch
