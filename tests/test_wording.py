"""How numbers, lists and results are put into words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from invatlas.wording import LONGEST, Outlined, count_noun, outline, suggest


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


def test_one_of_a_thing_is_told_in_the_singular() -> None:
    assert [count_noun(n, "cell") for n in (1, 2000)] == ["1 cell", "2,000 cells"]
    assert [count_noun(n, "stratum", "strata") for n in (1, 2)] == ["1 stratum", "2 strata"]


def test_a_long_value_is_cut() -> None:
    assert len(outline("x" * 500)) == LONGEST and outline("x" * 500).endswith("…")
    wide = pd.DataFrame(columns=["y" * 60, "z" * 60])
    assert outline(wide).startswith("0 rows of yy") and len(outline(wide)) == LONGEST


def test_what_was_meant_is_found_whatever_its_case() -> None:
    known = ["Zell Typ µ", "cell_type", "cell_type_scgen"]
    assert suggest("zell typ", known) == " Did you mean 'Zell Typ µ'?"
    assert suggest("Cell_Types", known) == " Did you mean 'cell_type'?"
    assert suggest("A1", ["a1x", "A1x"]) == " Did you mean 'A1x'?"
    assert suggest("donor", known) == suggest("donor", []) == ""
