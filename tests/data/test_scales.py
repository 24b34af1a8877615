"""Which numbers cannot be told from what they go with: designs made by hand, chance, oracles."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway

import invatlas as ia
from invatlas.data.confounding import check_design, refuse_confounding
from invatlas.data.findings import VERDICTS, Finding
from invatlas.data.scales import measure_along, measure_between
from invatlas.errors import ConfoundingError
from invatlas.report.page import tabulate_confounding
from invatlas.terminal import show_confounding

AGED = ["cell_type", "age:continuous"]


def kinds(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.biological, finding.beside) for finding in findings]


def draw(values: int, spread: float, n: int = 600) -> pd.DataFrame:
    """Give obs of batches aged 20, 40, 60, ..., with a spread within each, and two cell types."""
    rng = np.random.default_rng(0)
    batch = np.arange(n) % values
    obs = {
        "cell_type": rng.choice(["B", "T"], n),
        "batch": [f"b{k}" for k in batch],
        "age": 20.0 + 20 * batch + rng.normal(0, spread, n),
    }
    return pd.DataFrame(obs, [f"c{k}" for k in range(n)])


def test_an_age_of_each_of_three_batches_is_an_alarm_and_refused() -> None:
    findings = check_design(draw(3, 0), AGED, ["batch"])
    assert kinds(findings) == [("full", "age", "batch")] and findings[0].cells == 600
    assert findings[0].sentence == (
        "What age does cannot be told from what batch does: all the variation of age in 600 cells "
        "lies between the 3 values of batch (20 in b0, 40 in b1, 60 in b2)."
    )
    with pytest.raises(ConfoundingError, match="What age does cannot be told from what batch"):
        refuse_confounding(findings)
    study = AnnData(np.ones((600, 20), dtype=np.float32), obs=draw(3, 0))
    with pytest.raises(ConfoundingError, match="What age does cannot be told from what batch"):
        ia.fit(study, AGED, ["batch"], strict=True, settings=ia.Settings(epochs=10**6))


def test_ages_that_hardly_vary_within_batches_are_near() -> None:
    (finding,) = check_design(draw(3, 4), AGED, ["batch"])
    assert finding.kind == "near" and finding.alarm
    assert "What age does can hardly be told from what batch does: 94.7 % of" in finding.sentence
    assert check_design(draw(3, 12), AGED, ["batch"]) == []


@pytest.mark.parametrize("values", [5, 40])
def test_an_age_of_each_of_many_donors_is_a_note(values: int) -> None:
    obs = draw(values, 0).rename(columns={"batch": "donor"})
    (finding,) = check_design(obs, AGED, ["donor"])
    assert finding.kind == "nested" and not finding.alarm and len(finding.matches) == values
    assert finding.sentence.startswith(
        "What age does can be told only by comparing several values of donor: all the variation"
    )
    refuse_confounding([finding])
    obs["age"] += np.random.default_rng(0).normal(0, 2, len(obs))
    (finding,) = check_design(obs, AGED, ["donor"])
    assert finding.kind == "nested"
    assert "can hardly be told but by comparing several values of donor" in finding.sentence


def test_four_donors_and_a_few_cells_of_others_are_not_many() -> None:
    donor = np.r_[np.repeat(np.arange(4), 100), 4, 4, 5, 5]
    obs = pd.DataFrame({"cell_type": list("BT") * 202, "donor": [f"d{k}" for k in donor]})
    obs["age"] = 20.0 + 10 * donor
    assert kinds(check_design(obs, AGED, ["donor"])) == [("full", "age", "donor")]


def test_one_donor_of_another_age_is_an_alarm_that_names_it() -> None:
    donor = np.repeat(np.arange(10), 60)
    obs = pd.DataFrame({"cell_type": list("BT") * 300, "donor": [f"d{k}" for k in donor]})
    obs["age"] = np.r_[[20] * 7, 21, 22, 80][donor]
    (finding,) = check_design(obs, AGED, ["donor"])
    assert finding.kind == "full"
    assert [(match.values, match.beside) for match in finding.matches] == [(("80",), ("d9",))]
    assert finding.sentence == (
        "What age does cannot be told from what donor=d9 does: all the variation of age lies "
        "between values of donor, most of it between d9 (80) and the others."
    )


@pytest.mark.parametrize("diseases", [2, 8])
def test_a_depth_that_splits_by_disease_is_an_alarm(diseases: int) -> None:
    rng = np.random.default_rng(0)
    disease = np.arange(400) % diseases
    obs = pd.DataFrame({"disease": [f"s{k}" for k in disease]})
    obs["depth"] = 1000.0 + 4000 * disease + rng.integers(0, 10, 400)
    (finding,) = check_design(obs, ["disease"], ["depth:continuous"])
    assert (finding.kind, finding.biological, finding.beside) == ("full", "disease", "depth")
    assert finding.matches[0].values == ("s0",)
    assert finding.matches[0].beside == ("1,000 to 1,009",)
    assert "99.9 % of the variation of depth in 400 cells lies between" in finding.sentence


def test_an_age_that_goes_along_with_depth_is_an_alarm() -> None:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"cell_type": list("BT") * 200, "age": rng.uniform(20, 80, 400)})
    for noise, kind in ((0, "full"), (5, "near"), (20, None)):
        obs["depth"] = 9000 - 100 * (obs["age"] + rng.normal(0, noise, 400))
        found = check_design(obs, AGED, ["depth:continuous"])
        assert kinds(found) == ([(kind, "age", "depth")] if kind else [])
        assert all(
            "the variation of age in 400 cells goes along with depth" in f.sentence
            and f.cells == 400
            for f in found
        )


@pytest.mark.parametrize(("n", "values"), [(10, 2), (10, 5), (20, 5), (60, 30)])
def test_chance_is_no_finding(n: int, values: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        obs = pd.DataFrame({"disease": (["ill", "well"] * n)[:n], "age": rng.normal(50, 10, n)})
        obs["batch"] = [f"b{k}" for k in np.r_[0, 0, 1, rng.integers(0, values, n - 3)]]
        obs["depth"] = rng.lognormal(8, 1, n)
        biological, technical = ["disease", "age:continuous"], ["batch", "depth:continuous"]
        found = kinds(check_design(obs, biological, technical))
        assert not [pair for pair in found if "age" in pair or "depth" in pair]


def test_cells_without_a_number_or_a_value_count_for_nothing() -> None:
    obs = draw(3, 0)
    obs.loc[obs.index[300:450], "age"] = np.nan
    obs.loc[obs.index[450:], "batch"] = None
    obs.loc[obs.index[450:], "age"] = np.arange(150)
    (finding,) = check_design(obs, AGED, ["batch"])
    assert finding.kind == "full" and finding.cells == 300
    assert [match.values for match in finding.matches] == [("20",), ("40",), ("60",)]
    obs.loc[obs.index[:450], "age"] = np.nan
    assert check_design(obs, AGED, ["batch"]) == []
    obs.loc[obs.index[:450], "age"] = 30
    assert check_design(obs, AGED, ["batch"]) == []


def test_findings_of_scales_come_back_from_json_and_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    obs = draw(3, 0).assign(depth=np.arange(600) % 3 * 7.5)
    found = check_design(obs, AGED, ["batch", "depth:continuous"])
    assert kinds(found) == [("full", "age", "batch"), ("full", "age", "depth")]
    assert [Finding.from_json(json.loads(json.dumps(f.to_json()))) for f in found] == found
    frame = ia.confounding(AnnData(obs=obs), AGED, ["batch", "depth:continuous"])
    assert list(frame["values"]) == ["20 with b0; 40 with b1; 60 with b2", "20 to 60 with 0 to 15"]
    assert list(frame["cells"]) == [600, 600] and list(frame["explained"]) == [1.0, 1.0]
    table = tabulate_confounding(frame.to_dict("records"))
    assert table is not None and "age and depth" in str(table)
    show_confounding(found, VERDICTS)
    assert "age and batch" in capsys.readouterr().err


def test_shares_explained_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    place = rng.integers(0, 4, 90)
    x = np.array([0.0, 10, 20, 60])[place] + rng.normal(0, 4, 90)
    left = 1 - measure_between(x, place)
    _, residual, _, _ = np.linalg.lstsq(np.eye(4)[place], x, rcond=None)
    assert math.isclose(left, residual[0] / 86 / x.var(ddof=1), rel_tol=1e-6)
    y = x + rng.normal(0, 2, 90)
    _, residual, _, _ = np.linalg.lstsq(np.c_[np.ones(90), y], x, rcond=None)
    left = 1 - measure_along(x, y)
    assert math.isclose(left, residual[0] / 88 / x.var(ddof=1), rel_tol=1e-6)


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.3, 0.4, 0.6])
def test_what_may_be_chance_by_an_analysis_of_variance_counts_as_nothing(spread: float) -> None:
    place = np.repeat(np.arange(3), 2)
    x = place + spread / 10 * np.array([1, -1, 1, -1, 1, -1])
    chance = f_oneway(*x.reshape(3, 2)).pvalue
    assert (measure_between(x, place) == 0) == (chance >= 1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(2, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_units_and_order_of_cells_change_no_finding_of_a_scale(
    seed: int, values: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    batch = rng.integers(0, values, 80)
    obs = pd.DataFrame({"cell_type": list("BT") * 40, "batch": [f"b{k}" for k in batch]})
    obs["age"] = rng.normal(0, 1, values)[batch] + rng.normal(0, spread, 80) + np.arange(80) * 1e-9
    other = obs.assign(age=1000 - 365.25 * obs["age"]).iloc[rng.permutation(80)]
    if obs["batch"].nunique() < 2:
        return

    def tell(obs: pd.DataFrame) -> list[tuple[Any, ...]]:
        return [
            (f.kind, *((m.beside, m.cells, round(m.explained, 6)) for m in f.matches))
            for f in check_design(obs, AGED, ["batch"])
            if f.biological == "age"
        ]

    assert tell(obs) == tell(other)
