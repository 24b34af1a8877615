"""Gradient descent on the objective: the whole of it, in plain torch.

for each epoch
    for each minibatch (the next one is prepared meanwhile)
        terms = objective(model(minibatch));  clip(grad);  Adam, warm-up and cosine decay
        (weight and gradient of the first layer look away from nuisance directions)
    watch the held-out cells;  keep the best weights;  stop when they stay the best
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invatlas.data.minibatch import Cells, Minibatch, count_minibatches, prefetched, shuffled
from invatlas.errors import TrainingError
from invatlas.model.invae import Model
from invatlas.model.objective import nobody_yet, objective_terms, weigh
from invatlas.processor import quick_products, repeatable
from invatlas.settings import Settings
from invatlas.training.split import Split

WARM_UP = 0.05
LAST_LEARNING_RATE = 0.02
RAMP = (0.1, 0.4)  # shares of training between which the dependences come to count in full
SETTLED = 0.75  # share of training after which weights are compared
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
    """Choose epochs and minibatch size from the number of cells.

    ``benchmarks/schedule.py`` chose them up to 16,000 cells; beyond, nothing was measured.
    """
    size = settings.minibatch_size or (
        256 if n_cells < 50_000 else 512 if n_cells < 500_000 else 1024
    )
    steps_an_epoch = max(1, n_cells / size)
    epochs = settings.epochs or round(min(200, max(8, 1000 / steps_an_epoch)))
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

    Weights are compared in the last quarter, where steps are small and the dependences count in
    full and have settled; before that the latest are best.
    Ctrl-C after the first epoch ends training and keeps what is best so far.

    Raises
    ------
    TrainingError
        If the objective is not finite; ``describe`` names the cells of the minibatch.
    """
    descent = Descent(model, cells, split, plan, settings, describe)
    history: list[Row] = []
    best, best_epoch, best_weights, stopped = math.inf, 0, _copy_weights(model), "complete"
    try:
        for epoch in range(1, plan.epochs + 1):
            with quick_products(), repeatable():
                row = descent.run_epoch(epoch)
            history.append(row)
            value = row.get("held_out_objective", -math.inf)
            if not math.isnan(value) and (value <= best or not descent.settled):
                best = value if descent.settled else math.inf
                best_epoch, best_weights = epoch, _copy_weights(model)
            on_epoch(row)
            if epoch - best_epoch >= settings.patience:
                stopped = "early"
                break
    except KeyboardInterrupt:
        if not history:
            raise
        stopped = "interrupted"
    if not best_epoch:
        raise TrainingError(
            f"The objective of the {len(split.held_out)} held-out cells was no number in any of "
            f"{len(history)} epochs. {describe(split.held_out)}"
        )
    model.load_state_dict(best_weights)
    model.eval()
    return Training(history, best_epoch, stopped)


class Descent:
    """The state of gradient descent: optimiser, schedule and the cells met lately."""

    def __init__(
        self,
        model: Model,
        cells: Cells,
        split: Split,
        plan: Plan,
        settings: Settings,
        describe: Callable[[np.ndarray], str],
    ) -> None:
        self.model, self.cells, self.split, self.settings = model, cells, split, settings
        self.describe, self.size = describe, plan.minibatch_size
        self.generator = np.random.default_rng(settings.seed)
        self.optimiser = torch.optim.Adam(
            model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step = 0
        self.total_steps = plan.epochs * count_minibatches(len(split.train), plan.minibatch_size)
        self.watched = _without_unseen_values(cells, split)
        self.recent = nobody_yet(
            settings.invariant_latents, settings.spurious_latents, cells.technical.shape[1]
        )

    @property
    def ramp(self) -> float:
        """How far the dependence counts by now, 0 to 1."""
        start, end = RAMP
        return min(1.0, max(0.0, (self.step / self.total_steps - start) / (end - start)))

    @property
    def settled(self) -> bool:
        """Whether weights may be compared by now."""
        return self.step >= SETTLED * self.total_steps

    def run_epoch(self, epoch: int) -> Row:
        """Pass once over the training cells and look at the held-out ones."""
        start = time.perf_counter()
        learning_rate = self._set_learning_rate()
        train_terms = self._descend(epoch)
        seconds = time.perf_counter() - start
        held_out_terms = self._watch()
        return {
            "epoch": epoch,
            "seconds": seconds,
            "cells_per_second": len(self.split.train) / seconds,
            "learning_rate": learning_rate,
            **{f"train_{name}": value for name, value in train_terms.items()},
            **{f"held_out_{name}": value for name, value in held_out_terms.items()},
        }

    def _descend(self, epoch: int) -> Row:
        self.model.train()
        means, encode = Means(), self.model.encode
        minibatches = shuffled(self.split.train, self.size, self.generator)
        for number, minibatch in enumerate(prefetched(minibatches, self.cells.read), 1):
            self._set_learning_rate()
            terms, self.recent = objective_terms(self.model(minibatch), minibatch, self.recent)
            objective = weigh(terms, self.settings, self.ramp)
            if not torch.isfinite(objective):
                self._refuse(objective, terms, f"epoch {epoch}, minibatch {number}", minibatch)
            self.optimiser.zero_grad(set_to_none=True)
            objective.backward()
            assert encode.first.grad is not None
            encode.look_away(encode.first.grad)
            norm = clip_gradient(list(self.model.parameters()), self.settings.gradient_norm)
            if not torch.isfinite(norm):
                self._refuse(
                    norm, {"gradient": norm}, f"epoch {epoch}, minibatch {number}", minibatch
                )
            self.optimiser.step()
            encode.look_away(encode.first.data)
            self.step += 1
            means.add({"objective": objective, **terms}, len(minibatch.rows))
        return means.values()

    @torch.no_grad()
    def _watch(self) -> Row:
        """Mean of each term over the held-out cells, with the same noise at every call."""
        self.model.eval()
        means = Means()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            for start in range(0, len(self.split.held_out), HELD_OUT_MINIBATCH):
                rows = self.split.held_out[start : start + HELD_OUT_MINIBATCH]
                minibatch = self.watched.read(rows)
                terms, _ = objective_terms(self.model(minibatch), minibatch, self.recent)
                means.add({"objective": weigh(terms, self.settings), **terms}, len(rows))
        return means.values()

    def _set_learning_rate(self) -> float:
        share = _learning_rate_share(self.step / self.total_steps)
        rate = self.settings.learning_rate * share
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def _refuse(
        self, value: Tensor, terms: dict[str, Tensor], place: str, minibatch: Minibatch
    ) -> None:
        bad = [name for name, term in terms.items() if not torch.isfinite(term)]
        raise TrainingError(
            f"The objective is {value.item()} in {place} ({', '.join(bad)}). "
            f"{self.describe(minibatch.rows)} A smaller learning_rate often helps."
        )


def clip_gradient(parameters: list[Tensor], limit: float) -> Float[Tensor, ""]:
    """Scale a gradient down to a norm, and return the norm it had; a shorter one is left alone."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


class Means:
    """Running means of named terms over cells."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums = torch.zeros(0)
        self.n_cells = 0

    def add(self, terms: dict[str, Tensor], n_cells: int) -> None:
        """Add the means over some cells; the terms are the same at every call."""
        values = torch.stack(list(terms.values())).detach() * n_cells
        self.sums = self.sums + values if self.n_cells else values
        self.names, self.n_cells = list(terms), self.n_cells + n_cells

    def values(self) -> Row:
        """Mean of each term; nothing before the first cell."""
        return {
            name: total / self.n_cells
            for name, total in zip(self.names, self.sums.tolist(), strict=True)
        }


def _without_unseen_values(cells: Cells, split: Split) -> Cells:
    """Held-out donors are nobody the priors have met: their value is missing.

    Continuous values keep the code of the nearest knot, the same at every look.
    """
    cells = replace(cells, rounding=None)
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
