"""Training: repeatable, stopped in good order, and loud when the objective is no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.errors import TrainingError
from invatlas.training import job, loop
from invatlas.training.loop import plan_training
from invatlas.training.progress import watch

Fit = Callable[..., ia.Atlas]
CLOCK = ["seconds", "cells_per_second"]


def test_history_has_one_row_an_epoch_and_every_term_twice(atlas: ia.Atlas) -> None:
    history = atlas.history
    assert history["epoch"].tolist() == [1, 2, 3]
    assert (history[CLOCK] > 0).all(axis=None)
    for part in ("train", "held_out"):
        for term in ("objective", "reconstruction", "invariant_divergence", "spurious_divergence"):
            assert np.isfinite(history[f"{part}_{term}"]).all()
        assert f"{part}_classification" in history
        assert any(c.startswith(part) and c.endswith("dependence") for c in history)
    assert history["train_reconstruction"].is_monotonic_decreasing
    assert (history["learning_rate"] > 0).all()


def test_same_seed_same_history_and_weights(
    frozen_study: AnnData, atlas: ia.Atlas, fit: Fit
) -> None:
    torch.manual_seed(99)  # what happened before in the process must not matter
    np.random.seed(99)
    again = fit(frozen_study)
    pd.testing.assert_frame_equal(
        again.history.drop(columns=CLOCK), atlas.history.drop(columns=CLOCK), check_exact=True
    )
    for (name, one), two in zip(
        again.model.state_dict().items(), atlas.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_a_seed_gives_one_atlas_with_several_threads(frozen_study: AnnData, fit: Fit) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, two = (fit(frozen_study).model.state_dict() for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert not torch.are_deterministic_algorithms_enabled()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_an_interrupt_between_training_and_calibration_keeps_what_was_learnt(
    frozen_study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = job.measure_cells, []

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        measure(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "measure_cells", interrupted)
    atlas = fit(frozen_study)
    assert atlas.record["training"]["stopped"] == "interrupted" and len(calls) == 2
    assert float(atlas.model.measured.cells.sum()) > 0


def test_another_seed_gives_another_atlas(frozen_study: AnnData, atlas: ia.Atlas, fit: Fit) -> None:
    other = fit(frozen_study, seed=2)
    assert not np.allclose(other.history["train_objective"], atlas.history["train_objective"])


def test_a_fit_leaves_the_random_numbers_of_its_caller_alone(
    frozen_study: AnnData, fit: Fit
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(frozen_study, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_training_with_more_epochs_explains_held_out_cells_better(
    frozen_study: AnnData, fit: Fit
) -> None:
    history = fit(frozen_study, epochs=12, learning_rate=5e-3).history
    assert history["held_out_reconstruction"].iloc[-1] < history["held_out_reconstruction"].iloc[0]
    assert history["held_out_classification"].iloc[-1] < history["held_out_classification"].iloc[0]


def test_the_model_left_behind_is_in_evaluation_mode_and_embeds_the_same_twice(
    atlas: ia.Atlas, frozen_study: AnnData
) -> None:
    assert not any(module.training for module in atlas.model.modules())
    assert np.array_equal(ia.embed(atlas, frozen_study), ia.embed(atlas, frozen_study))


def test_patience_stops_early_and_the_best_epoch_is_one_of_the_history(
    frozen_study: AnnData, fit: Fit
) -> None:
    atlas = fit(frozen_study, epochs=60, patience=1, learning_rate=0.1)
    trained = atlas.record["training"]
    assert trained["stopped"] == "early"
    assert len(atlas.history) == trained["epochs"] < 60
    assert trained["best_epoch"] == trained["epochs"] - 1


def test_best_weights_are_those_of_the_best_epoch(
    frozen_study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the held-out cells be explained best in epoch 26 of 30: its weights must be kept."""
    best, epochs = 26, iter(range(1, 31))
    monkeypatch.setattr(
        loop.Descent, "_watch", lambda self: {"objective": float(abs(next(epochs) - best))}
    )
    seen: list[dict[str, torch.Tensor]] = []
    original = loop.train

    def spy(model: Any, *rest: Any) -> Any:
        *head, on_epoch, describe = rest

        def note(row: dict[str, float]) -> None:
            seen.append({k: v.detach().clone() for k, v in model.state_dict().items()})
            on_epoch(row)

        return original(model, *head, note, describe)

    monkeypatch.setattr("invatlas.training.job.train", spy)
    again = fit(frozen_study, epochs=30, patience=3)
    assert again.record["training"]["best_epoch"] == best
    assert again.record["training"]["epochs"] == best + 3
    assert again.record["training"]["stopped"] == "early"
    for name, value in again.model.state_dict().items():
        if not name.startswith("measured."):  # of the cells, once training is over
            assert torch.equal(value, seen[best - 1][name]), name


def spoil_objective(monkeypatch: pytest.MonkeyPatch, at: int, spoil: Callable[[Any], Any]) -> None:
    """Put ``spoil`` on the terms of the at-th minibatch that is trained on."""
    original, calls = loop.objective_terms, iter(range(1, 10**6))

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if torch.is_grad_enabled() and next(calls) == at:
            terms = found[0] if isinstance(found, tuple) else found
            spoil(terms)
        return found

    monkeypatch.setattr(loop, "objective_terms", spoilt)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_objective_that_is_no_number_names_minibatch_covariates_and_largest_count(
    study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    study.X[:] = study.X.minimum(40)
    study.X[study.X.nonzero()[0][0], study.X.nonzero()[1][0]] = 54321
    study.obs["disease"] = study.obs["disease"].astype(object)
    study.obs.loc[:, "disease"] = np.where(np.arange(600) < 300, "healthy", "ill")

    def spoil(terms: dict[str, torch.Tensor]) -> None:
        terms["reconstruction"] = terms["reconstruction"] * value

    # 540 cells to train on, 128 in a minibatch: five an epoch, the seventh is 2 of epoch 2
    spoil_objective(monkeypatch, 7, spoil)
    with pytest.raises(TrainingError, match=r"epoch 2, minibatch 2\b") as caught:
        fit(study, minibatch_size=128, epochs=4)
    message = str(caught.value)
    assert "reconstruction" in message
    for name in ("cell_type", "disease", "donor", "batch", "healthy", "ill"):
        assert name in message
    assert "largest count is" in message
    largest = float(message.split("largest count is")[1].split(".")[0].replace(",", ""))
    assert largest in (40.0, 54321.0) or largest > 0


def test_the_cells_named_are_those_of_the_minibatch(
    study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell has a huge count: only the minibatch with that cell may report it."""
    study.X = study.X.minimum(40).tocsr()
    x = study.X.tolil()
    x[17, 3] = 54321
    study.X = x.tocsr()
    reported = []
    for at in range(1, 6):
        with monkeypatch.context() as patch:
            spoil_objective(
                patch, at, lambda t: t.update(reconstruction=t["reconstruction"] * 0 / 0)
            )
            with pytest.raises(TrainingError, match=rf"epoch 1, minibatch {at}\b") as caught:
                fit(study, held_out=0.0)
        reported.append("54321" in str(caught.value).replace(",", ""))
    assert sum(reported) == 1


def test_held_out_cells_are_watched_with_the_same_noise_in_every_epoch(
    frozen_study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    original = loop.objective_terms

    def note(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            states.append(torch.get_rng_state())
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "objective_terms", note)
    fit(frozen_study)
    assert len(states) == 3
    assert torch.equal(states[0], states[1]) and torch.equal(states[1], states[2])


def test_weights_that_became_no_numbers_are_never_kept(
    frozen_study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step has a finite objective whose gradient is not: no atlas of NaN may result."""

    def spoil(terms: dict[str, torch.Tensor]) -> None:
        zero = terms["reconstruction"] * 0
        terms["reconstruction"] = terms["reconstruction"] + torch.sqrt(zero)

    for held_out in (0.1, 0.0):
        steps = 5  # of one epoch
        with monkeypatch.context() as patch:
            spoil_objective(patch, steps, spoil)
            try:
                found = fit(frozen_study, epochs=1, held_out=held_out)
            except TrainingError:
                continue
        assert np.isfinite(ia.embed(found, frozen_study)).all()


def test_an_interruption_after_the_first_epoch_keeps_what_there_is(
    frozen_study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(terms: object) -> None:
        raise KeyboardInterrupt

    spoil_objective(monkeypatch, 12, interrupt)  # in the middle of epoch 3
    atlas = fit(frozen_study, epochs=10)
    trained = atlas.record["training"]
    assert trained["stopped"] == "interrupted"
    assert trained["epochs"] == len(atlas.history) == 2
    assert 1 <= trained["best_epoch"] <= 2
    assert not any(module.training for module in atlas.model.modules())
    assert np.isfinite(ia.embed(atlas, frozen_study)).all()


def test_an_interruption_before_the_end_of_the_first_epoch_goes_through(
    frozen_study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(terms: object) -> None:
        raise KeyboardInterrupt

    spoil_objective(monkeypatch, 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(frozen_study)


def test_plans_shrink_epochs_and_grow_minibatches_with_cells(
    settings: Callable[..., ia.Settings],
) -> None:
    free = settings(epochs=None, minibatch_size=None)
    plans = [plan_training(n, free) for n in (1_000, 10_000, 100_000, 1_000_000)]
    assert [p.epochs for p in plans] == sorted((p.epochs for p in plans), reverse=True)
    assert [p.minibatch_size for p in plans] == sorted(p.minibatch_size for p in plans)
    assert plans[-1].epochs >= 2 and plans[0].epochs <= 1000
    asked = plan_training(5000, settings(epochs=7, minibatch_size=33))
    assert (asked.epochs, asked.minibatch_size) == (7, 33)


@pytest.mark.parametrize("cells", [10, 11, 40])
def test_fewer_cells_than_a_minibatch_are_one_minibatch(
    frozen_study: AnnData, fit: Fit, cells: int
) -> None:
    few = frozen_study[:cells].copy()
    atlas = fit(few, biological=["cell_type"], technical=["donor"], minibatch_size=1024)
    assert ia.embed(atlas, few).shape == (cells, 5)
    assert len(atlas.history) == 3


def test_without_held_out_cells_training_runs_its_length(frozen_study: AnnData, fit: Fit) -> None:
    atlas = fit(frozen_study, held_out=0.0, patience=1)
    assert atlas.record["training"]["best_epoch"] == 3
    assert not [c for c in atlas.history.columns if c.startswith("held_out")]
    assert "No cells were held out" in atlas.record["held_out"]


def test_a_bar_that_stops_short_of_its_end_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"train_objective": 1234.5, "cells_per_second": 6789.0}
    with watch(2, True, "calibration") as bar:
        bar.on_epoch(row)
        bar.say_early(1)
    said = " ".join(capsys.readouterr().err.split())
    assert "calibration: epoch 1/2" in said and "ended: epoch 1 was best" in said
    with watch(1, False, "calibration") as bar:
        bar.on_epoch(row)
    assert not capsys.readouterr().err


def test_training_that_ends_early_says_so_in_its_bar(
    study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(
        "invatlas.training.progress.EpochBar.say_early", lambda _, n: told.append(n)
    )
    early = fit(study, epochs=40, patience=1)
    trained = early.record["training"]
    assert told == ([trained["best_epoch"]] if trained["stopped"] == "early" else [])
    assert trained["stopped"] == "early", "or the test tells nothing"
