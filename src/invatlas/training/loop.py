"""Gradient descent on the objective: the whole of it, in plain torch.

for each epoch
    for each minibatch (the next one is prepared meanwhile)
        terms = objective(model(minibatch));  clip(grad);  Adam, warm-up and cosine decay
    watch the held-out cells;  keep the best weights;  stop when they stay the best
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from invatlas.data.minibatch import Cells, Minibatch, prefetched, shuffled
from invatlas.errors import TrainingError
from invatlas.model.invae import Model
from invatlas.model.objective import objective_terms
from invatlas.settings import Settings
from invatlas.training.split import Split

WARM_UP = 0.05
LAST_LEARNING_RATE = 0.02
HELD_OUT_MINIBATCH = 1024

Row = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How long to train, and in steps of how many cells."""

    epochs: int
    minibatch_size: int


@dataclass(frozen=True)
class Training:
    """What training leaves behind besides the weights.

    Attributes
    ----------
    history
        One row an epoch.
    best_epoch
        Epoch whose weights the model now has, counted from 1.
    stopped
        ``complete``, ``early`` or ``interrupted``.
    """

    history: list[Row]
    best_epoch: int
    stopped: str


def plan_training(n_cells: int, settings: Settings) -> Plan:
    """Choose epochs and minibatch size from the number of cells (benchmarks/schedule.py)."""
    size = settings.minibatch_size or (
        256 if n_cells < 50_000 else 512 if n_cells < 500_000 else 1024
    )
    steps_an_epoch = max(1, n_cells / size)
    epochs = settings.epochs or round(min(200, max(8, 1500 / steps_an_epoch)))
    return Plan(epochs, size)


def train(
    model: Model,
    cells: Cells,
    split: Split,
    plan: Plan,
    settings: Settings,
    on_epoch: Callable[[Row], None],
    describe: Callable[[np.ndarray], str],
) -> Training:
    """Fit a model and leave it with its best weights.

    Ctrl-C after the first epoch ends training and keeps what is best so far.

    Raises
    ------
    TrainingError
        If the objective is not finite; ``describe`` names the cells of the minibatch.
    """
    watched = _without_unseen_values(cells, split)
    generator = np.random.default_rng(settings.seed)
    optimiser = torch.optim.Adam(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    total_steps = plan.epochs * len(shuffled(split.train, plan.minibatch_size, generator))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _learning_rate_share(step / total_steps)
    )
    history: list[Row] = []
    best, best_epoch, best_weights, stopped = math.inf, 0, _copy_weights(model), "complete"
    try:
        for epoch in range(1, plan.epochs + 1):
            start = time.perf_counter()
            learning_rate = float(schedule.get_last_lr()[0])
            minibatches = shuffled(split.train, plan.minibatch_size, generator)
            train_terms = _descend(
                model, cells, minibatches, optimiser, schedule, settings, epoch, describe
            )
            seconds = time.perf_counter() - start
            held_out_terms = evaluate(model, watched, split.held_out, settings)
            row: Row = {
                "epoch": epoch,
                "seconds": seconds,
                "cells_per_second": len(split.train) / seconds,
                "learning_rate": learning_rate,
                **{f"train_{name}": value for name, value in train_terms.items()},
                **{f"held_out_{name}": value for name, value in held_out_terms.items()},
            }
            history.append(row)
            watched_value = held_out_terms.get("objective", -epoch)
            if watched_value < best:
                best, best_epoch, best_weights = watched_value, epoch, _copy_weights(model)
            on_epoch(row)
            if epoch - best_epoch >= settings.patience:
                stopped = "early"
                break
    except KeyboardInterrupt:
        if not history:
            raise
        stopped = "interrupted"
    model.load_state_dict(best_weights)
    model.eval()
    return Training(history, best_epoch, stopped)


def _descend(
    model: Model,
    cells: Cells,
    minibatches: list[np.ndarray],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    settings: Settings,
    epoch: int,
    describe: Callable[[np.ndarray], str],
) -> Row:
    """One pass over the training cells; the mean of each term over cells."""
    model.train()
    sums: dict[str, Tensor] = {}
    for number, minibatch in enumerate(prefetched(minibatches, cells.read), 1):
        terms = objective_terms(model(minibatch), minibatch, settings)
        objective = terms["objective"]
        if not torch.isfinite(objective):
            bad = [name for name, term in terms.items() if not torch.isfinite(term)]
            raise TrainingError(
                f"The objective is {objective.item()} in epoch {epoch}, minibatch {number} "
                f"({', '.join(bad)}). {describe(minibatch.rows)} "
                "A smaller learning_rate often helps."
            )
        optimiser.zero_grad(set_to_none=True)
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_norm)
        optimiser.step()
        schedule.step()
        _add(sums, terms, minibatch)
    return _means(sums, sum(map(len, minibatches)))


@torch.no_grad()
def evaluate(model: Model, cells: Cells, rows: np.ndarray, settings: Settings) -> Row:
    """Mean of each term over some cells, with the same noise at every call."""
    if not len(rows):
        return {}
    model.eval()
    sums: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for start in range(0, len(rows), HELD_OUT_MINIBATCH):
            minibatch = cells.read(rows[start : start + HELD_OUT_MINIBATCH])
            _add(sums, objective_terms(model(minibatch), minibatch, settings), minibatch)
    return _means(sums, len(rows))


def _add(sums: dict[str, Tensor], terms: dict[str, Tensor], minibatch: Minibatch) -> None:
    for name, term in terms.items():
        sums[name] = sums.get(name, torch.zeros(())) + term.detach() * len(minibatch.rows)


def _means(sums: dict[str, Tensor], n_cells: int) -> Row:
    return {name: value.item() / n_cells for name, value in sums.items()}


def _without_unseen_values(cells: Cells, split: Split) -> Cells:
    """Held-out donors are nobody the priors have met: their value is missing."""
    if split.covariate is None:
        return cells
    technical = cells.technical.copy()
    technical[split.held_out, split.covariate] = -1
    return replace(cells, technical=technical)


def _learning_rate_share(progress: float) -> float:
    if progress < WARM_UP:
        return 0.05 + 0.95 * progress / WARM_UP
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * cosine


def _copy_weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
