"""One fit, and the second one that calibrates it: `Job.run -> train -> objective_terms`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from invatlas.data.covariates import Schema
from invatlas.data.minibatch import Cells
from invatlas.errors import TrainingError
from invatlas.model.invae import Model
from invatlas.model.priors import Prior
from invatlas.settings import Settings
from invatlas.training.calibration import Calibration, calibrate, calibrate_on_donors
from invatlas.training.combinations import count_cells, tabulate
from invatlas.training.crossing import find_crossing
from invatlas.training.laboratories import compare_laboratories
from invatlas.training.loop import Plan, Training, plan_training, train
from invatlas.training.nuisance import find_nuisance
from invatlas.training.posterior import measure_cells
from invatlas.training.progress import watch
from invatlas.training.split import Split, split_cells, split_donors
from invatlas.training.strata import count_bins, merge


@dataclass(frozen=True)
class Job:
    """Cells to fit a model to, with everything that stays the same from one fit to the next."""

    cells: Cells
    schema: Schema
    settings: Settings
    names: pd.Index
    progress: bool

    def plan(self, split: Split) -> Plan:
        """Epochs and minibatch size for the cells of a split."""
        return plan_training(len(split.train) + len(split.held_out), self.settings)

    def run(self, split: Split, title: str) -> tuple[Model, Training]:
        """Fit a new model; the seed decides everything."""
        torch.manual_seed(self.settings.seed)
        biological, technical = self.schema.biological, self.schema.technical
        codes = self.cells.technical[split.train]
        median_library_size = float(np.median(self.cells.source.library_size))
        model = Model(
            self.cells.source.matrix.shape[1],
            tabulate(biological, self.cells.biological[split.train]),
            replace(tabulate(technical, codes), cells=count_cells(technical, codes)),
            median_library_size,
            self.settings,
        )
        alike = self._find_strata(model.prior_invariant, split.train)
        if self.settings.laboratory_noise:
            model.encode.laboratories = compare_laboratories(alike, split.train)
        model.encode.nuisance = find_nuisance(
            alike, split.train, median_library_size, self.settings.nuisance_directions
        )
        model.encode.look_away(model.encode.first.data)
        cells, plan = self._cross(model.prior_invariant, split.train), self.plan(split)
        with watch(plan.epochs, self.progress, title) as bar:
            asked = plan, self.settings, bar.on_epoch, self.describe
            training = train(model, cells, split, *asked)
            if training.stopped == "early":
                bar.say_early(training.best_epoch)
        model.encode.forget_laboratories()
        try:
            measure_cells(model, self.cells, split.train)
        except KeyboardInterrupt:  # no atlas is without it, and it takes less than an epoch
            measure_cells(model, self.cells, split.train)
            training = replace(training, stopped="interrupted")
        return model, training

    def _find_strata(self, prior: Prior, rows: np.ndarray) -> Cells:
        """Tell a prior which combinations are alike, and return the cells with strata for knots."""
        biological = self.schema.biological
        codes = self.schema.keep_categories(self.cells.biological, self.cells.technical)[1]
        bins = count_bins(biological, self.cells.biological[rows], codes[rows])
        merged = merge(biological, prior.combinations.numpy(), bins)
        prior.strata = torch.from_numpy(np.unique(merged, axis=0, return_inverse=True)[1].ravel())
        return replace(self.cells, biological=merge(biological, self.cells.biological, bins))

    def _cross(self, prior: Prior, rows: np.ndarray) -> Cells:
        """Tell cells how biology and laboratories cross among some of them."""
        codes = self.cells.biological[rows], self.cells.technical[rows]
        d = prior.combinations.numpy(), prior.weights.double().numpy()
        return replace(self.cells, crossing=find_crossing(self.schema, *codes, *d))

    def calibrate(
        self, model: Model, training: Training, split: Split
    ) -> tuple[Calibration | None, list[str]]:
        """Learn from held-out cells how far calls can be trusted; from spared donors if need be.

        A second fit that is interrupted or fails leaves the calibration on cells drawn at random,
        and a sentence that says so.
        """
        settings, cells = self.settings, self.cells
        generator = np.random.default_rng(settings.seed)
        try:
            found = calibrate(model, cells, split, generator)
        except KeyboardInterrupt:
            return None, ["Calls are not calibrated, since the fit was interrupted in it."]
        if found is None or split.covariate is not None or not settings.spared_donors:
            return found, []
        biological, technical = self.schema.keep_categories(cells.biological, cells.technical)
        spared = split_donors(biological, technical, settings.spared_donors, generator)
        if spared is None:
            return found, []
        column = self.schema.technical[spared.covariate or 0].name
        if training.stopped == "interrupted":
            return found, _leave_out(column, "the fit was interrupted")
        rows = spared.train
        inner = split_cells(biological[rows], technical[rows], settings.held_out, generator)
        inner = Split(rows[inner.train], rows[inner.held_out], None)
        try:
            second, second_training = self.run(inner, "calibration")
            tables = [fitted.prior_invariant.combinations for fitted in (model, second)]
            if second_training.stopped == "interrupted":
                return found, _leave_out(column, "the fit was interrupted in it")
            if not torch.equal(*tables):
                return found, _leave_out(column, "it met other combinations of values")
            return calibrate_on_donors(found, second, inner, cells, spared, generator), []
        except KeyboardInterrupt:
            return found, _leave_out(column, "the fit was interrupted in it")
        except TrainingError:
            return found, _leave_out(column, "its training failed")

    def describe(self, rows: np.ndarray) -> str:
        """Name the cells of a minibatch by what could be wrong with them."""
        codes = np.concatenate([self.cells.biological[rows], self.cells.technical[rows]], axis=1)
        values = []
        for covariate, column in zip(self.schema.covariates, codes.T, strict=True):
            seen = [covariate.categories[code] for code in np.unique(column[column >= 0])]
            more = f" and {len(seen) - 4} more" if len(seen) > 4 else ""
            values.append(f"{covariate.name}: {', '.join(seen[:4]) or 'missing'}{more}")
        return (
            f"Its {len(rows)} cells start with {self.names[rows[0]]!r}; {'; '.join(values)}; "
            f"their largest count is {self.cells.source.matrix[rows].max()}."
        )


def _leave_out(column: str, reason: str) -> list[str]:
    """Say that calls are not calibrated on new donors, and why."""
    return [
        f"The calibration on values of {column} that training never met was left out, since "
        f"{reason}; calls are calibrated on cells drawn at random and promise less for a new "
        f"{column}."
    ]
