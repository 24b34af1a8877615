"""The combinations a prior speaks of: all of them, or those that occur; never none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from invatlas.data.covariates import MISSING, Covariate
from invatlas.training.combinations import MAXIMUM_COMBINATIONS, combine


def two(a: int, b: int) -> list[Covariate]:
    return [
        Covariate(name, "categorical", tuple(f"{name}{i}" for i in range(n)))
        for name, n in (("a", a), ("b", b))
    ]


def test_combinations_are_all_there_and_weigh_what_they_occur() -> None:
    codes = np.array([[0, 0], [0, 0], [1, 2], [MISSING, 1]])
    combinations, weights = combine(two(2, 3), codes)
    assert sorted(map(tuple, combinations.tolist())) == [(i, j) for i in (0, 1) for j in (0, 1, 2)]
    found = dict(zip(map(tuple, combinations.tolist()), weights, strict=True))
    assert found[0, 0] == pytest.approx(3 / 9) and found[1, 2] == pytest.approx(2 / 9)
    assert found[1, 1] == pytest.approx(1 / 9), "a combination nobody measured is possible"
    assert weights.sum() == pytest.approx(1.0)


def test_without_covariates_there_is_one_combination() -> None:
    combinations, weights = combine([], np.zeros((5, 0), dtype=np.int64))
    assert combinations.shape == (1, 0) and weights.tolist() == [1.0]


@given(st.lists(st.tuples(st.integers(-1, 69), st.integers(-1, 69)), min_size=1, max_size=40))
def test_where_there_are_too_many_combinations_every_cell_still_has_one(
    rows: list[tuple[int, int]],
) -> None:
    codes = np.array(rows)
    assume((codes != MISSING).all(1).any())
    assert 70 * 70 > MAXIMUM_COMBINATIONS
    combinations, weights = combine(two(70, 70), codes)
    assert len(combinations) == len(weights) == len(np.unique(combinations, axis=0))
    assert len(combinations) <= MAXIMUM_COMBINATIONS or len(combinations) <= len(rows)
    complete = Counter(row for row in rows if MISSING not in row)
    assert set(complete) <= set(map(tuple, combinations.tolist()))
    assert (weights > 0).all() and weights.sum() == pytest.approx(1.0)
