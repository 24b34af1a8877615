"""Counterfactual cells: nothing changes unasked, order is nothing, planted shifts come back."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import invatlas as ia
from conftest import quick_fit
from invatlas.data.covariates import Covariate
from invatlas.errors import CovariateError, SettingsError
from invatlas.tasks import prediction
from invatlas.tasks.averages import WIDENING, Averages
from invatlas.tasks.change import Values, apply_change, read_values

PERTURBATION = Covariate("perturbation", "categorical", ("A", "B", "control"))
AGE = Covariate("age", "continuous", ("20", "40", "80"), knots=(20.0, 40.0, 80.0))


def expected(atlas: ia.Atlas, cells: AnnData, change: dict, **choices: object) -> AnnData:
    return ia.counterfactual(atlas, cells, change, samples=3, **choices)


def test_a_value_that_stays_leaves_a_cell_as_it_is(atlas: ia.Atlas, study: AnnData) -> None:
    value = study.obs["disease"].cat.categories[1]
    result = expected(atlas, study, {"disease": value})
    same = (study.obs["disease"] == value).to_numpy()
    before = study[:, list(atlas.genes)].X.toarray()
    found = result.layers["counterfactual"]
    np.testing.assert_allclose(found[same], before[same], rtol=1e-5)
    np.testing.assert_array_equal(result.X.toarray()[same], before[same])
    assert result.layers["counterfactual_sd"][same].max() < 1e-3
    mean = (1e4 * before / before.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(result.var["measured_mean"], mean, rtol=1e-5)
    assert not np.allclose(found[~same], before[~same], rtol=1e-3)


def test_expected_counts_sum_to_the_library_size(atlas: ia.Atlas, study: AnnData) -> None:
    result = expected(atlas, study, {"disease": "disease_1", "donor": "reference"})
    size = np.asarray(study.X.sum(1)).ravel()
    np.testing.assert_allclose(result.layers["counterfactual"].sum(1), size, rtol=1e-4)
    mean = (1e4 * result.layers["counterfactual"] / size[:, None]).mean(0)
    np.testing.assert_allclose(result.var["counterfactual_mean"], mean, rtol=1e-3)
    inside = result.var["counterfactual_mean"].between(
        result.var["counterfactual_mean_low"], result.var["counterfactual_mean_high"]
    )
    assert inside.all()


def test_neither_order_nor_chunks_matter(
    atlas: ia.Atlas, study: AnnData, generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = expected(atlas, study, {"disease": "disease_1"})
    cells, genes = generator.permutation(study.n_obs), generator.permutation(study.n_vars)
    monkeypatch.setattr(prediction, "CHUNK", 37)
    other = expected(atlas, study[cells, genes].copy(), {"disease": "disease_1"})
    assert list(other.var_names) == list(whole.var_names)
    for layer in ("counterfactual", "counterfactual_sd"):
        found = other[whole.obs_names].layers[layer]
        np.testing.assert_allclose(found, whole.layers[layer], atol=1e-3, rtol=1e-3)
    moved = abs(other[whole.obs_names].X - whole.X).sum() / whole.X.sum()
    assert moved < 0.01


def test_log_normalised(atlas: ia.Atlas, study: AnnData) -> None:
    plain = expected(atlas, study, {"donor": "reference"}).layers["counterfactual"]
    log = expected(atlas, study, {"donor": "reference"}, log_normalised=True)
    share = plain / plain.sum(1, keepdims=True)
    np.testing.assert_allclose(log.layers["counterfactual"], np.log1p(1e4 * share), rtol=1e-3)


def test_what_obs_does_not_say_is_called(atlas: ia.Atlas, study: AnnData) -> None:
    calls = ia.annotate(atlas, study)
    told = study.copy()
    for name in ("cell_type", "disease"):
        told.obs[name] = calls[f"predicted_{name}"].to_numpy()
    bare = AnnData(study.X, obs=study.obs[["donor", "batch"]], var=study.var)
    change = {"disease": "disease_1"}
    a, b = (expected(atlas, c, change).layers["counterfactual"] for c in (told, bare))
    np.testing.assert_array_equal(a, b)


def test_a_missing_gene_takes_what_the_decoder_expects(atlas: ia.Atlas, study: AnnData) -> None:
    gene = atlas.genes[int(atlas.gene_shares.argmax())]
    result = expected(atlas, study[:, study.var_names != gene].copy(), {"disease": "disease_1"})
    assert (result[:, gene].layers["counterfactual"] > 0).all()
    assert result.var.index[result.var["measured_mean"].isna()].tolist() == [gene]


def test_a_cell_without_counts_keeps_none(atlas: ia.Atlas, study: AnnData) -> None:
    value, other = study.obs["disease"].cat.categories[:2]
    empty = [np.flatnonzero(study.obs["disease"] == name)[0] for name in (value, other)]
    study.X = study.X.toarray()
    study.X[empty] = 0
    result = expected(atlas, study, {"disease": value})
    assert not result.obs["counterfactual_supported"].iloc[empty].any()
    assert np.isfinite(result.layers["counterfactual"]).all()
    assert result.layers["counterfactual"][empty[0]].sum() == 0
    assert np.isfinite(result.var["counterfactual_mean"]).all()


def test_deviations_of_several_fits_hold_their_disagreement(
    atlas: ia.Atlas, study: AnnData
) -> None:
    change = {"disease": "disease_1"}
    other = quick_fit(study, seed=5)
    a, b = (expected(fit, study, change) for fit in (atlas, other))
    both = expected(atlas, study, change, others=[other])
    means, deviations = (
        np.stack([fit.layers[layer] for fit in (a, b)])
        for layer in ("counterfactual", "counterfactual_sd")
    )
    np.testing.assert_allclose(both.layers["counterfactual"], means.mean(0), rtol=1e-5)
    variance = (deviations**2).mean(0) + means.var(0, ddof=1)
    np.testing.assert_allclose(both.layers["counterfactual_sd"], np.sqrt(variance), rtol=1e-4)
    for column in ("counterfactual_mean", "log2_fold_change"):
        halves = (a.var[column] + b.var[column]) / 2
        np.testing.assert_allclose(both.var[column], halves, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(both.X.toarray(), a.X.toarray())


def test_fits_that_disagree_are_unsure_of_averages() -> None:
    """Two fits of one cell and gene, each sure of itself: 1 and 4 counts per 10,000."""
    shape = np.zeros((1, 1), np.float32)
    fits = [
        prediction.Prediction(
            shape + level,
            shape,
            sp.csr_matrix(shape),
            Averages(np.ones(1), np.full((10, 1), level), np.zeros(1)),
        )
        for level in (1.0, 4.0)
    ]
    table = prediction.pool(fits).averages.describe(pd.Index(["gene"]), 0.25).iloc[0]
    steps = np.log2((np.array([1.0, 4.0]) + 0.1) / 1.1)
    assert table["log2_fold_change"] == pytest.approx(steps.mean())
    spread = np.std(np.repeat(steps, 10), ddof=1)
    assert table["log2_fold_change_sd"] == pytest.approx(WIDENING * spread)
    assert prediction.pool(fits[:1]) is fits[0]


def test_other_fits_are_of_the_same_study(atlas: ia.Atlas, study: AnnData) -> None:
    fewer = quick_fit(study[:, 10:].copy())
    with pytest.raises(SettingsError, match="number 2 has other genes"):
        expected(atlas, study, {"disease": "disease_1"}, others=[atlas, fewer])
    study.obs["disease"] = study.obs["disease"].astype(str).replace("healthy", "well")
    with pytest.raises(SettingsError, match="number 1 has other covariates or values"):
        expected(atlas, study, {"disease": "disease_1"}, others=[quick_fit(study)])


def test_mistakes_are_named(atlas: ia.Atlas, study: AnnData) -> None:
    for change, message in (
        ({"diet": "rich"}, "'diet' is no covariate of the atlas; they are cell_type"),
        ({}, "nothing to change"),
        ("disease=healthy", "it takes a value by covariate"),
        ({"Diseas": "healthy"}, "Did you mean 'disease'"),
        ({"disease": "Healthy"}, "Did you mean 'healthy'"),
        ({"disease": "plague"}, "to become 'plague'; the atlas knows disease_1, healthy"),
        ({"disease": "reference"}, "to become 'reference'"),
        ({"donor": "nobody"}, "or 'reference'"),
    ):
        with pytest.raises(CovariateError, match=message):
            ia.counterfactual(atlas, study, change)
    with pytest.raises(SettingsError, match="samples is 1"):
        ia.counterfactual(atlas, study, {"disease": "healthy"}, samples=1)
    study.obs["donor"] = "new"
    with pytest.raises(CovariateError, match="600 have a donor it does not know, such as new"):
        ia.counterfactual(atlas, study, {"batch": "reference"})


def test_a_value_that_is_called_reference_is_meant_and_warned_of(study: AnnData) -> None:
    twin = study.copy()
    twin.obs["donor"] = twin.obs["donor"].astype(str).replace("donor_01", "reference")
    other = study.copy()  # a name in the same place of the alphabet
    other.obs["donor"] = other.obs["donor"].astype(str).replace("donor_01", "referencd")
    fits = [quick_fit(cells, epochs=1) for cells in (twin, other)]
    told = [
        [w for w in fit.record["warnings"] if "donor has a value that is called 'reference'" in w]
        for fit in fits
    ]
    assert [len(sentences) for sentences in told] == [1, 0]
    with pytest.warns(UserWarning, match="donor=reference takes that value"):
        named = expected(fits[0], twin, {"donor": "reference"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected(fits[0], twin, {"disease": "healthy"})
        expected(fits[1], other, {"donor": "reference"})
        asked = expected(fits[1], other, {"donor": "referencd"})
    np.testing.assert_array_equal(named.layers["counterfactual"], asked.layers["counterfactual"])


def test_cells_of_values_nobody_knows_are_flagged(atlas: ia.Atlas, study: AnnData) -> None:
    study.obs["cell_type"] = study.obs["cell_type"].astype(object)
    study.obs.iloc[:5, study.obs.columns.get_loc("cell_type")] = "odd"
    result = expected(atlas, study, {"disease": "disease_1"})
    assert not result.obs["counterfactual_supported"].iloc[:5].any()
    assert result.obs["counterfactual_supported"].iloc[5:].any()
    study.obs["cell_type"] = "odd"
    with pytest.raises(
        CovariateError, match="0 are called new, 600 have a cell_type it does not know, such as odd"
    ):
        expected(atlas, study, {"disease": "disease_1"})


def values(covariate: Covariate, cells: list[object]) -> Values:
    return read_values([covariate], pd.DataFrame({covariate.name: cells}))


def weights(of: Values) -> list[list[float]]:
    """Weights of the values of the only covariate, of each cell."""
    found: list[list[float]] = of.weights[0][of.kind].tolist()
    return found


def test_cells_of_one_kind_are_one_row_however_it_is_known() -> None:
    cells = ["A", "control", None, "A", "odd", None]
    obs = pd.DataFrame({"perturbation": cells})
    called = pd.DataFrame({"predicted_perturbation": ["B", "B", "A", "B", "B", "control"]})
    found = read_values([PERTURBATION], obs, called)
    assert len(found.weights[0]) == 3
    a, b, control = np.eye(3).tolist()
    assert weights(found) == [a, control, a, a, b, control]
    assert found.known.tolist() == [True, True, True, True, False, True]


def test_a_coarse_value_is_known_where_the_call_is_one_of_its_finer() -> None:
    finer = (("T", ("CD4", "CD8")),)
    covariate = Covariate("type", "categorical", ("B", "CD4", "CD8"), groups=finer)
    called = pd.DataFrame({"predicted_type": ["B", "CD4", "CD4", "B"]})
    obs = pd.DataFrame({"type": ["T", "T", "B", None]})
    found = read_values([covariate], obs, called)
    assert found.known.tolist() == [False, True, True, True]
    assert weights(found)[2] == [1, 0, 0]


def test_a_number_lies_between_knots() -> None:
    before = values(AGE, [30, 20, 90, None])
    assert weights(before) == [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert before.known.tolist() == [True, True, False, False]
    after = apply_change([AGE], before, {"age": 70})
    np.testing.assert_allclose(weights(after), [[0, 0.25, 0.75]] * 4)
    with pytest.raises(CovariateError, match="'95'; the atlas knows numbers from 20 to 80"):
        apply_change([AGE], before, {"age": "95"})


@pytest.fixture(scope="module")
def response() -> AnnData:
    """Four types, all of which answer a stimulus by the same 12 of 80 genes."""
    rng = np.random.default_rng(0)
    n, genes = 1200, 80
    kind, stim, donor = rng.integers(0, 4, n), rng.integers(0, 2, n), rng.integers(0, 4, n)
    answer = np.where(np.arange(genes) < 12, 2.5, 0.0)
    log_rate = rng.normal(0, 0.8, (4, genes))[kind] + stim[:, None] * answer
    share = np.exp(log_rate + rng.normal(0, 0.4, (4, genes))[donor])
    counts = rng.poisson(500 * share / share.sum(1, keepdims=True))
    obs = pd.DataFrame(
        {
            "cell_type": [f"type_{k}" for k in kind],
            "condition": np.where(stim, "stim", "ctrl"),
            "donor": [f"donor_{k}" for k in donor],
        },
        index=[f"cell_{k}" for k in range(n)],
    )
    var = pd.DataFrame(index=[f"gene_{k:02d}" for k in range(genes)])
    return AnnData(counts.astype(np.float32), obs=obs, var=var)


def test_a_combination_nobody_measured_is_predicted(
    response: AnnData, settings: Callable[..., ia.Settings]
) -> None:
    kind, condition = response.obs["cell_type"] == "type_0", response.obs["condition"]
    hidden = (kind & (condition == "stim")).to_numpy()
    chosen = settings(epochs=60, hidden=64, invariant_latents=8)
    atlas = ia.fit(response[~hidden].copy(), ["cell_type", "condition"], ["donor"], settings=chosen)
    control = response[(kind & (condition == "ctrl")).to_numpy()].copy()
    genes = list(atlas.genes)
    result = ia.counterfactual(atlas, control, {"condition": "stim"})

    def profile(cells: AnnData) -> np.ndarray:
        return np.log(np.asarray(cells[:, genes].X.sum(0)).ravel() / cells.X.sum())

    truth = profile(response[hidden]) - profile(control)
    found = np.log(result.layers["counterfactual"].sum(0) / control.X.sum()) - profile(control)
    assert np.corrcoef(truth, found)[0, 1] > 0.8
    assert 0.5 < found[:12].mean() / truth[:12].mean() < 1.2
    assert np.corrcoef(truth, profile(result) - profile(control))[0, 1] > 0.8


def test_genes_that_change_are_named(
    response: AnnData, settings: Callable[..., ia.Settings]
) -> None:
    chosen = settings(epochs=60, hidden=64, invariant_latents=8)
    atlas = ia.fit(response, ["cell_type", "condition"], ["donor"], settings=chosen)
    control = response[(response.obs["condition"] == "ctrl").to_numpy()].copy()
    var = ia.counterfactual(atlas, control, {"condition": "stim"}, threshold=0.5).var
    ratio = (var["counterfactual_mean"] + 0.1) / (var["measured_mean"] + 0.1)
    np.testing.assert_allclose(var["log2_fold_change"], np.log2(ratio), atol=0.05)
    higher = var["log2_fold_change"] > 0
    listed = set(var.index[higher & (var["false_discovery_rate"] <= 0.05)])
    assert listed == {f"gene_{k:02d}" for k in range(12)}
    for threshold in (0, "a"):
        with pytest.raises(SettingsError, match=r"it takes 0\.01 or more, in log2"):
            ia.counterfactual(atlas, control, {"condition": "stim"}, threshold=threshold)


def test_technical_values_are_taken_away(
    response: AnnData, settings: Callable[..., ia.Settings]
) -> None:
    chosen = settings(epochs=120, hidden=64, invariant_latents=8)
    atlas = ia.fit(response, ["cell_type", "condition"], ["donor"], settings=chosen)
    result = ia.counterfactual(atlas, response, {"donor": "reference"})
    donor = response.obs["donor"].to_numpy()

    def spread(counts: np.ndarray) -> float:
        shares = [counts[donor == d].sum(0) / counts[donor == d].sum() for d in np.unique(donor)]
        return float(np.log(shares).std(0).mean())

    before = response[:, list(atlas.genes)].X
    assert spread(result.layers["counterfactual"]) < 0.6 * spread(before)
