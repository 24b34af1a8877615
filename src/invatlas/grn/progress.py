"""A progress bar over the steps of a fit, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def watch_steps(steps: int, show: bool) -> Iterator[Callable[[int, float], None]]:
    """Yield a function to call with the member and the loss of every step."""
    columns = (
        TextColumn("fitting: member {task.fields[member]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("fitting", total=steps, member=1, loss="")

        def on_step(member: int, loss: float) -> None:
            bar.update(task, advance=1, member=member + 1, loss=f"{loss:,.0f}")

        yield on_step
