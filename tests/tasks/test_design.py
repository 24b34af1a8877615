"""The next experiment: information as in linear regression, chosen as well as by trying all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import invatlas as ia
from invatlas.data.covariates import Covariate
from invatlas.tasks.design import (
    choose,
    inform,
    list_unmeasured,
    measure_cells,
    measure_prior,
    weigh,
)
from invatlas.tasks.explain import count_cells
from invatlas.tasks.prior_effects import Effects, Measured, fit_effects, predict

LETTERS = Covariate("letter", "categorical", ("a", "b", "c"))
COLOURS = Covariate("colour", "categorical", ("blue", "red"))
DOSES = Covariate("dose", "continuous", ("0", "1", "2"), knots=(0.0, 1.0, 2.0))
EFFECTS = Effects(np.array([[0.5, 2.0, 1.0, 0.7], [0.1, 0.3, 4.0, 0.2]]))
PAIRS = [(x, y) for x in "abc" for y in ("blue", "red")]


def table(pairs: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["letter", "colour"])


def features(pairs: list[tuple[str, str]], variances: np.ndarray) -> np.ndarray:
    """Every effect of its own column, scaled to a prior variance of 1."""
    t0, t_letter, t_colour, t_pair = np.sqrt(variances)
    rows = []
    for letter, colour in pairs:
        x, y = letter.split("+"), [colour]
        effects = {"": t0} | dict.fromkeys(x, t_letter) | dict.fromkeys(y, t_colour)
        rows.append(effects | {a + b: t_pair for a, b in combinations(x + y, 2)})
    return pd.DataFrame(rows).fillna(0.0).to_numpy()


def test_information_is_that_of_bayesian_linear_regression() -> None:
    measured, new = [*PAIRS[:3], ("a+b", "red")], [*PAIRS[3:], ("a+c", "blue"), ("b+c", "red")]
    rng = np.random.default_rng(0)
    known = Measured(
        weigh((LETTERS, COLOURS), table(measured)),
        rng.normal(size=(4, 2)),
        rng.uniform(0.1, 1, 4),
        0.0,
    )
    noise = rng.uniform(0.1, 1, len(new))
    mean, left = predict(EFFECTS, known, weigh((LETTERS, COLOURS), table(new)))
    chosen, gains = choose(left, noise, 3)

    told = 0.0
    for k, variances in enumerate(EFFECTS.variances):
        phi = features(measured + new, variances)
        before = np.eye(phi.shape[1]) + phi[:4].T @ (phi[:4] / known.noise[:, None])
        some = phi[4:][chosen]
        after = before + some.T @ (some / noise[chosen, None])
        spread = [(phi[4:] * np.linalg.solve(m, phi[4:].T).T).sum(1) for m in (before, after)]
        told += 0.5 * np.log((spread[0] + noise) / (spread[1] + noise)).mean()
        beta = np.linalg.solve(before, phi[:4].T @ (known.means[:, k] / known.noise))
        np.testing.assert_allclose(mean[:, k], phi[4:] @ beta, atol=1e-10)
        np.testing.assert_allclose(left[k], phi[4:] @ np.linalg.solve(before, phi[4:].T), atol=1e-9)
    assert gains.sum() == pytest.approx(told)


def test_information_is_that_of_two_normal_numbers() -> None:
    """I = h(y_d) - h(y_d given y_s), by the entropies of scipy."""
    v, noise = np.array([[[2.0, 0.9], [0.9, 1.0]]]), np.array([0.5, 0.3])
    joint = v[0] + np.diag(noise)
    apart = sum(stats.norm(scale=np.sqrt(x)).entropy() for x in joint.diagonal())
    across = apart - stats.multivariate_normal(cov=joint).entropy()
    own = [-0.5 * np.log(1 - (x / (x + r)) ** 2) for x, r in zip((2, 1), noise, strict=True)]
    np.testing.assert_allclose(inform(v, noise), (np.array(own) + across) / 2)


def test_the_greedy_batch_is_the_best_one() -> None:
    pairs = [*PAIRS, ("a+b", "blue")]
    left = EFFECTS.covariance(*[weigh((LETTERS, COLOURS), table(pairs))] * 2)
    noise = np.array([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 0.2])

    def information(batch: tuple[int, ...]) -> float:
        told = 0.0
        for v in left:
            known = v[np.ix_(batch, batch)] + np.diag(noise[list(batch)])
            after = v - v[:, batch] @ np.linalg.solve(known, v[batch, :])
            told += 0.5 * np.log((v.diagonal() + noise) / (after.diagonal() + noise)).mean()
        return told

    best = max(combinations(range(len(pairs)), 2), key=information)
    chosen, gains = choose(left, noise, 2)
    assert set(chosen) == set(best) and gains.sum() == pytest.approx(information(best))
    alone = [information((s,)) for s in range(len(pairs))]
    assert set(best) != set(np.argsort(alone)[-2:]), "the two most uncertain ones tell the same"


def test_variances_are_learnt() -> None:
    values = [f"v{i:02d}" for i in range(30)]
    covariates = tuple(Covariate(name, "categorical", tuple(values)) for name in ("one", "two"))
    grid = pd.DataFrame([(a, b) for a in values for b in values[:12]], columns=["one", "two"])
    weights = weigh(covariates, grid)
    truth = Effects(np.tile([0.5, 2.0, 0.3, 0.1], (20, 1)))
    noise = np.full(len(grid), 0.05)
    root = np.linalg.cholesky(truth.covariance(weights, weights)[0] + np.diag(noise))
    y = root @ np.random.default_rng(0).normal(size=(len(grid), 20))
    found = fit_effects(Measured(weights, y, noise, 0.0)).variances
    np.testing.assert_allclose(found[:, 1:].mean(0), [2.0, 0.3, 0.1], rtol=0.2)


def test_numbers_lie_between_their_knots() -> None:
    (weights,) = weigh((DOSES,), pd.DataFrame({"dose": ["0", "0.25", "2", "9"]}))
    np.testing.assert_allclose(weights, [[1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [0, 0, 1]])


@pytest.fixture(scope="module")
def partial(frozen_study: AnnData, fit: Callable[..., ia.Atlas]) -> tuple[ia.Atlas, AnnData]:
    """An atlas of a study in which type_3 was measured in the healthy only."""
    obs = frozen_study.obs
    away = (obs["cell_type"] == "type_3") & (obs["disease"] == "disease_1")
    study = frozen_study[~away].copy()
    return fit(study, held_out=0.0), study


def test_counts_of_the_fit_are_read_from_the_prior(partial: tuple[ia.Atlas, AnnData]) -> None:
    atlas, study = partial
    obs = study.obs[["cell_type", "disease"]].astype(str)
    expected = obs.groupby(["cell_type", "disease"]).size().unstack(fill_value=0).stack()
    np.testing.assert_array_equal(count_cells(atlas), expected.to_numpy())
    assert list_unmeasured(atlas).to_numpy().tolist() == [["type_3", "disease_1"]]


@pytest.mark.parametrize("with_cells", [False, True])
def test_the_unmeasured_combination_is_wanted_first(
    partial: tuple[ia.Atlas, AnnData], with_cells: bool
) -> None:
    atlas, study = partial
    everything = study.obs[["cell_type", "disease"]].drop_duplicates()
    missing = pd.DataFrame({"cell_type": ["type_3"], "disease": ["disease_1"]})
    found = ia.design(
        atlas,
        pd.concat([everything, missing]),
        budget=6,
        reference=study if with_cells else None,
    )
    assert found.loc[0, ["cell_type", "disease"]].tolist() == ["type_3", "disease_1"]
    assert list(found["rank"]) == [1, 2, 3, 4, 5, 6] and (found["donors"] == 1).all()
    assert found.loc[0, "information"] == pytest.approx(found.loc[0, "alone"])
    np.testing.assert_allclose(found["total"], found["information"].cumsum())
    assert ia.design(atlas, budget=1)["cell_type"].tolist() == ["type_3"]


def test_a_measured_pair_tells_of_its_parts() -> None:
    pairs = Covariate("letter", "categorical", ("a", "a+b", "a+x", "b", "c"))
    texts = pd.DataFrame({"letter": ["a+b", "a + c", "a+x", "c"]})
    expected = [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert weigh((pairs,), texts)[0].tolist() == expected
    measured, asked = weigh((pairs,), texts[:1]), weigh((pairs,), texts[1:2])
    known = Measured(measured, np.zeros((1, 1)), np.full(1, 0.01), 0.0)
    alone = Effects(np.array([[1e-4, 1.0, 0.1]]))
    before, after = alone.covariance(asked, asked), predict(alone, known, asked)[1]
    assert after[0, 0, 0] < 0.9 * before[0, 0, 0]


def test_pairs_in_the_prior_are_split(study: AnnData, settings: Callable[..., ia.Settings]) -> None:
    study.obs["letter"] = np.array(["a", "b", "a+b", "c"])[np.arange(study.n_obs) % 4]
    atlas = ia.fit(study, ["letter", "disease"], ["donor"], settings=settings(epochs=1))
    weights = measure_prior(atlas).weights[0]
    assert atlas.schema.biological[0].categories == ("a", "a+b", "b", "c")
    assert {tuple(row) for row in weights.tolist()} == {
        (1, 0, 0, 0),
        (1, 0, 1, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
    }


def test_what_the_reference_has_is_measured(partial: tuple[ia.Atlas, AnnData]) -> None:
    atlas, study = partial
    assert len(list_unmeasured(atlas, study.obs)) == 1
    obs = study.obs.astype(object)
    obs.iloc[0, [obs.columns.get_loc(c) for c in ("cell_type", "disease")]] = "type_3", "disease_1"
    assert not len(list_unmeasured(atlas, obs))


def test_more_donors_tell_more(partial: tuple[ia.Atlas, AnnData]) -> None:
    candidates = pd.DataFrame(
        {"cell_type": "type_3", "disease": "disease_1", "cells": [50, 50], "donors": [1, 4]}
    )
    found = ia.design(partial[0], candidates, budget=2, reference=partial[1])
    assert found["donors"].tolist() == [4, 1] and found["alone"].is_monotonic_decreasing


def test_donors_are_replicates(partial: tuple[ia.Atlas, AnnData]) -> None:
    atlas, study = partial
    z = ia.embed(atlas, study).astype(float)
    obs = study.obs[["cell_type", "disease", "donor"]].astype(str).reset_index(drop=True)
    donors = pd.DataFrame(z).groupby([obs[name] for name in obs])
    combinations_ = donors.mean().groupby(level=[0, 1])
    measured = measure_cells(atlas, study)
    within = np.sqrt(((z - donors.transform("mean")) ** 2).sum(0) / (len(z) - donors.ngroups))
    np.testing.assert_allclose(measured.means * within.to_numpy(), combinations_.mean(), atol=1e-6)
    floor = (1 / donors.size()).groupby(level=[0, 1]).mean()
    expected = (measured.donor_variance + floor) / combinations_.size()
    np.testing.assert_allclose(measured.noise, expected)


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        ({"cell_type": ["typo_3"]}, 1, "cell_type 'typo_3'.*Did you mean 'type_3'"),
        ({"disease": ["healthy+typo"]}, 1, "disease 'typo'"),
        ({"cells": [0]}, 1, "has cells 0; it takes a whole number"),
        ({"cells": ["3.7"]}, 1, "has cells 3.7; it takes a whole number"),
        ({"donors": [np.inf]}, 1, "has donors inf; it takes a whole number"),
        ({}, 0, "budget is 0; it takes 1 to 1"),
        ({}, 2, "budget is 2; it takes 1 to 1"),
    ],
)
def test_unusable_candidates_are_refused(
    partial: tuple[ia.Atlas, AnnData], changes: dict[str, list[object]], budget: int, message: str
) -> None:
    good = {"cell_type": ["type_3"], "disease": ["disease_1"]}
    with pytest.raises(ia.InvatlasError, match=message):
        ia.design(partial[0], pd.DataFrame(good | changes), budget=budget)


def test_what_is_missing_is_named(partial: tuple[ia.Atlas, AnnData], atlas: ia.Atlas) -> None:
    with pytest.raises(ia.InvatlasError, match="no column disease; they have cell_type"):
        ia.design(partial[0], pd.DataFrame({"cell_type": ["type_3"]}), budget=1)
    with pytest.raises(ia.InvatlasError, match="Every combination of values was measured"):
        ia.design(atlas, budget=1)


def test_combinations_too_many_to_list_are_not_called_measured(
    study: AnnData, settings: Callable[..., ia.Settings]
) -> None:
    study.obs["one"] = [str(j % 120) for j in range(study.n_obs)]
    study.obs["other"] = [str(j % 40) for j in range(study.n_obs)]
    atlas = ia.fit(study, ["one", "other"], ["donor"], settings=settings(epochs=1))
    with pytest.raises(ia.InvatlasError, match="only the 120 combinations it met of 4,800"):
        ia.design(atlas, budget=1)
