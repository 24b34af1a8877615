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
    assert found[0, 0] == pytest.approx(3 / 10) and found[1, 2] == pytest.approx(2 / 10)
    assert found[0, 1] + found[1, 1] == pytest.approx(3 / 10), "one cell is either of the two"
    assert found[1, 0] == pytest.approx(1 / 10), "a combination nobody measured is possible"
    assert weights.sum() == pytest.approx(1.0)


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """True frequencies of six types in three diseases, and 20,000 cells drawn from them."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(18))
    cells = rng.choice(18, 20_000, p=p)
    return p.reshape(6, 3), np.c_[cells // 3, cells % 3]


def test_a_type_that_is_told_coarsely_or_lacks_its_disease_is_no_rarer(
    labelled: tuple[np.ndarray, np.ndarray],
) -> None:
    p, codes = labelled
    lineage = Covariate("a", "categorical", tuple("012345"), (("early", ("0", "1")),))
    rng = np.random.default_rng(1)
    codes = codes.copy()
    codes[(codes[:, 0] <= 1) & (rng.random(len(codes)) < 0.9), 0] = -2
    codes[(codes[:, 0] == 4) & (rng.random(len(codes)) < 0.9), 1] = MISSING
    _, weights = combine([lineage, two(2, 3)[1]], codes)
    np.testing.assert_allclose(weights.reshape(6, 3), p, atol=0.02)


def test_columns_of_different_studies_give_the_frequencies_of_each(
    labelled: tuple[np.ndarray, np.ndarray],
) -> None:
    p, codes = labelled
    codes = codes.copy()
    codes[::2, 0], codes[1::2, 1] = MISSING, MISSING
    _, weights = combine(two(6, 3), codes)
    np.testing.assert_allclose(weights.reshape(6, 3), np.outer(p.sum(1), p.sum(0)), atol=0.01)


def test_cells_of_which_nothing_is_known_say_nothing() -> None:
    codes = np.array([[0, 1], [1, 2], [1, MISSING]])
    _, weights = combine(two(2, 3), codes)
    _, more = combine(two(2, 3), np.concatenate([codes, np.full((50, 2), MISSING)]))
    np.testing.assert_array_equal(weights, more)


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
