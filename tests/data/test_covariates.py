"""Covariates: which values a column has, which are missing, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from invatlas.data.covariates import MISSING, Covariate, Schema
from invatlas.errors import CovariateError

SPELLED_MISSING = ("", " ", "NA", "n/a", "NaN", "nan", "null", "Unknown", "unknown", "<NA>")


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_values_are_learnt_in_alphabetical_order_and_coded() -> None:
    obs = table(kind=["b", "a", "c", "a", "b", "c"])
    covariate = Covariate.learn(obs, "kind")
    assert covariate.categories == ("a", "b", "c")
    assert covariate.encode(obs).tolist() == [1, 0, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "missing", [np.nan, None, pd.NA, pd.NaT, *SPELLED_MISSING], ids=lambda v: repr(v)
)
def test_missing_is_no_category_in_any_spelling(missing: object) -> None:
    obs = table(kind=pd.Series(["x", missing, "y", missing, "x", "y"], dtype=object))
    covariate = Covariate.learn(obs, "kind")
    assert covariate.categories == ("x", "y")
    assert covariate.encode(obs).tolist() == [0, MISSING, 1, MISSING, 0, 1]


def test_none_is_a_value_as_studies_write_it_of_a_disease() -> None:
    assert Covariate.learn(table(disease=["none", "lupus"] * 2), "disease").categories == (
        "lupus",
        "none",
    )


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["1", "2", "1", "2", None]),
        pd.Series([1, 2, 1, 2, None]),  # pandas makes floats of them
        pd.Series([1, 2, 1, 2, None], dtype="Int64"),
        pd.Series(["1", "2", "1", "2", None], dtype="string"),
        pd.Categorical([1, 2, 1, 2, None]),
        pd.Categorical([1.0, 2.0, 1.0, 2.0, None]),
        pd.Categorical(["1", "2", "1", "2", None], categories=["2", "unused", "1"]),
    ],
    ids=["text", "float", "Int64", "string", "categorical int", "categorical float", "unused"],
)
def test_one_column_in_every_dtype_is_one_covariate(column: object) -> None:
    obs = table(donor=column)
    covariate = Covariate.learn(obs, "donor")
    assert covariate.categories == ("1", "2")
    assert covariate.encode(obs).tolist() == [0, 1, 0, 1, MISSING]


def test_truth_values_are_categories() -> None:
    assert Covariate.learn(table(ill=[True, False, True]), "ill").categories == ("False", "True")


def test_values_never_seen_and_columns_not_there_are_missing_at_encoding() -> None:
    covariate = Covariate("kind", "categorical", ("a", "b"))
    assert covariate.encode(table(kind=["b", "new", "a"])).tolist() == [1, MISSING, 0]
    assert covariate.encode(table(other=["b", "b"])).tolist() == [MISSING, MISSING]
    assert covariate.encode(table(kind=pd.Series([], dtype=object))).tolist() == []


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("cell_typ", r"no column 'cell_typ'.*Did you mean 'cell_type'"),
        ("CELLTYPE", r"no column 'CELLTYPE'.*Did you mean 'cell_type'"),
        ("cell_type,each", r"'cell_type' and 'each' are columns .*, repeat the option for each"),
        ("nothing_like_it", r"no column 'nothing_like_it'; it has cell_type"),
        ("constant", r"'constant' has one value, 'only', in every cell"),
        ("one_category", r"'one_category' has one value, 'only'"),
        ("one_beside_missing", r"has one value, 'only', in every cell that has any"),
        ("joint", r"cannot be called 'joint'"),
        ("each", r"'each' has another value in each of 6 cells \('k0', 'k1', \.\.\.\)"),
        ("empty", r"'empty' has no value in any of 6 cells"),
        ("spelled_empty", r"'spelled_empty' has no value in any of 6 cells"),
        ("score:spline", r"kind 'spline'; it may be categorical or continuous"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(column: str, message: str) -> None:
    obs = table(
        cell_type=["a", "b"] * 3,
        constant=["only"] * 6,
        one_category=pd.Categorical(["only"] * 6, categories=["only", "unused"]),
        one_beside_missing=["only", None, "NA"] * 2,
        joint=["a", "b"] * 3,
        each=[f"k{i}" for i in range(6)],
        empty=[None] * 6,
        spelled_empty=list(SPELLED_MISSING[:6]),
        score=np.linspace(0, 1, 6),
    )
    with pytest.raises(CovariateError, match=message):
        Schema.learn(obs, [column], [])


@pytest.mark.parametrize(("times", "told"), [(2, "twice"), (3, "3 times")])
def test_a_column_that_stands_there_more_than_once_is_refused(times: int, told: str) -> None:
    obs = pd.DataFrame([["a"] * times, ["b"] * times] * 3, columns=["kind"] * times)
    with pytest.raises(CovariateError, match=f"obs has the column 'kind' {told}"):
        Schema.learn(obs, ["kind"], [])
    with pytest.raises(CovariateError, match=f"obs has the column 'kind' {told}"):
        Covariate("kind", "categorical", ("a", "b")).encode(obs)


def test_a_kind_may_be_named_and_a_colon_may_be_part_of_a_name() -> None:
    obs = table(**{"cell_type": ["a", "b"] * 3, "ontology:id": ["x", "y", "z"] * 2})
    assert Schema.learn(obs, ["cell_type:categorical"], []).biological[0].name == "cell_type"
    assert Schema.learn(obs, ["ontology:id"], []).biological[0].name == "ontology:id"


@pytest.mark.parametrize(
    ("biological", "technical", "message"),
    [
        ([], ["donor"], "No biological covariate"),
        ("kind", ["donor"], "biological .*'kind'.* list"),
        (["kind"], "donor", "technical .*'donor'.* list"),
        (["kind", "kind"], [], "'kind' is named more than once"),
        (["kind"], ["kind"], "'kind' is named more than once"),
        (["kind"], ["donor", "donor"], "'donor' is named more than once"),
        ([3], [], "biological .*3"),
        (3, [], "biological .*3"),
        (["kind"], None, "technical .*None"),
    ],
)
def test_covariates_that_contradict_each_other_are_refused(
    biological: object, technical: object, message: str
) -> None:
    obs = table(kind=["a", "b"] * 3, donor=["x", "y", "z"] * 2)
    with pytest.raises(CovariateError, match=message):
        Schema.learn(obs, biological, technical)  # type: ignore[arg-type]


def is_missing(text: str) -> bool:
    return text.strip().lower() in {s.strip().lower() for s in SPELLED_MISSING}


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(texts, min_size=2, max_size=6, unique=True), st.randoms())
def test_odd_texts_come_back_from_json(values: list[str], random: object) -> None:
    values = [value for value in values if not is_missing(value)]
    assume(len(values) >= 2)
    column = values * 2 + [None]
    random.shuffle(column)  # type: ignore[attr-defined]
    obs = table(kind=pd.Series(column, dtype=object))
    schema = Schema.learn(obs, ["kind"], [])
    back = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert back == schema
    codes, nothing = back.encode(obs)
    assert nothing.shape == (len(column), 0)
    decoded = [back.biological[0].categories[c] if c != MISSING else None for c in codes[:, 0]]
    assert decoded == column


def test_a_continuous_covariate_is_part_of_the_format() -> None:
    schema = Schema((Covariate("age", "continuous", ()),), ())
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
