"""How numbers, lists and results are put into words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from invatlas.wording import LONGEST, Outlined, outline


@dataclass(frozen=True, repr=False)
class Found(Outlined):
    table: pd.DataFrame
    z: np.ndarray
    by_type: dict[str, int]
    seed: int


def test_a_result_prints_what_it_holds_not_all_of_it() -> None:
    table = pd.DataFrame({name: range(2000) for name in "abcdefg"})
    found = Found(table, np.zeros((2000, 5)), {"B": 1, "T": 2}, 7)
    assert repr(found).splitlines() == [
        "invatlas Found",
        "  table: 2,000 rows of a, b, c, d, e, ...",
        "  z: ndarray of 2,000 x 5",
        "  by_type: of B, T",
        "  seed: 7",
    ]


def test_a_long_value_is_cut() -> None:
    assert len(outline("x" * 500)) == LONGEST and outline("x" * 500).endswith("…")
    wide = pd.DataFrame(columns=["y" * 60, "z" * 60])
    assert outline(wide).startswith("0 rows of yy") and len(outline(wide)) == LONGEST
