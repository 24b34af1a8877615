"""The tables of a report: what they count, sum up and leave out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from invatlas.report.table import name_file, tabulate_calls, tabulate_confidence, tabulate_frame


def test_calls_are_counted_by_donor() -> None:
    calls = pd.Series(["B", "T", "T", "B", "T"], name="predicted_joint", dtype="category")
    outcome = np.array(["called", "called", "too weak", "new", "called"])
    donors = pd.Series(["d1", "d1", "d1", None, "d2"], name="donor")
    table = tabulate_calls(calls, outcome, donors)
    names = ["donor", "cells", "no call: too weak", "no call: new", "T", "B"]
    assert [heading.name for heading in table.headings] == names
    rows = [[entry.value for entry in row] for row in table.rows]
    assert rows[0] == ["d1", "3", "1", "0", "1", "1"]
    assert sorted(rows[1:]) == [
        ["d2", "1", "0", "0", "1", "0"],
        ["no value", "1", "0", "1", "0", "0"],
    ]
    assert [entry.value for entry in table.foot] == ["all cells", "5", "1", "1", "2", "1"]
    assert [entry.share for entry in table.rows[0][2:]] == [1 / 3, 0, 1 / 3, 1 / 3]


def test_rare_labels_and_donors_are_summed_up_or_left_out() -> None:
    calls = pd.Series([f"label {n % 50}" for n in range(6000)], name="predicted_joint")
    donors = pd.Series([f"donor {n // 2}" for n in range(6000)], name="donor")
    table = tabulate_calls(calls, np.full(6000, "called"), donors)
    assert len(table.headings) == 4 + 40 + 1
    assert table.headings[-1].name == "10 other labels"
    assert sum(int(entry.value) for entry in table.foot[2:]) == 6000
    assert len(table.rows) == 1000
    assert table.note == "The 2,000 smallest of 3,000 rows are left out."


def test_medians_are_of_all_cells_of_a_label() -> None:
    calls = pd.Series(["B", "B", "B", "T"], name="predicted_joint")
    p = pd.Series([0.2, 0.6, 0.9, 0.8])
    table = tabulate_confidence(calls, p, np.array(["too weak", "called", "new", "called"]))
    assert [[entry.value for entry in row] for row in table.rows] == [
        ["B", "3", "0.6", "1"],
        ["T", "1", "0.8", "1"],
    ]


def test_any_table_is_shown() -> None:
    frame = pd.DataFrame(
        {
            "cells": [1200, 3],
            "share_called_so": [0.5, np.nan],
            "log_fold": [1.23456, 2.0],
            "markers": [["A", "B"], None],
        },
        index=pd.Index(["g1", "g2"], name="group"),
    )
    table = tabulate_frame(frame, "groups")
    assert [entry.text for entry in table.rows[0]] == ["g1", "1,200", "50.0 %", "1.23", "A, B"]
    assert [entry.value for entry in table.rows[1]] == ["g2", "3", "", "2", ""]


def test_files_are_named_plainly() -> None:
    assert name_file("calls", "predicted_cell type/🧬") == "calls-predicted-cell-type"
    assert name_file("🧬") == "table"
