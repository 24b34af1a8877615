"""Combined values: read as their parts, added as log fold changes, as far as measured ones say."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.data.covariates import Covariate
from invatlas.errors import CovariateError
from invatlas.tasks.change import Values, read_values, split_moments
from invatlas.tasks.combined import check_parts, share_of_sum, split_change

PERTURBATION = Covariate("perturbation", "categorical", ("A", "A+B", "B", "C", "control"))
AGE = Covariate("age", "continuous", ("20", "40"), knots=(20.0, 40.0))
GENES = 60
ANSWERS = {"A": slice(0, 10), "B": slice(10, 20), "C": slice(20, 30)}


@pytest.fixture(scope="module")
def screen() -> AnnData:
    """Two types under A, B, C and A+B, each of the three raising ten genes of its own."""
    rng = np.random.default_rng(0)
    labels = list(PERTURBATION.categories)
    done, kind = rng.integers(0, len(labels), 1500), rng.integers(0, 2, 1500)
    log_rate = rng.normal(0, 0.7, (2, GENES))[kind]
    for name, genes in ANSWERS.items():
        has = np.array([name in label.split("+") for label in labels])[done]
        log_rate[:, genes] += 1.2 * has[:, None]
    share = np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True)
    obs = pd.DataFrame(
        {
            "cell_type": [f"type_{k}" for k in kind],
            "perturbation": [labels[k] for k in done],
            "donor": [f"donor_{k}" for k in rng.integers(0, 4, 1500)],
        },
        index=[f"cell_{k}" for k in range(1500)],
    )
    var = pd.DataFrame(index=[f"gene_{k:02d}" for k in range(GENES)])
    return AnnData(rng.poisson(600 * share).astype(np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def screened(screen: AnnData, settings: Callable[..., ia.Settings]) -> ia.Atlas:
    chosen = settings(epochs=40, hidden=48, invariant_latents=6)
    return ia.fit(screen, ["cell_type", "perturbation"], ["donor"], settings=chosen)


def controls(screen: AnnData) -> AnnData:
    return screen[(screen.obs["perturbation"] == "control").to_numpy()].copy()


def share(atlas: ia.Atlas, values: Values) -> np.ndarray:
    return share_of_sum(atlas, split_moments(atlas.model, values), values, 1)


def test_a_change_is_parted_but_for_what_was_measured() -> None:
    covariates = [PERTURBATION, AGE]
    single, parts = split_change(covariates, {"perturbation": "A + C", "age": 30})
    assert single == {"age": 30} and parts == {"perturbation": ["A", "C"]}
    for whole in ("A+B", "A", "A+Z", "Z"):
        assert split_change(covariates, {"perturbation": whole}) == ({"perturbation": whole}, {})
    assert split_change(covariates, {"perturbation": "B + A"}) == ({"perturbation": "A+B"}, {})
    assert split_change([AGE], {"age": "20+40"})[1] == {}


def test_cells_that_have_a_part_already_are_refused() -> None:
    obs = pd.DataFrame({"perturbation": ["control", "A"]})
    now = read_values([PERTURBATION], obs).weights[0]
    check_parts(PERTURBATION, ["B", "C"], now)
    with pytest.raises(CovariateError, match=r"become 'A\+C', and some cells have one of these"):
        check_parts(PERTURBATION, ["A", "C"], now)
    with pytest.raises(CovariateError, match=r"'B\+B', which names a value twice"):
        check_parts(PERTURBATION, ["B", "B"], now)


@pytest.mark.parametrize("h", [0.4, 1.0, 1.3])
def test_the_share_of_the_sum_is_read_off_what_was_measured(screened: ia.Atlas, h: float) -> None:
    atlas = copy.deepcopy(screened)
    names, prior = atlas.schema.biological[1].categories, atlas.model.prior_invariant
    rng, place = np.random.default_rng(1), {name: k for k, name in enumerate(names)}
    # so small that the decoder is straight
    value = {n: 1e-3 * torch.from_numpy(rng.normal(size=6)).float() for n in ("A", "B", "C")}
    value["control"] = torch.zeros(6)
    value["A+B"] = h * (value["A"] + value["B"])
    start = atlas.model.measured.mean.mean(0)
    for row, (_, k) in enumerate(prior.combinations.tolist()):
        atlas.model.measured.mean[row] = start + value[names[k]]
    assert set(place) == set(value)
    obs = pd.DataFrame({"cell_type": ["type_0"], "perturbation": ["control"]})
    found = share(atlas, read_values(atlas.schema.biological, obs))
    np.testing.assert_allclose(found, (1 + h) / 2, atol=0.02)  # one pair measured, and w


def test_where_no_combination_was_measured_effects_add(
    screen: AnnData, settings: Callable[..., ia.Settings]
) -> None:
    single = screen[(screen.obs["perturbation"] != "A+B").to_numpy()].copy()
    atlas = ia.fit(single, ["cell_type", "perturbation"], ["donor"], settings=settings())
    values = read_values(atlas.schema.biological, controls(screen).obs)
    assert share(atlas, values).tolist() == [1.0] * len(values.weights[0])


def test_a_pair_nobody_measured_adds_log_fold_changes(screened: ia.Atlas, screen: AnnData) -> None:
    cells = controls(screen)

    def change(value: str) -> np.ndarray:
        found = ia.counterfactual(screened, cells, {"perturbation": value}).layers["counterfactual"]
        return np.log(found.sum(0) + 1) - np.log(np.asarray(cells.X).sum(0) + 1)

    pair, total = change("A + C"), change("A") + change("C")
    assert np.corrcoef(pair, total)[0, 1] > 0.95
    for part in ("A", "C"):
        assert pair[ANSWERS[part]].mean() > pair[ANSWERS["B"]].mean() + 0.4
    values = read_values(screened.schema.biological, cells.obs)
    found = share(screened, values)
    assert (found > 0.7).all() and (found < 1.2).all()


def test_other_covariates_may_change_at_once(screened: ia.Atlas, screen: AnnData) -> None:
    cells = controls(screen)
    cells = cells[(cells.obs["cell_type"] == "type_0").to_numpy()].copy()
    other = ia.counterfactual(screened, cells, {"cell_type": "type_1", "perturbation": "A+C"})
    alone = ia.counterfactual(screened, cells, {"cell_type": "type_1"})
    moved = np.log(other.layers["counterfactual"].sum(0) / alone.layers["counterfactual"].sum(0))
    for part in ("A", "C"):
        assert moved[ANSWERS[part]].mean() > moved[ANSWERS["B"]].mean() + 0.4


def test_mistakes_are_named(screened: ia.Atlas, screen: AnnData) -> None:
    with pytest.raises(CovariateError, match=r"written A\+B"):
        ia.counterfactual(screened, controls(screen), {"perturbation": "A+Z"})
    with pytest.raises(CovariateError, match="hand over control cells alone"):
        ia.counterfactual(screened, screen, {"perturbation": "A+C"})
