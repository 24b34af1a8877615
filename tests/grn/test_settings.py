"""Settings of a network: any number is a number, and what is none is named."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest

import invatlas as ia
from invatlas.errors import SettingsError

WHOLE = ("steps", "refine_steps", "members", "minibatch_size", "seed")
NUMBERS = ("edge_cost", "evidence", "series_weight", "off_target_cost", "learning_rate")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_numpy_are_whole_numbers(name: str, kind: type[np.integer]) -> None:
    settings = ia.grn.NetworkSettings(**{name: kind(3)})
    assert settings == ia.grn.NetworkSettings(**{name: 3})  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(settings)))[name] == 3


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)], ids=repr)
def test_numbers_of_numpy_are_numbers(name: str, value: object) -> None:
    settings = ia.grn.NetworkSettings(**{name: value})  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(settings)))[name] == 0.5
    whole = ia.grn.NetworkSettings(**{name: np.int64(2)})
    assert type(getattr(whole, name)) is float


def test_truth_of_numpy_is_truth() -> None:
    settings = ia.grn.NetworkSettings(proteins=np.bool_(True), off_targets=np.bool_(False))
    assert settings.proteins is True and settings.off_targets is False


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", True, "steps is True; it takes a whole number from 1 on"),
        ("steps", np.float64(3.0), r"steps is 3\.0; it"),
        ("seed", np.int64(-1), "seed is -1; it"),
        ("members", "3", "members is '3'; it"),
        ("minibatch_size", None, "minibatch_size is None; it"),
        ("edge_cost", np.float32("nan"), "edge_cost is nan; it takes a number from 0 on"),
        ("edge_cost", 10**400, "edge_cost is 1000"),
        ("evidence", np.bool_(True), "evidence is True; it"),
        ("learning_rate", [0.1], r"learning_rate is \[0\.1\]; it"),
        ("off_targets", 1, "off_targets is 1; it takes true or false"),
        ("production", np.array(["sigmoid", "network"]), "production is array"),
        ("production", 3, "production is 3; it takes sigmoid"),
    ],
    ids=str,
)
def test_what_is_none_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ia.grn.NetworkSettings(**{name: value})  # type: ignore[arg-type]
