"""Temperature, calibration error and novelty against scikit-learn and truth that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from sklearn.metrics import brier_score_loss
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.distributions import Categorical
from torch.nn.functional import one_hot

import invatlas as ia
from invatlas.data.minibatch import Cells
from invatlas.errors import TrainingError
from invatlas.model.calls import call_log_probabilities, estimate_frequencies, reweigh, sharpen
from invatlas.model.priors import ConditionalGaussians, DiagonalGaussian
from invatlas.tasks.embed import match_counts
from invatlas.tasks.novelty import describe_limit, rank_among
from invatlas.tasks.summary import describe_calibration
from invatlas.training.calibration import (
    brier_score,
    expected_calibration_error,
    find_usual_shift,
    fit_exponents,
)
from invatlas.training.job import Job
from invatlas.training.novelty import flat_entropy, landmark_distance, pooled
from invatlas.training.split import Split


def posteriors(n: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-posteriors that are too sure by a temperature, and labels drawn from the honest ones."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.log_softmax(2 * torch.randn(n, 4, generator=generator), 1)
    truth = torch.multinomial(honest.exp(), 1, generator=generator)[:, 0]
    return torch.log_softmax(honest * temperature, 1), truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_spoilt_calls_is_found(temperature: float) -> None:
    log_p, truth = posteriors(20_000, temperature)
    found = fit_exponents(log_p, torch.arange(4)[:, None], one_hot(truth).bool())
    assert float(found[1]) == pytest.approx(1 / temperature, rel=0.05)


PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(2))


def pairs(n: int, share: torch.Tensor, first: float, second: float) -> tuple[Tensor, Tensor]:
    """Log-posteriors over pairs too sure by a temperature each, and pairs in wanted shares."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.multinomial(share, n, replacement=True, generator=generator)
    seen = [
        2 * torch.eye(size)[PAIRS[truth, c]] + torch.randn(n, size, generator=generator)
        for c, size in enumerate((3, 2))
    ]  # of Gaussians a distance of 2 apart the log-likelihood is 2 times the place, up to constants
    log_weight = torch.full((6,), 1 / 6).log()
    logits = [2 * first * seen[0][:, PAIRS[:, 0]], 2 * second * seen[1][:, PAIRS[:, 1]]]
    return torch.log_softmax(logits[0] + logits[1] + log_weight, 1), truth


def test_each_covariate_has_an_exponent_of_its_own() -> None:
    log_p, truth = pairs(20_000, torch.ones(6), 0.8, 6.0)
    found = fit_exponents(log_p, PAIRS, one_hot(truth).bool())
    assert found[1:].tolist() == pytest.approx([1 / 0.8, 1 / 6], rel=0.05)
    honest = sharpen(log_p, PAIRS, found).exp()
    assert expected_calibration_error(honest, truth) < 0.02
    one = fit_exponents(log_p, torch.arange(6)[:, None], one_hot(truth).bool())[1]
    shared = torch.softmax(log_p * one, 1)
    assert expected_calibration_error(shared, truth) > 0.04


def test_cells_that_know_one_covariate_each_give_the_exponents_too() -> None:
    log_p, truth = pairs(20_000, torch.ones(6), 0.8, 6.0)
    among = torch.where(
        torch.arange(len(truth))[:, None] % 2 == 0,
        PAIRS[truth, 0, None] == PAIRS[:, 0],
        PAIRS[truth, 1, None] == PAIRS[:, 1],
    )
    found = fit_exponents(log_p, PAIRS, among)
    assert found[1:].tolist() == pytest.approx([1 / 0.8, 1 / 6], rel=0.1)


def test_flat_calls_do_not_send_a_query_to_the_rarest_combination() -> None:
    share = torch.tensor([0.3, 0.3, 0.2, 0.17, 0.02, 0.01])
    log_p, truth = pairs(5000, share, 1.0, 1.0)
    log_p = torch.log_softmax(log_p + share.log(), 1)
    exponents, anything = torch.full((3,), 0.2), torch.ones(6, dtype=torch.bool)
    found = estimate_frequencies(log_p, share.log(), anything)
    assert (found.exp() - share).abs().max() < 0.05
    flat = sharpen(log_p, PAIRS, exponents)
    after = estimate_frequencies(flat, share.log(), anything).exp()
    assert (after - share).abs().max() > 0.3  # what flattening before would do
    called = sharpen(reweigh(log_p, share.log(), found), PAIRS, exponents).argmax(1)
    assert (called == truth).float().mean() >= (flat.argmax(1) == truth).float().mean() - 0.01


def test_honest_calls_have_little_calibration_error_and_sure_ones_much() -> None:
    log_p, truth = posteriors(20_000, 1.0)
    assert expected_calibration_error(log_p.exp(), truth) < 0.02
    assert expected_calibration_error(torch.softmax(3 * log_p, 1), truth) > 0.1


def test_calibration_error_equals_its_definition() -> None:
    log_p, truth = posteriors(500, 1.0)
    p = log_p.exp().numpy()
    confidence, right = p.max(1), p.argmax(1) == truth.numpy()
    place = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(
        abs(confidence[place == b].mean() - right[place == b].mean()) * (place == b).mean()
        for b in np.unique(place)
    )
    assert expected_calibration_error(log_p.exp(), truth) == pytest.approx(expected, abs=1e-5)


def test_brier_score_equals_that_of_scikit_learn_over_the_classes() -> None:
    log_p, truth = posteriors(300, 1.0)
    one_by_one = [
        brier_score_loss(truth.numpy() == d, log_p[:, d].exp().numpy().clip(0, 1)) for d in range(4)
    ]
    assert brier_score(log_p.exp(), truth) == pytest.approx(sum(one_by_one), rel=1e-5)


def test_novelty_is_distance_to_the_nearest_landmarks_and_entropy_of_flat_calls() -> None:
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.randn(400, 3, generator=generator)
    q = DiagonalGaussian(torch.randn(30, 3, generator=generator), torch.full((30, 3), -1.0))
    prior = ConditionalGaussians(
        torch.randn(2, 3, generator=generator), torch.zeros(2, 3), torch.tensor([0.5, 0.5]).log()
    )
    distance = landmark_distance(q.mean, landmarks)
    nearest = NearestNeighbors(n_neighbors=10).fit(landmarks.numpy())
    expected = nearest.kneighbors(q.mean.numpy())[0].mean(1)
    np.testing.assert_allclose(distance, expected, rtol=1e-4)
    flat = torch.softmax(prior.log_evidence(q) / 4, 1)
    undecided = flat_entropy(call_log_probabilities(q, prior))
    torch.testing.assert_close(undecided, Categorical(flat).entropy())


def test_a_fit_calibrates_on_donors_nobody_trained_on(
    study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    plain = fit(study)
    spared = fit(study, spared_donors=0.3)
    assert plain.calibration and not plain.calibration.whole_donors
    assert spared.calibration and spared.calibration.whole_donors
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, spared.model.state_dict()[name]), "the atlas stays the same"
    assert plain.history.drop(columns=["seconds", "cells_per_second"]).equals(
        spared.history.drop(columns=["seconds", "cells_per_second"])
    )
    assert torch.equal(plain.calibration.landmarks, spared.calibration.landmarks)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "the fit was interrupted in it"),
        (TrainingError("no number"), "its training failed"),
    ],
    ids=str,
)
def test_a_calibration_that_is_left_out_says_the_one_reason(
    study: AnnData,
    fit: Callable[..., ia.Atlas],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    reason: str,
) -> None:
    run = Job.run

    def stop_second(job: Job, split: Split, title: str) -> object:
        if title == "calibration":
            raise error
        return run(job, split, title)

    monkeypatch.setattr(Job, "run", stop_second)
    told = fit(study, spared_donors=0.3).record["warnings"][0]
    assert f"training never met was left out, since {reason}; calls are" in told


def test_too_few_labelled_cells_leave_an_atlas_without_calibration(
    study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    atlas = fit(study[:150].copy(), epochs=1)
    assert atlas.calibration is None
    calls = ia.annotate(atlas, study)
    assert calls["novelty_pvalue"].isna().all() and not calls["novelty_flag"].any()
    with pytest.raises(ia.InvatlasError, match="have all their labels"):
        ia.prediction_sets(atlas, study)


def test_pooled_scores_are_means_over_the_nearest_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    z, scores = torch.randn(60, 3, generator=generator), torch.randn(60, generator=generator)
    nearest = NearestNeighbors(n_neighbors=8).fit(z).kneighbors(z, return_distance=False)
    np.testing.assert_allclose(pooled(scores, z), scores.numpy()[nearest].mean(1), rtol=1e-5)
    torch.testing.assert_close(pooled(scores[:3], z[:3]), scores[:3].mean().expand(3))
    assert pooled(scores[:0], z[:0]).shape == (0,)


def test_cells_as_near_as_the_last_one_pooled_all_count() -> None:
    z = torch.arange(8.0).repeat(2)[:, None]  # two cells at each place
    found = pooled(torch.arange(16.0), z)
    assert found[0] == found[8] == torch.tensor([0, 8, 1, 9, 2, 10, 3, 11]).float().mean()
    assert found[3] == found[11] == torch.tensor([1, 9, 2, 10, 3, 11, 4, 12, 5, 13]).float().mean()


def test_samples_are_pooled_apart_and_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invatlas.training.novelty.SAMPLE", 25)
    generator = torch.Generator().manual_seed(0)
    z, scores = torch.randn(60, 3, generator=generator), torch.randn(60, generator=generator)
    found, order = pooled(scores, z), z[:, 0].argsort()
    for k in range(3):
        some = order[k::3]
        torch.testing.assert_close(found[some], pooled(scores[some], z[some]))
    shuffled = torch.randperm(60, generator=generator)
    torch.testing.assert_close(found[shuffled], pooled(scores[shuffled], z[shuffled]))


def test_donors_spared_for_calibration_say_how_far_new_ones_lie(study: AnnData) -> None:
    settings = ia.Settings(genes=0, hidden=16, epochs=3, spared_donors=0.3)
    atlas = ia.fit(study, ["cell_type", "disease"], ["donor", "batch"], settings=settings)
    assert atlas.calibration is not None and atlas.calibration.whole_donors
    assert 0 < atlas.calibration.usual_shift < 5
    assert (
        ia.fit(
            study, ["cell_type"], ["batch"], settings=replace(settings, spared_donors=0.0)
        ).calibration.usual_shift
        == 0
    )


def test_the_usual_shift_is_that_of_the_farthest_donor_with_cells_enough(
    atlas: ia.Atlas, study: AnnData
) -> None:
    codes = atlas.schema.encode(study.obs)
    source, _ = match_counts(atlas, study, None, 0.5)
    cells, column = Cells(source, *codes), 0
    donors = [np.flatnonzero(codes[1][:, column] == k) for k in range(2)]
    assert all(len(rows) >= 30 for rows in donors)
    single = [find_usual_shift(atlas.model, cells, rows, column) for rows in donors]
    assert find_usual_shift(atlas.model, cells, np.concatenate(donors), column) == max(single)
    assert min(single) > 0 and single[0] != single[1]
    assert find_usual_shift(atlas.model, cells, donors[0][:29], column) == 0


def test_a_rare_call_is_ranked_among_everybody_where_few_are_pooled() -> None:
    called = torch.tensor([0] * 300 + [1] * 300 + [2] * 3)
    scores = torch.linspace(-1, 1, 603)
    far = rank_among(scores, called, torch.tensor([1e6] * 2), np.array([2, 0]))
    assert far.tolist() == pytest.approx([1 / 604, 1 / 301])


def test_labels_of_one_covariate_each_calibrate_calls_and_novelty(
    study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    first = np.arange(study.n_obs) % 2 == 0
    for column, lost in (("cell_type", first), ("disease", ~first)):
        study.obs[column] = study.obs[column].astype(object).where(~lost)
    atlas = fit(study, epochs=2)
    assert atlas.calibration is not None and atlas.calibration.expected_calibration_error is None
    assert any(
        text.startswith("No cell has a value of each of") for text in atlas.record["warnings"]
    )
    calls = ia.annotate(atlas, study)
    assert calls["novelty_pvalue"].notna().all()
    assert "too few of them have all labels" in describe_calibration(atlas)
    with pytest.raises(ia.InvatlasError, match="0 held-out cells have all their labels"):
        ia.prediction_sets(atlas, study)


def test_cells_too_few_to_be_flagged_are_told_of() -> None:
    pvalue = np.r_[np.full(20, 1 / 200), np.linspace(0.1, 1, 980)]
    judged = pd.DataFrame({"novelty_pvalue": pvalue, "novelty_flag": False})
    (sentence,) = describe_limit(judged, 0.05)
    assert "20 cells are newer" in sentence and "10.0% of 1,000" in sentence
    assert not describe_limit(judged.assign(novelty_flag=pvalue < 0.01), 0.05)
    assert not describe_limit(judged.assign(novelty_pvalue=np.nan), 0.05)
