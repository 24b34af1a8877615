"""Labels of an audit: scales cut into groups, on numbers laid out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import invatlas as ia
from invatlas.data.covariates import Schema
from invatlas.evaluate.labels import cut_scale, read_labels


def text(numbers: list[float]) -> pd.Series:
    return pd.Series([str(number) for number in numbers], dtype=object)


def test_a_scale_is_cut_into_four_groups_of_equal_size(generator: np.random.Generator) -> None:
    numbers = generator.permutation(100) + 0.5
    groups = cut_scale(text(numbers.tolist()))
    assert groups.value_counts().to_dict() == {
        "0.5 to 24.5": 25, "25.5 to 49.5": 25, "50.5 to 74.5": 25, "75.5 to 99.5": 25,
    }  # fmt: skip
    assert (groups[numbers < 25] == "0.5 to 24.5").all()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_two_distinct_numbers_are_two_groups(share: float) -> None:
    groups = cut_scale(text([3.0] * round(100 * share) + [8.0] * round(100 * (1 - share))))
    assert set(groups) == {"3", "8"}


def test_equal_numbers_share_a_group_and_others_are_missing() -> None:
    groups = cut_scale(pd.Series(["1", "1", "1", "2", "9", None, "old", "inf"], dtype=object))
    assert groups[:3].nunique() == 1 and groups.notna().tolist() == [True] * 5 + [False] * 3
    assert cut_scale(text([7.0, 7.0])).tolist() == ["7", "7"]
    assert cut_scale(pd.Series([None, "?"], dtype=object)).isna().all()
    close = cut_scale(text([1e9 + 0.25 * k for k in range(8)]))
    assert close.nunique() == 4, "groups have names of their own"


def test_labels_are_those_that_obs_has() -> None:
    obs = pd.DataFrame({"kind": list("abab"), "age": [1.0, 2.0, 3.0, 4.0], "run": list("xxyy")})
    schema = Schema.learn(obs, ["kind", "age:continuous"], ["run"])
    assert read_labels(schema, obs)["age"].tolist() == ["1", "2", "3", "4"]
    assert list(read_labels(schema, obs[["run", "kind"]])) == ["kind", "run"]


def test_scales_of_the_laboratory_are_asked_for_but_are_no_donors() -> None:
    """Depth has more groups than there are donors; donors carry it all the same."""
    generator = np.random.default_rng(0)
    donor = np.arange(600) % 3
    labels = pd.DataFrame({"kind": np.where(generator.random(600) < 0.5, "B", "T")})
    labels["donor"] = [f"d{k}" for k in donor]
    depth = generator.random(600)
    labels["depth"] = cut_scale(pd.Series(depth).astype(str))
    latents = {"invariant": np.c_[depth, generator.random(600)], "spurious": np.zeros((600, 1))}
    found = ia.evaluate.probe_latents(
        latents,
        labels,
        ["kind"],
        ["donor", "depth"],
        ia.evaluate.Effort(600, 3, 19, 1),
        scales=["depth"],
    )
    row = found[(found["covariate"] == "depth") & (found["latents"] == "invariant")].iloc[1]
    assert row["probe"] == "neighbours" and row["score"] > 0.6 and row["p_value"] == 0.05
    assert row["given"] == "kind" and row["chance"] == 0.25
    kind = found[(found["covariate"] == "kind") & (found["latents"] == "spurious")]
    assert set(kind["given"]) == {""}
