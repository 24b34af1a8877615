"""Numbers as codes: knots, positions and what random rounding does on average."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from invatlas.data.counts import CountSource
from invatlas.data.covariates import Covariate, Schema
from invatlas.data.knots import MOST_KNOTS, choose_knots, locate, name_knots
from invatlas.data.minibatch import Cells, Rounding
from invatlas.errors import CovariateError

NUMBERS = st.lists(
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3)), min_size=3, unique=True
)


@given(NUMBERS)
def test_knots_rise_from_the_smallest_to_the_largest_and_have_names(numbers: list[float]) -> None:
    knots = choose_knots(np.array([*numbers, np.nan]), "age")
    assert 2 <= len(knots) <= MOST_KNOTS and list(knots) == sorted(set(knots))
    assert knots[0] == min(numbers) and knots[-1] == max(numbers)
    assert len(set(name_knots(knots))) == len(knots)


@given(NUMBERS, st.lists(st.floats(-2e6, 2e6), min_size=1))
def test_a_position_is_the_linear_interpolation_and_stays_within_the_ends(
    numbers: list[float], others: list[float]
) -> None:
    knots = choose_knots(np.array(numbers), "age")
    positions = locate(np.array(others), knots)
    assert ((positions >= 0) & (positions <= len(knots) - 1)).all()
    back = np.interp(positions, np.arange(len(knots)), knots)
    np.testing.assert_allclose(back, np.clip(others, knots[0], knots[-1]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "2", "high"], "'high', which is no finite number"),
        (["low", None, "high"], r"continuous and holds text \(high, low\), no number"),
        ([1.0, 2.0, np.inf], "no finite number"),
        ([1.0, 1.0, 2.0], "2 distinct numbers"),
        ([np.nan, np.nan, np.nan], "0 distinct numbers"),
    ],
)
def test_what_is_no_scale_is_refused(values: list[object], message: str) -> None:
    with pytest.raises(CovariateError, match=message):
        Covariate.learn(pd.DataFrame({"age": values}), "age:continuous")


def test_a_continuous_covariate_alone_has_nothing_to_call() -> None:
    obs = pd.DataFrame({"age": [1.0, 2.0, 3.0]})
    with pytest.raises(CovariateError, match="at least one categorical"):
        Schema.learn(obs, ["age:continuous"], [])
    obs["kind"] = ["a", "b", "a"]
    with pytest.raises(CovariateError, match=r"holds text \(a, b\), no number"):
        Schema.learn(obs, ["kind:continuous"], [])


def test_codes_are_the_nearest_knots_and_offsets_the_rest() -> None:
    covariate = Covariate.learn(pd.DataFrame({"age": [0.0, 10.0, 20.0]}), "age:continuous")
    obs = pd.DataFrame({"age": [0, 4, 6, 14, None, 25, "NA"]})
    assert covariate.encode(obs).tolist() == [0, 0, 1, 1, -1, 2, -1]
    np.testing.assert_allclose(covariate.offsets(obs), [0, 0.4, -0.4, 0.4, 0, 0, 0], atol=1e-6)
    assert Covariate.learn(obs.iloc[:4], covariate.column).kind == "continuous"


def test_random_rounding_is_linear_interpolation_on_average(generator: np.random.Generator) -> None:
    codes = np.array([[0], [1], [2], [-1]])
    offsets = np.array([[0.25], [-0.4], [0.0], [0.0]], dtype=np.float32)
    nothing = np.zeros((4, 0), dtype=np.int64)
    source = CountSource.from_matrix(sp.csr_matrix(np.ones((4, 3), dtype=np.uint8)))
    cells = Cells(source, codes, nothing, Rounding(offsets, nothing.astype(np.float32), generator))
    rows = np.repeat(np.arange(4), 5000)
    drawn = cells.read(rows).biological.numpy()[:, 0].reshape(4, 5000)
    np.testing.assert_allclose(drawn.mean(1), [0.25, 0.6, 2, -1], atol=0.03)
    assert set(drawn[0]) == {0, 1} and set(drawn[1]) == {0, 1}
