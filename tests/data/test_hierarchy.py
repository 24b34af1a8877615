"""Coarse values: what they stand for, how they are coded, and which hierarchies are refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from invatlas.data.covariates import MISSING, Covariate, Schema
from invatlas.data.hierarchy import describe_unmet
from invatlas.errors import CovariateError


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns)


T_CELLS = {"T cell": ["CD4 T", "CD8 T"], "lymphocyte": ["T cell", "B"]}


def test_coarse_values_are_no_categories_and_have_codes_below_missing() -> None:
    obs = table(kind=["CD4 T", "T cell", "B", None, "lymphocyte", "CD8 T", "other", "B"])
    covariate = Covariate.learn(obs, "kind", T_CELLS)
    assert covariate.categories == ("B", "CD4 T", "CD8 T", "other")
    assert covariate.groups == (
        ("T cell", ("CD4 T", "CD8 T")),
        ("lymphocyte", ("B", "CD4 T", "CD8 T")),
    )
    assert covariate.encode(obs).tolist() == [1, -2, 0, MISSING, -3, 2, 3, 0]
    assert covariate.members.astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]


def test_coarse_values_that_never_occur_are_left_out() -> None:
    obs = table(kind=["CD4 T", "CD8 T", "B", "B"])
    assert Covariate.learn(obs, "kind", T_CELLS).groups == ()


def test_a_schema_with_coarse_values_survives_json() -> None:
    obs = table(kind=["CD4 T", "T cell", "B", "B"], donor=["1", "2", "1", "2"])
    schema = Schema.learn(obs, ["kind"], ["donor"], {"kind": T_CELLS})
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_names_no_cell_has_are_told_with_what_was_meant() -> None:
    obs = table(kind=["CD4 T", "CD8 T", "T cell", "B"])
    hierarchy = {"kind": {"T cell": ["CD4 T", "CD8T"], "T cells": ["B"]}}
    assert describe_unmet(hierarchy, obs) == [
        "The hierarchy names kind 'CD8T', which no cell has. Did you mean 'CD8 T'?",
        "The hierarchy names kind 'T cells', which no cell has. Did you mean 'T cell'?",
    ]


def test_a_column_named_with_its_kind_has_its_hierarchy() -> None:
    obs = table(kind=["CD4 T", "CD8 T", "T cell", "T cell"], donor=["1", "2", "1", "2"])
    schema = Schema.learn(obs, ["kind:categorical"], [], {"kind": {"T cell": ["CD4 T", "CD8 T"]}})
    assert schema.biological[0].categories == ("CD4 T", "CD8 T")


@pytest.mark.parametrize(
    ("hierarchy", "message"),
    [
        ({"kind": {"T cell": ["NK"]}}, r"'T cell' stand for NK; none of them is a value"),
        ({"kind": {"T cell": ["T cell"]}}, r"'T cell' stand for itself alone"),
        ({"kind": {"T cell": "CD4 T"}}, r"hierarchy of 'kind' is .* it is written"),
        ({"donor": {"T cell": ["CD4 T"]}}, r"speaks of 'donor', which is no biological covariate"),
        (["T cell"], r"The hierarchy is \['T cell'\]"),
        (
            {"kind": {v: ["x"] for v in ("CD4 T", "T cell", "B")}},
            r"coarse values only|none of them",
        ),
    ],
)
def test_a_hierarchy_that_cannot_be_used_is_refused(hierarchy: object, message: str) -> None:
    obs = table(kind=["CD4 T", "T cell", "B", "B"], donor=["1", "2", "1", "2"])
    with pytest.raises(CovariateError, match=message):
        Schema.learn(obs, ["kind"], ["donor"], hierarchy)
