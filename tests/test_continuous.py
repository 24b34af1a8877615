"""A severity on a curve: recovered on donors nobody trained on, with values missing too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import spearmanr

import invatlas as ia
from cards import edit_card
from invatlas.data.covariates import Schema
from invatlas.training.combinations import combine

TRAINED = 18
SETTINGS = ia.Settings(
    epochs=40, hidden=64, genes=0, invariant_latents=8, spurious_latents=2, spared_donors=0.0
)


@pytest.fixture(scope="module")
def study() -> AnnData:
    """Three types; severity, of each cell, bends the expression of all; 24 donors."""
    rng = np.random.default_rng(0)
    n, genes = 2400, 120
    kind, severity, donor = rng.integers(0, 3, n), rng.random(n), rng.integers(0, 24, n)
    angle = np.pi * severity[:, None] * np.array([1, 1])
    curve = np.c_[np.cos(angle[:, 0]), np.sin(angle[:, 1])]
    log_rate = (
        rng.normal(0, 0.8, (3, genes))[kind]
        + curve @ rng.normal(0, 0.7, (2, genes))
        + rng.normal(0, 0.15, (24, genes))[donor]
    )
    share = np.exp(log_rate)
    counts = rng.poisson(600 * share / share.sum(1, keepdims=True))
    names = [f"donor_{k:02d}" for k in range(24)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type_{k}" for k in kind]),
            "severity": severity,
            "donor": pd.Categorical([names[k] for k in donor]),
        },
        index=[f"cell_{k}" for k in range(n)],
    )
    var = pd.DataFrame(index=[f"gene_{k}" for k in range(genes)])
    return AnnData(counts.astype(np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def new(study: AnnData) -> np.ndarray:
    return (study.obs["donor"].cat.codes >= TRAINED).to_numpy()


def fit(study: AnnData, missing: float, technical: tuple[str, ...] = ("donor",)) -> ia.Atlas:
    known = study.copy()
    lost = np.random.default_rng(1).random(len(known)) < missing
    known.obs["severity"] = known.obs["severity"].where(~lost)
    return ia.fit(known, ["cell_type", "severity:continuous"], technical, settings=SETTINGS)


@pytest.fixture(scope="module")
def atlas(study: AnnData, new: np.ndarray) -> ia.Atlas:
    return fit(study[~new], 0.0)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_severity_on_a_curve_is_recovered_for_new_donors(
    study: AnnData, new: np.ndarray, atlas: ia.Atlas, missing: float
) -> None:
    atlas = fit(study[~new], missing) if missing else atlas
    bare = AnnData(study[new].X, var=study.var, obs=pd.DataFrame(index=study.obs_names[new]))
    calls = ia.annotate(atlas, bare)
    truth = study.obs[new]
    assert spearmanr(calls["predicted_severity"], truth["severity"])[0] >= 0.9
    assert (calls["predicted_cell_type"].astype(str) == truth["cell_type"].astype(str)).mean() > 0.9
    error = (calls["predicted_severity"] - truth["severity"]).abs()
    assert error.mean() < 0.1
    assert (error <= 3 * calls["predicted_severity_deviation"] + 0.05).mean() > 0.9
    assert set(calls["predicted_joint"].cat.categories) == {"type_0", "type_1", "type_2"}


def test_it_comes_back_from_disk_and_a_run_can_be_repeated(
    atlas: ia.Atlas, study: AnnData, new: np.ndarray, tmp_path: Path
) -> None:
    ia.save(atlas, tmp_path / "atlas")
    loaded = ia.load(tmp_path / "atlas")
    assert loaded.schema == atlas.schema
    assert [c.column for c in loaded.schema.biological] == ["cell_type", "severity:continuous"]
    pd.testing.assert_frame_equal(ia.annotate(loaded, study[new]), ia.annotate(atlas, study[new]))


@pytest.mark.parametrize(
    "knots", [[], [0.0, 1.0], [1.0] * 8, [float("nan")] * 8], ids=["none", "few", "flat", "nan"]
)
def test_knots_that_are_no_scale_are_refused(
    atlas: ia.Atlas, tmp_path: Path, knots: list[float]
) -> None:
    ia.save(atlas, tmp_path / "atlas")
    file = tmp_path / "atlas" / "atlas.json"
    edit_card(file, lambda card: card["schema"]["biological"][1].update(knots=knots))
    with pytest.raises(ia.InvatlasError, match="damaged"):
        ia.load(tmp_path / "atlas")


def test_numbers_beyond_the_reference_are_told(
    atlas: ia.Atlas, study: AnnData, new: np.ndarray
) -> None:
    query = study[new].copy()
    query.obs.iloc[:3, query.obs.columns.get_loc("severity")] = 7.0
    with pytest.warns(UserWarning, match="3 numbers beyond the atlas's"):
        ia.annotate(atlas, query)


def test_text_on_a_scale_is_told_missing_values_are_not(
    atlas: ia.Atlas, study: AnnData, new: np.ndarray
) -> None:
    query = study[new].copy()
    query.obs["severity"] = query.obs["severity"].astype(object)
    odd = ["high", "low", "high", "inf", "unknown", None, ""]
    query.obs.iloc[: len(odd), query.obs.columns.get_loc("severity")] = odd
    with pytest.warns(UserWarning, match=r"no finite number in 4 cells \(high, inf, low\)"):
        ia.annotate(atlas, query)
    query.obs["severity"] = np.nan
    assert ia.map_cells(atlas, query).notes == []


def test_a_scale_has_no_values_to_count(atlas: ia.Atlas, study: AnnData, new: np.ndarray) -> None:
    few = study[~new].copy()
    few.obs["severity"] = few.obs["severity"].where(few.obs["severity"] < 0.5)
    few.obs.iloc[0, few.obs.columns.get_loc("severity")] = 9.5
    settings = ia.Settings(epochs=1, hidden=8, genes=0, spared_donors=0.0)
    told = ia.fit(few, ["cell_type", "severity:continuous"], ["donor"], settings=settings)
    assert not any("fewer than 5 cells" in warning for warning in told.record["warnings"])
    assert "biological severity: a scale from " in repr(told) and " to 9.5\n" in repr(told)
    assert "biological cell_type: 3 values: type_0" in repr(told)


def test_prediction_sets_and_given_speak_of_categories(atlas: ia.Atlas, study: AnnData) -> None:
    assert list(ia.prediction_sets(atlas, study).columns) == ["type_0", "type_1", "type_2"]
    calls = ia.annotate(atlas, study, given={"cell_type": "type_1"})
    assert set(calls["predicted_cell_type"]) == {"type_1"}
    with pytest.raises(ia.InvatlasError, match="no categorical biological covariate"):
        ia.annotate(atlas, study, given={"severity": "0.5"})


def test_a_technical_covariate_may_be_continuous(study: AnnData, tmp_path: Path) -> None:
    study = study.copy()
    study.obs["depth"] = np.asarray(study.X.sum(1)).ravel()
    atlas = fit(study, 0.0, ("donor", "depth:continuous"))
    assert atlas.schema.technical[1].knots
    with pytest.raises(ia.InvatlasError, match=r"it is a scale.*name a number from \d+ to \d+"):
        ia.counterfactual(atlas, study, {"depth": "reference"})
    deep = study[:200].copy()
    deep.obs.iloc[:3, deep.obs.columns.get_loc("depth")] = 1e6
    note = "3 numbers beyond the atlas's.*calls do not depend on it, what is said of the laboratory"
    with pytest.warns(UserWarning, match=note):
        ia.annotate(atlas, deep)
    newcomers = study[:200].copy()
    newcomers.obs["donor"] = "newcomer"
    adapted = ia.adapt(atlas, newcomers)
    assert adapted.schema.technical[1] == atlas.schema.technical[1]
    ia.save(adapted, tmp_path / "atlas")
    assert ia.load(tmp_path / "atlas").schema == adapted.schema


def test_numbers_taken_as_categories_are_told(study: AnnData) -> None:
    few = study[:400].copy()
    few.obs["dose"] = np.repeat([0.5, 1.0, 2.5, 5.0], 100)
    settings = ia.Settings(epochs=1, hidden=8, genes=0, spared_donors=0.0)
    atlas = ia.fit(few, ["cell_type", "dose"], ["donor"], settings=settings)
    assert any("dose:continuous takes them as a scale" in told for told in atlas.record["warnings"])


def test_a_query_may_have_anything_in_the_column(
    atlas: ia.Atlas, study: AnnData, new: np.ndarray
) -> None:
    query = study[new][:40].copy()
    query.obs["severity"] = ["high", "0.5", "inf", "NA"] * 10
    bare = AnnData(query.X, var=query.var, obs=pd.DataFrame(index=query.obs_names))
    pd.testing.assert_frame_equal(ia.annotate(atlas, query), ia.annotate(atlas, bare))


def test_numbers_keep_to_what_is_given(atlas: ia.Atlas, study: AnnData, new: np.ndarray) -> None:
    free = ia.annotate(atlas, study[new])
    one = ia.annotate(atlas, study[new], given={"cell_type": "type_0"})
    alike = (free["predicted_cell_type"] == "type_0") & (
        free["predicted_joint_probability"] > 0.999
    )
    assert alike.sum() > 50
    near = np.isclose(free["predicted_severity"], one["predicted_severity"], atol=1e-2)
    assert near[alike].all() and not near.all()


def test_an_audit_asks_for_scales(atlas: ia.Atlas, study: AnnData, new: np.ndarray) -> None:
    found = ia.evaluate.leakage(
        atlas, study[new], cells=400, permutations=19, boosted_permutations=1
    )
    assert list(found["covariate"].unique()) == ["cell_type", "severity", "donor"]
    rows = found[(found["covariate"] == "severity") & (found["probe"] == "linear")]
    told = rows.set_index("latents")
    assert (told["chance"] == 0.25).all() and (told["role"] == "biological").all()
    assert told.loc["invariant", "score"] > max(0.4, told.loc["invariant", "null_95"])
    assert told.loc["invariant", "score"] > told.loc["spurious", "score"] + 0.1
    donor = found[found["covariate"] == "donor"]
    assert set(donor["given"]) == {"cell_type and severity"}


def test_an_audit_of_one_number_says_so(atlas: ia.Atlas, study: AnnData, new: np.ndarray) -> None:
    cells = study[new].copy()
    for number, words in ((0.5, "1 value of severity"), (np.nan, "0 values of severity")):
        cells.obs["severity"] = number
        found = ia.evaluate.leakage(atlas, cells, cells=300, permutations=1, boosted_permutations=1)
        rows = found[found["covariate"] == "severity"]
        assert rows["score"].isna().all() and rows["note"].str.contains(words).all()
        donor = found[(found["covariate"] == "donor") & (found["latents"] == "invariant")]
        assert donor["score"].notna().all(), "a scale nobody has takes no cell from others"


def test_scales_alone_are_enough_on_the_technical_side(study: AnnData) -> None:
    study = study[:600].copy()
    study.obs["depth"] = np.asarray(study.X.sum(1)).ravel()
    settings = replace(SETTINGS, spared_donors=0.25, epochs=2)
    atlas = ia.fit(study, ["cell_type"], ["depth:continuous"], settings=settings)
    assert atlas.calibration is not None and not atlas.calibration.whole_donors


def test_every_knot_is_spoken_of_where_combinations_are_many() -> None:
    kinds = np.repeat(np.arange(700), 2)
    obs = pd.DataFrame({"kind": kinds.astype(str), "age": np.tile([0.0, 10.0], 700)})
    obs.loc[0, "age"] = 5.0
    schema = Schema.learn(obs, ["kind", "age:continuous"], [])
    size = len(schema.biological[1].knots)
    many = tuple(replace(c, categories=c.categories) for c in schema.biological)
    combinations, weights = combine((*many, many[0]), np.c_[schema.encode(obs)[0], kinds])
    assert len(combinations) == 700 * size == len(np.unique(combinations, axis=0))
    assert set(combinations[:, 1]) == set(range(size)) and weights.sum() == pytest.approx(1)
