"""Cells of a simulated study: latents and counts follow the equations of simulate.py."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from invatlas.data.simulate import simulate


@pytest.fixture(scope="module")
def study() -> AnnData:
    """Simulate a study large enough for statistics; two donors for each disease and batch."""
    return simulate(cells=6000, genes=400, donors=24, seed=3)


def mean_counts(study: AnnData) -> np.ndarray:
    """Rebuild the expected counts from the stored truth by the equation of simulate.py."""
    log_rate = (
        study.var["baseline"].to_numpy(np.float64)
        + study.obsm["z_invariant_true"] @ study.varm["invariant_loadings_true"].T
        + study.obsm["z_spurious_true"] @ study.varm["spurious_loadings_true"].T
    )
    rate = np.exp(log_rate)
    return study.obs["library_size"].to_numpy()[:, None] * rate / rate.sum(1, keepdims=True)


def test_counts_follow_the_negative_binomial_of_the_truth(study: AnnData) -> None:
    mean = mean_counts(study)
    theta = study.var["inverse_dispersion"].to_numpy()
    variance = mean + mean**2 / theta
    counts = study.X.toarray().astype(np.float64)
    residual = (counts - mean) / np.sqrt(variance)
    seen = mean.mean(0) > 0.1
    assert seen.sum() > 200
    assert abs(residual.mean()) < 0.003
    assert np.abs(residual[:, seen].mean(0)).max() < 5 / np.sqrt(study.n_obs)
    assert (residual[:, seen] ** 2).mean() == pytest.approx(1, abs=0.02)
    # a Poisson or a common inverse dispersion would miss the variance of single genes
    np.testing.assert_allclose((residual[:, seen] ** 2).mean(0), 1, atol=0.3)
    zero = (1 + mean / theta) ** -theta
    assert (counts == 0).mean() == pytest.approx(zero.mean(), abs=0.002)


def test_expression_true_is_the_softmax_of_the_invariant_part(study: AnnData) -> None:
    expression = study.layers["expression_true"]
    log_rate = (
        study.var["baseline"].to_numpy()
        + study.obsm["z_invariant_true"] @ study.varm["invariant_loadings_true"].T
    )
    rate = np.exp(log_rate)
    np.testing.assert_allclose(expression, rate / rate.sum(1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0])
def test_technical_effect_is_the_ratio_of_standard_deviations(effect: float) -> None:
    study = simulate(cells=6000, genes=100, truth=False, technical_effect=effect)
    spread = {
        part: study.obsm[f"z_{part}_true"] @ study.varm[f"{part}_loadings_true"].T
        for part in ("invariant", "spurious")
    }
    ratio = np.sqrt(spread["spurious"].var(0).sum() / spread["invariant"].var(0).sum())
    assert ratio == pytest.approx(effect, abs=0.08)


def test_library_size_is_log_normal_with_a_depth_for_each_batch(study: AnnData) -> None:
    log_size = np.log(study.obs["library_size"])
    by_batch = log_size.groupby(study.obs["batch"], observed=True)
    np.testing.assert_allclose(
        np.sort(by_batch.mean()) - np.log(1000), np.linspace(-0.35, 0.35, 4), atol=0.05
    )
    np.testing.assert_allclose(by_batch.std(), 0.35, atol=0.02)
    total = np.asarray(study.X.sum(axis=1)).ravel()
    assert np.corrcoef(total, study.obs["library_size"])[0, 1] > 0.8


def test_donors_differ_within_batches_and_cell_types_in_spread(study: AnnData) -> None:
    people = study.obs.drop_duplicates("donor").set_index("donor")["batch"]
    spurious = pd.DataFrame(study.obsm["z_spurious_true"], index=study.obs_names)
    means = spurious.groupby(study.obs["donor"], observed=True).mean()
    within = means - means.groupby(people.loc[means.index], observed=True).transform("mean")
    # 0.8 was asked for; the mean of some 250 cells alone would give 0.05
    assert 0.5 < np.sqrt((within**2).to_numpy().sum() / (24 - 4) / 4) < 1.1
    healthy = (study.obs["disease"] == "healthy").to_numpy()
    invariant = pd.DataFrame(study.obsm["z_invariant_true"][healthy])
    spread = invariant.groupby(study.obs["cell_type"].to_numpy()[healthy]).std().to_numpy()
    assert 0.4 < spread.min() < 0.65 and 0.85 < spread.max() < 1.15


def test_cell_types_are_separable_from_the_truth_and_batches_are_not(study: AnnData) -> None:
    correct = {}
    for latents, column in product(("invariant", "spurious"), ("cell_type", "batch")):
        code = study.obs[column].cat.codes.to_numpy()
        z = study.obsm[f"z_{latents}_true"]
        means = np.stack([z[code == value].mean(0) for value in range(code.max() + 1)])
        nearest = np.linalg.norm(z[:, None] - means, axis=2).argmin(1)
        correct[latents, column] = (nearest == code).mean()
    assert correct["invariant", "cell_type"] > 0.95 and correct["spurious", "batch"] > 0.95
    assert correct["invariant", "batch"] < 0.4 and correct["spurious", "cell_type"] < 0.4
