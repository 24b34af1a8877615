"""The leakage audit, on latents made by hand whose truth is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score

import invatlas as ia
from invatlas.errors import SettingsError
from invatlas.evaluate.audit import COLUMNS, draw_cells
from invatlas.evaluate.question import UnanswerableError, ask, deal

QUICK = ia.evaluate.Effort(cells=600, folds=3, permutations=19, boosted_permutations=3)
BIOLOGY, LABORATORY = ["cell_type", "disease"], ["donor", "batch"]


def make_labels(cells: int = 600, donors: int = 12, seed: int = 0) -> pd.DataFrame:
    """Donors with one disease and one batch each, all crossed, and cells of two types."""
    generator = np.random.default_rng(seed)
    donor = np.arange(cells) % donors
    return pd.DataFrame(
        {
            "cell_type": np.where(generator.random(cells) < 0.5, "B", "T"),
            "disease": np.where(donor % 2, "ill", "healthy"),
            "donor": [f"d{number:02d}" for number in donor],
            "batch": np.where(donor % 4 < 2, "b1", "b2"),
        }
    )


def noisy(labels: pd.DataFrame, *columns: str, seed: int = 1) -> np.ndarray:
    """Latents that hold the named columns, plainly, and noise."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(len(labels), len(columns) + 2))
    for place, column in enumerate(columns):
        z[:, place] = 0.3 * z[:, place] + 4 * pd.factorize(labels[column], sort=True)[0]
    return z


def pick(frame: pd.DataFrame, covariate: str, latents: str, probe: str = "linear") -> pd.Series:
    rows = frame[
        (frame["covariate"] == covariate)
        & (frame["latents"] == latents)
        & (frame["probe"] == probe)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def parted() -> pd.DataFrame:
    """An ideal atlas: z_I holds type and disease, z_S holds the batch."""
    labels = make_labels()
    latents = {
        "invariant": noisy(labels, "cell_type", "disease"),
        "spurious": noisy(labels, "batch", seed=2),
    }
    return ia.evaluate.probe_latents(latents, labels, BIOLOGY, LABORATORY, QUICK)


@pytest.mark.parametrize("probe", ["linear", "neighbours", "boosted"])
def test_what_is_there_is_told_and_nothing_else(parted: pd.DataFrame, probe: str) -> None:
    for covariate in BIOLOGY:
        told = pick(parted, covariate, "invariant", probe)
        assert told["score"] > 0.97 and told["share"] > 0.9, covariate
        assert told["p_value"] == pytest.approx(1 / (1 + told["permutations"]), abs=0.06)
        assert pick(parted, covariate, "spurious", probe)["share"] < 0.25
    assert pick(parted, "batch", "spurious", probe)["score"] > 0.97
    for covariate in LABORATORY:
        leak = pick(parted, covariate, "invariant", probe)
        assert leak["score"] < leak["null_95"] + 0.05 and leak["share"] < 0.1, covariate


def test_importance_says_which_set_a_probe_uses(parted: pd.DataFrame) -> None:
    for probe in ("linear", "neighbours", "boosted"):
        for covariate, used, unused in (
            ("cell_type", "invariant", "spurious"),
            ("batch", "spurious", "invariant"),
        ):
            row = pick(parted, covariate, "both", probe)
            assert row[f"importance_{used}"] > 0.25, (probe, covariate)
            assert abs(row[f"importance_{unused}"]) < 0.1, (probe, covariate)
    alone = parted[parted["latents"] != "both"]
    assert alone[["importance_invariant", "importance_spurious"]].isna().all(axis=None)


def test_the_frame_says_how_it_came_about(parted: pd.DataFrame) -> None:
    assert list(parted.columns) == COLUMNS
    assert len(parted) == 4 * 3 * 3
    batch = pick(parted, "batch", "invariant")
    assert (batch["given"], batch["strata"], batch["chance"]) == ("cell_type and disease", 4, 0.5)
    assert batch["exchanged"] == "donor" and batch["permutations"] == 19
    assert pick(parted, "batch", "invariant", "boosted")["permutations"] == 3
    assert pick(parted, "disease", "invariant")["given"] == ""
    assert pick(parted, "disease", "spurious")["given"] == "batch"
    assert pick(parted, "cell_type", "invariant")["exchanged"] == "cell"


def test_a_leak_is_found() -> None:
    labels = make_labels()
    z = {"invariant": noisy(labels, "batch")}
    row = pick(
        ia.evaluate.probe_latents(z, labels, BIOLOGY, LABORATORY, QUICK), "batch", "invariant"
    )
    assert row["score"] > 0.99 and row["p_value"] == 0.05


def test_a_batch_told_by_biology_alone_is_no_leak() -> None:
    """Nine in ten cells of batch b1 are B cells, of b2 T cells; z_I is the cell type."""
    labels = make_labels(1200)
    generator = np.random.default_rng(0)
    usual = np.where(labels["batch"] == "b1", "B", "T")
    other = np.where(labels["batch"] == "b1", "T", "B")
    labels["cell_type"] = np.where(generator.random(len(labels)) < 0.9, usual, other)
    z = noisy(labels, "cell_type")
    question = ask(labels, "batch", [], "donor", 4, generator)
    told = np.where(labels["cell_type"] == "B", 0, 1)
    assert question.score(question.t, told) > 0.85, "without biology given it would be one"
    effort = ia.evaluate.Effort(1200, permutations=19, boosted_permutations=3)
    found = ia.evaluate.probe_latents({"invariant": z}, labels, BIOLOGY, LABORATORY, effort)
    for probe in ("linear", "neighbours", "boosted"):
        row = pick(found, "batch", "invariant", probe)
        assert row["score"] < 0.6 and row["share"] < 0.1 and row["p_value"] > 0.05, probe


def test_values_of_donors_are_exchanged_between_donors() -> None:
    """Latents that tell donors say nothing of disease; p-values must be uniform, not tiny."""
    effort = ia.evaluate.Effort(240, folds=2, permutations=19, boosted_permutations=1)
    values: dict[str, list[float]] = {"linear": [], "neighbours": []}
    for seed in range(20):
        labels = make_labels(240, seed=seed)
        generator = np.random.default_rng(seed)
        places = generator.normal(size=(12, 4))  # each donor has a place of its own
        z = places[pd.factorize(labels["donor"])[0]] + 0.1 * generator.normal(size=(240, 4))
        people = pd.Series(generator.permutation(["ill", "healthy"] * 6))
        labels["disease"] = people[pd.factorize(labels["donor"])[0]].to_numpy()
        kept = labels[["disease", "donor"]]
        found = ia.evaluate.probe_latents({"invariant": z}, kept, ["disease"], ["donor"], effort)
        for probe, held in values.items():
            row = pick(found, "disease", "invariant", probe)
            assert row["exchanged"] == "donor"
            held.append(row["p_value"])
    for probe, held in values.items():
        assert np.mean(np.array(held) <= 0.05) <= 0.2, probe
        assert 0.3 < np.mean(held) < 0.75, probe


def test_score_agrees_with_scikit_learn(generator: np.random.Generator) -> None:
    labels = make_labels()
    question = ask(labels, "batch", ["cell_type"], "donor", 4, generator)
    predicted = generator.integers(2, size=len(question.t))
    expected = [
        balanced_accuracy_score(question.t[rows], predicted[rows])
        for rows in (question.stratum == 0, question.stratum == 1)
    ]
    assert question.score(question.t, predicted) == pytest.approx(np.mean(expected))


def test_exchange_keeps_what_must_be_kept(generator: np.random.Generator) -> None:
    labels = make_labels()
    disease = ask(labels, "disease", ["batch"], "donor", 3, generator)
    t, fold = disease.exchange(generator)
    assert (t != disease.t).any()
    assert pd.DataFrame({"d": labels["donor"], "t": t}).groupby("d")["t"].nunique().max() == 1
    for batch in ("b1", "b2"):
        rows = (labels["batch"] == batch).to_numpy()
        assert t[rows].sum() == disease.t[rows].sum()
    pairs = [set(zip(disease.t, disease.fold, strict=True)), set(zip(t, fold, strict=True))]
    assert pairs[0] == pairs[1], "a value takes its fold along"
    assert disease.arrangements == pytest.approx(20 * 20)
    kind = ask(labels, "cell_type", [], "donor", 3, generator)
    t, fold = kind.exchange(generator)
    by_donor = [pd.Series(codes).groupby(labels["donor"]).sum() for codes in (t, kind.t)]
    assert (by_donor[0] == by_donor[1]).all() and (fold == kind.fold).all()


def test_folds_hold_whole_donors(generator: np.random.Generator) -> None:
    labels = make_labels()
    for covariate in ("cell_type", "disease", "batch"):
        question = ask(labels, covariate, [], "donor", 4, generator)
        assert pd.Series(question.fold).groupby(labels["donor"]).nunique().max() == 1
    donor = ask(labels, "donor", [], "donor", 4, generator)
    assert pd.Series(donor.fold).groupby(labels["donor"]).nunique().min() == 4
    assert np.bincount(deal(np.zeros(10, int), 4, generator)).tolist() == [3, 3, 2, 2]


def test_the_same_seed_gives_the_same_table() -> None:
    labels = make_labels(400)
    z = {"invariant": noisy(labels, "cell_type"), "spurious": noisy(labels, "batch")}
    effort = ia.evaluate.Effort(200, permutations=2, boosted_permutations=1, seed=4)
    once, again = (
        ia.evaluate.probe_latents(z, labels, BIOLOGY, LABORATORY, effort) for _ in range(2)
    )
    pd.testing.assert_frame_equal(once, again)


# Messy input


def test_what_cannot_be_answered_says_why() -> None:
    labels = make_labels()
    labels["platform"] = "10x"
    labels["sex"] = labels["donor"].map({"d00": "f"}).fillna("m")  # one woman only
    z = {"invariant": noisy(labels, "cell_type")}
    found = ia.evaluate.probe_latents(
        z, labels, ["cell_type", "sex", "age"], ["donor", "platform"], QUICK
    )
    for covariate, words in (
        ("platform", "1 value of platform"),
        ("sex", "in a donor never seen"),
        ("age", "no column age"),
    ):
        row = pick(found, covariate, "invariant")
        assert np.isnan(row["score"]) and np.isnan(row["p_value"]) and words in row["note"]
    # the odd woman takes nothing from the other questions but her stratum
    assert pick(found, "cell_type", "invariant")["score"] > 0.97


def test_full_confounding_has_no_answer() -> None:
    labels = make_labels()
    labels["batch"] = labels["disease"].map({"ill": "b1", "healthy": "b2"})
    found = ia.evaluate.probe_latents(
        {"invariant": noisy(labels, "disease")}, labels, BIOLOGY, LABORATORY, QUICK
    )
    row = pick(found, "batch", "invariant")
    assert np.isnan(row["score"]) and "cannot be told apart" in row["note"]


def test_missing_values_rare_ones_and_no_technical_columns() -> None:
    labels = make_labels()
    labels.loc[:99, "cell_type"] = None
    labels.loc[100:102, "cell_type"] = "rare"
    z = {"invariant": noisy(labels, "disease"), "spurious": np.zeros((600, 0))}
    found = ia.evaluate.probe_latents(z, labels, BIOLOGY, [], QUICK)
    row = pick(found, "cell_type", "invariant")
    assert set(found["latents"]) == {"invariant"}
    assert row["cells"] == 497 and "rare" in row["note"] and row["chance"] == 0.5
    assert pick(found, "disease", "invariant")["score"] > 0.99


def test_few_donors_are_said_to_be_few() -> None:
    labels = make_labels(donors=4)
    found = ia.evaluate.probe_latents(
        {"invariant": noisy(labels, "disease")}, labels, ["disease"], ["donor"], QUICK
    )
    row = pick(found, "disease", "invariant")
    assert row["score"] > 0.99 and "6 ways only" in row["note"] and row["p_value"] > 0.1
    assert not row["judged"] and "cannot be judged" in row["note"]
    assert "p is 0.33 at least" in row["note"]


def test_nothing_is_judged_below_the_least_p(generator: np.random.Generator) -> None:
    for donors, least in ((4, 2 / 6), (6, 2 / 20), (8, 2 / 70)):
        question = ask(make_labels(donors=donors), "disease", [], "donor", 2, generator)
        assert question.least_p == pytest.approx(least)
        same = [
            len(set(zip(question.exchange(generator)[0], question.t, strict=True))) == 2
            for _ in range(400)
        ]  # the truth, or the truth with its two names exchanged
        assert np.mean(same) == pytest.approx(least, abs=0.1)
    kinds = ask(make_labels(), "cell_type", [], "donor", 2, generator)
    assert kinds.least_p < 1e-100


def cross(per_cell: int, lone: bool = False) -> pd.DataFrame:
    """Three diseases x four batches, each met by so many donors; one has but one if wanted."""
    pairs = [(k % 3, k // 3 % 4) for k in range(12 * per_cell)]
    if lone:
        pairs.remove((2, 3))
    donor = np.arange(1200) % len(pairs)
    return pd.DataFrame(
        {
            "disease": [f"disease_{pairs[k][0]}" for k in donor],
            "donor": [f"d{k:02d}" for k in donor],
            "batch": [f"b{pairs[k][1]}" for k in donor],
        }
    )


def test_a_value_of_one_donor_in_each_stratum_cannot_be_told() -> None:
    """Each disease meets each batch in one donor; the batch lies bare in z_I all the same."""
    labels = cross(1)
    z = {"invariant": 5.0 * pd.get_dummies(labels["batch"]).to_numpy(float)}
    found = ia.evaluate.probe_latents(z, labels, ["disease"], ["donor", "batch"], QUICK)
    for probe in ("linear", "neighbours", "boosted"):
        row = pick(found, "batch", "invariant", probe)
        assert np.isnan(row["score"]) and np.isnan(row["p_value"]) and not row["judged"]
        assert "in no stratum of disease are two values of batch seen in two" in row["note"]


def test_two_donors_of_each_value_in_each_stratum_are_enough() -> None:
    labels = cross(2)
    z = {"invariant": 5.0 * pd.get_dummies(labels["batch"]).to_numpy(float)}
    for seed in range(3):  # the folds are dealt so that every value is learnt from its other donor
        effort = ia.evaluate.Effort(seed=seed, permutations=19, boosted_permutations=3)
        found = ia.evaluate.probe_latents(z, labels, ["disease"], ["donor", "batch"], effort)
        for probe in ("linear", "neighbours", "boosted"):
            row = pick(found, "batch", "invariant", probe)
            assert row["score"] > 0.99 and row["score"] > row["null_95"], probe
            assert row["note"] == "" and row["judged"]


def test_donors_of_one_value_in_one_stratum_share_no_fold() -> None:
    labels = cross(2)
    for seed in range(10):
        question = ask(labels, "batch", ["disease"], "donor", 4, np.random.default_rng(seed))
        told = labels.assign(fold=question.fold).groupby(["disease", "batch"])["fold"]
        assert (told.nunique() == 2).all()
        t, fold = question.exchange(np.random.default_rng(seed))
        told = labels.assign(t=t, fold=fold).groupby(["disease", "t"])["fold"]
        assert (told.nunique() == 2).all(), "values take their folds along"


def test_only_what_one_donor_has_is_left_out(generator: np.random.Generator) -> None:
    labels = cross(2, lone=True)
    question = ask(labels, "batch", ["disease"], "donor", 4, generator)
    lone = (labels["disease"] == "disease_2") & (labels["batch"] == "b3")
    assert set(question.rows) == set(np.flatnonzero(~lone))
    assert question.note == (
        "1 of 12 combinations of disease with batch left out, which one donor each has"
    )
    assert question.scored.tolist() == [4, 4, 3]


def test_a_type_of_one_donor_does_not_count(generator: np.random.Generator) -> None:
    """In the rare type each batch is met by one donor: there nobody could be told."""
    labels = cross(2)
    labels["cell_type"] = "common"
    first = labels["donor"].isin(sorted(labels["donor"].unique())[:12])
    labels.loc[first & (np.arange(1200) // 24 % 2 == 0), "cell_type"] = "rare"
    question = ask(labels, "batch", ["cell_type", "disease"], "donor", 4, generator)
    assert question.scored.tolist() == [4, 4, 4]
    assert question.score(question.t, question.t) == 1
    wrong_in_rare = np.where(labels["cell_type"] == "rare", -1, question.t)
    assert question.score(question.t, wrong_in_rare) == 1


def test_two_donors_are_too_few(generator: np.random.Generator) -> None:
    with pytest.raises(UnanswerableError, match="fewer than two values of disease"):
        ask(make_labels(donors=2), "disease", [], "donor", 4, generator)


def test_cells_are_drawn_with_every_combination() -> None:
    labels = make_labels(2000)
    rows = draw_cells(labels, 300, np.random.default_rng(0))
    assert len(set(rows)) == 300 and (np.diff(rows) > 0).all()
    share = [frame.value_counts(normalize=True) for frame in (labels, labels.iloc[rows])]
    assert (share[0] - share[1]).abs().max() < 0.01
    assert draw_cells(labels[[]], 5, np.random.default_rng(0)).shape == (5,)


def test_effort_out_of_range_is_refused() -> None:
    for changes, words in (({"folds": 1}, "folds is 1"), ({"permutations": 0}, "permutations")):
        with pytest.raises(SettingsError, match=words):
            ia.evaluate.Effort(**changes)


# With an atlas


def test_an_atlas_is_audited_from_counts(atlas: ia.Atlas, study: AnnData) -> None:
    before = study.obs.copy()
    found = ia.evaluate.leakage(
        atlas, study, cells=400, permutations=5, boosted_permutations=1, seed=1
    )
    assert len(found) == 4 * 3 * 3 and found["cells"].max() == 400
    pd.testing.assert_frame_equal(study.obs, before)
    del study.obs["batch"]
    study.obs["donor"] = study.obs["donor"].astype(str) + " of another study"
    found = ia.evaluate.leakage(atlas, study, permutations=1, boosted_permutations=1, cells=300)
    assert "no column batch" in pick(found, "batch", "invariant")["note"]
    assert pick(found, "donor", "spurious")["cells"] > 200, "donors the atlas does not know"


def test_a_fit_puts_biology_into_one_set(fit: Callable[..., ia.Atlas]) -> None:
    study = ia.simulate(
        cells=1500, genes=150, donors=8, batches=2, cell_types=3, diseases=2, truth=False, seed=3
    )
    atlas = fit(study, epochs=25, hidden=32)
    found = ia.evaluate.leakage(atlas, study, cells=800, permutations=5, boosted_permutations=1)
    kinds = [pick(found, "cell_type", which)["score"] for which in ("invariant", "spurious")]
    assert kinds[0] > 0.85 and kinds[0] > kinds[1] + 0.2
    assert pick(found, "batch", "spurious")["score"] > pick(found, "batch", "invariant")["score"]
    used = pick(found, "cell_type", "both")
    assert used["importance_invariant"] > used["importance_spurious"] + 0.2


def test_the_package_is_imported_without_the_audit() -> None:
    code = (
        "import sys, invatlas as ia; assert 'sklearn' not in sys.modules; "
        "assert callable(ia.evaluate.leakage) and 'evaluate' in dir(ia)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
