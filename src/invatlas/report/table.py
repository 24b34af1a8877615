"""Tables a reader can sort by a click and keep as CSV: counts of cells in, rows out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from invatlas.report.template import format_share

MOST_ROWS = 1000
MOST_LABELS = 40  # labels with a column of their own
OUTCOMES = ("called", "too weak", "new")  # what became of a cell
NO_CALL = ("no call: too weak", "no call: new")


@dataclass(frozen=True)
class Entry:
    """One field: what is shown, what is sorted and kept, and the share it is of its row's cells."""

    text: str
    value: str
    share: float | None = None


@dataclass(frozen=True)
class Heading:
    """Head of a column: its name, whether it holds numbers, whether each has a share."""

    name: str
    number: bool = True
    shares: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes
    ----------
    file
        Name of the CSV file without its ending: letters, digits and hyphens.
    headings, rows
        What it holds.
    foot
        A last row that is neither sorted nor kept, or none.
    note
        What was left out, in words.
    """

    file: str
    headings: Sequence[Heading]
    rows: Sequence[Sequence[Entry]]
    foot: Sequence[Entry] = ()
    note: str = ""


def tabulate_calls(
    calls: pd.Series, outcome: npt.NDArray[np.str_], groups: pd.Series | None
) -> Table:
    """Count the called labels, the cells without a call and the new ones in each group of cells.

    Parameters
    ----------
    calls
        Likeliest label of each cell (cell,).
    outcome
        What became of each cell (cell,), of `OUTCOMES`.
    groups
        Donor or other value of each cell (cell,); one row of all cells without it.

    Returns
    -------
    Table
        Largest groups first, most called labels first.
    """
    ranked = [str(label) for label in calls[outcome == "called"].astype(str).value_counts().index]
    labels, others = ranked[:MOST_LABELS], ranked[MOST_LABELS:]
    names = [*NO_CALL, *labels, *([f"{len(others):,} other labels"] if others else [])]
    place = np.minimum(pd.Index(ranked).get_indexer(calls.astype(str)) + 2, len(names) - 1)
    place = np.select([outcome == "too weak", outcome == "new"], [0, 1], place)
    if groups is None:
        groups = pd.Series("all cells", calls.index, name="")
    group, found = pd.factorize(say_values(groups), sort=True)
    counts = np.zeros((len(found), len(names)), dtype=int)
    np.add.at(counts, (group, place), 1)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    rows = [_count_row(str(found[row]), counts[row]) for row in order[:MOST_ROWS]]
    left = len(counts) - len(rows)
    return Table(
        file=name_file("calls", calls.name),
        headings=[
            Heading(str(groups.name), number=False),
            Heading("cells"),
            *[Heading(name, shares=True) for name in names],
        ],
        rows=rows,
        foot=_count_row("all cells", counts.sum(axis=0)) if len(counts) > 1 else (),
        note=f"The {left:,} smallest of {len(counts):,} rows are left out." if left else "",
    )


def tabulate_confidence(
    calls: pd.Series, probability: pd.Series, outcome: npt.NDArray[np.str_]
) -> Table:
    """Give the median probability of the likeliest label, for each label.

    Parameters
    ----------
    calls, probability
        Likeliest label of each cell and its probability (cell,).
    outcome
        What became of each cell (cell,), of `OUTCOMES`.

    Returns
    -------
    Table
        Most frequent labels first.
    """
    frame = pd.DataFrame(
        {"label": say_values(calls), "p": probability, "called": outcome == "called"}
    )
    grouped = frame.groupby("label", sort=True).agg(
        cells=("p", "size"), median=("p", "median"), called=("called", "sum")
    )
    grouped = grouped.sort_values("cells", ascending=False, kind="stable")
    rows = [
        [
            Entry(str(label), str(label)),
            count(int(row["cells"])),
            measure(float(row["median"])),
            count(int(row["called"]), int(row["cells"])),
        ]
        for label, row in grouped.head(MOST_ROWS).iterrows()
    ]
    headings = [Heading("likeliest label", number=False), Heading("cells")]
    headings += [Heading("median probability"), Heading("called", shares=True)]
    left = len(grouped) - len(rows)
    note = f"The {left:,} rarest of {len(grouped):,} labels are left out." if left else ""
    return Table(name_file("confidence", calls.name), headings, rows, note=note)


def tabulate_frame(frame: pd.DataFrame, file: str, most: int = MOST_ROWS) -> Table:
    """Show a table as it is: lists in one line, columns named after a share in per cent.

    Parameters
    ----------
    frame
        Any table; its index is shown where it has a name.
    file
        As in `Table`.
    most
        Rows shown at most.

    Returns
    -------
    Table
    """
    frame = frame.reset_index() if frame.index.name is not None else frame
    headings = [
        Heading(str(name), number=pd.api.types.is_numeric_dtype(dtype))
        for name, dtype in zip(frame.columns, frame.dtypes, strict=True)
    ]
    rows = [
        [
            _say_value(value, heading.number and "share" in heading.name.lower())
            for heading, value in zip(headings, row, strict=True)
        ]
        for row in frame.head(most).itertuples(index=False, name=None)
    ]
    left = len(frame) - len(rows)
    note = f"The last {left:,} of {len(frame):,} rows are left out." if left else ""
    return Table(file, headings, rows, note=note)


def say_values(values: pd.Series) -> pd.Series:
    """Say the values of a column as text, missing ones too."""
    return values.astype(object).where(values.notna(), "no value").astype(str)


def name_file(*parts: object) -> str:
    """Name a file after anything: letters, digits and hyphens are kept."""
    plain = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", str(part)).strip("-") for part in parts)
    return plain.strip("-")[:80] or "table"


def count(number: int, of: int | None = None) -> Entry:
    """Give a number of cells, with its share of `of` where that is named."""
    share = None if of is None else number / max(of, 1)
    return Entry(f"{number:,}", str(number), share)


def measure(number: float) -> Entry:
    """Give a number that is no count; nothing where it is missing."""
    missing = not np.isfinite(number)
    return Entry("no value" if missing else _round(number), "" if missing else f"{number:.6g}")


def _count_row(name: str, counts: Iterable[int]) -> list[Entry]:
    numbers = [int(number) for number in counts]
    total = sum(numbers)
    return [Entry(name, name), count(total), *[count(number, total) for number in numbers]]


def _round(number: float) -> str:
    """Three digits, more of large numbers; powers of ten only where they are shorter."""
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e7 else f"{number:.3g}"


def _say_value(value: Any, as_share: bool) -> Entry:
    if isinstance(value, list | tuple | set | np.ndarray):
        text = ", ".join(map(str, value))
        return Entry(text, text)
    if value is None or pd.isna(value):
        return Entry("no value", "")
    if isinstance(value, Integral):
        return Entry(f"{int(value):,}", str(int(value)))
    if isinstance(value, Real):
        number = float(value)
        return Entry(format_share(number) if as_share else _round(number), f"{number:.6g}")
    return Entry(str(value), str(value))
