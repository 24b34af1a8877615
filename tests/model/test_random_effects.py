"""Random effects against what is known of them in closed form, and as part of a fitted atlas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

import invatlas as ia
from invatlas.model.invae import PRIORS
from invatlas.model.priors import CovariateTable, FactorisedPrior
from invatlas.model.random_effects import RandomEffects

VARIANCE = 0.5  # of a cell about the mean of its donor
CELLS = torch.tensor([2.0, 4.0, 8.0, 20.0, 50.0, 200.0, 3.0, 3.0])
MEANS = torch.tensor([1.5, -0.9, 0.7, -1.2, 0.4, -0.3, 2.0, 0.1])  # of the cells of each donor


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int = 2000) -> None:
    optimiser = torch.optim.Adam(parameters, lr=0.03)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        decay.step()


def best_predictor(tau: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each donor's effect given its cells (BLUP), for a known tau^2."""
    told = CELLS / VARIANCE
    variance = 1 / (1 / tau + told)
    return variance * told * MEANS, variance


def test_modes_and_spread_are_those_of_expectation_and_maximisation() -> None:
    tau = torch.tensor(1.0)
    for _ in range(1000):
        mode, variance = best_predictor(tau)
        tau = (mode.square() + variance).mean()
    random = RandomEffects([slice(0, 8)], CELLS, 1)
    effects = torch.zeros(8, 2, requires_grad=True)

    def loss() -> Tensor:
        # cells have a known variance: only their means are random
        misfit = CELLS @ (MEANS - effects[:, 0]).square() / (2 * VARIANCE) / CELLS.sum()
        return misfit + random.divergence(effects, torch.full((8, 1), 1 / VARIANCE))

    minimise(loss, [effects, random.log_spread])
    torch.testing.assert_close((2 * random.log_spread[0, 0]).exp(), tau, rtol=1e-2, atol=0)
    torch.testing.assert_close(effects[:, 0], mode, rtol=0, atol=5e-3)
    kept = effects[:6, 0].detach() / MEANS[:6]
    assert (kept.diff() > 0).all() and kept[0] < 0.9 < kept[5], "few cells shrink more than many"


def test_it_costs_what_torch_distributions_say() -> None:
    random = RandomEffects([slice(0, 8)], CELLS, 3)
    effects, precision = torch.randn(8, 6), torch.rand(8, 3) + 0.5
    spread = random.log_spread[0].detach().exp()
    told = CELLS[:, None] * torch.cat([precision, torch.full((8, 3), 0.5)], 1)
    q = torch.distributions.Normal(effects, (1 / (spread**-2 + told)).sqrt())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, spread)).sum()
    found = random.divergence(effects, precision).detach()
    torch.testing.assert_close(found, expected / CELLS.sum())


def test_a_nested_donor_shrinks_to_its_batch() -> None:
    batch = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    tau_batch, tau_donor = 1.4, 0.3
    # in closed form: donor totals are Gaussian with covariance tau_b^2 [same batch] + tau_d^2 I
    prior = tau_batch**2 * (batch[:, None] == batch).float() + tau_donor**2 * torch.eye(8)
    seen = prior + torch.diag(VARIANCE / CELLS)
    totals = prior @ torch.linalg.solve(seen, MEANS)
    random = RandomEffects([slice(0, 8), slice(8, 10)], torch.cat([CELLS, torch.ones(2)]), 1)
    random.log_spread.data[:, 0] = torch.tensor([tau_donor, tau_batch]).log()
    effects = torch.zeros(10, 2, requires_grad=True)

    def loss() -> Tensor:
        mean = effects[:8, 0] + effects[8:, 0][batch]
        misfit = CELLS @ (MEANS - mean).square() / (2 * VARIANCE) / CELLS.sum()
        return misfit + random.divergence(effects, torch.full((10, 1), 1 / VARIANCE))

    minimise(loss, [effects])
    found = (effects[:8, 0] + effects[8:, 0][batch]).detach()
    torch.testing.assert_close(found, totals, rtol=0, atol=1e-2)
    centre = effects[8:, 0].detach()[batch]
    assert ((found - centre).abs() < (MEANS - centre).abs()).all()


def table(sizes: list[int], ordered: tuple[bool, ...] = ()) -> CovariateTable:
    rows = torch.tensor(list(product(*map(range, sizes))))
    weights = torch.full((len(rows),), 1 / len(rows))
    return CovariateTable(sizes, rows, weights, (), ordered, torch.ones(sum(sizes)))


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_every_prior_draws_its_categories_and_leaves_scales_alone(name: str) -> None:
    torch.manual_seed(0)
    prior = PRIORS[name](table([3, 4, 2], (False, True, False)), 2)
    assert isinstance(prior, FactorisedPrior)
    assert [rows.start for rows in prior.random_effects.populations] == [0, 7]
    with torch.no_grad():
        prior.effects.copy_(torch.randn_like(prior.effects))
    prior.departure(prior()).backward()
    moved = prior.effects.grad.abs().sum(1) > 0
    assert moved.tolist() == [True] * 3 + [False] * 4 + [True] * 2
    assert (prior.random_effects.log_spread.grad.abs() > 0).all()
    assert float(prior.shrinkage().detach()) > 0, "a scale still bends at a price"


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_values_that_are_no_draws_pay_nothing(name: str) -> None:
    given = table([3, 2])
    prior = PRIORS[name](CovariateTable(given.sizes, given.combinations, given.weights), 2)
    with torch.no_grad():
        prior.effects.copy_(torch.randn_like(prior.effects))
    assert float(prior.departure(prior())) == 0.0


def test_a_value_that_no_combination_holds_is_a_draw_all_the_same() -> None:
    rows = torch.tensor([[0, 0], [1, 1]])
    given = CovariateTable([3, 2], rows, torch.full((2,), 0.5), cells=torch.ones(5))
    prior = PRIORS["factorised"](given, 2)
    assert torch.isfinite(prior.departure(prior()))


@pytest.fixture(scope="module")
def study(frozen_study: AnnData) -> AnnData:
    """Donors in batches in platforms; the first donor has but few cells."""
    keep = (frozen_study.obs["donor"] != frozen_study.obs["donor"].iloc[0]).to_numpy()
    keep |= np.random.default_rng(0).random(len(keep)) < 0.1
    some = frozen_study[keep].copy()
    batches = some.obs["batch"].astype(str)
    some.obs["platform"] = np.where(batches == batches.iloc[0], "one", "two")
    return some


@pytest.fixture(scope="module")
def atlas(study: AnnData, fit: Callable[..., ia.Atlas]) -> ia.Atlas:
    return fit(study, technical=["donor", "batch", "platform"], epochs=10)


def test_three_technical_covariates_fit_embed_and_map(
    atlas: ia.Atlas, study: AnnData, frozen_study: AnnData
) -> None:
    random = atlas.model.prior_spurious.random_effects
    assert random.log_spread.shape == (3, 6) and random.cells.shape == (10,)
    n_train = atlas.record["labelled"]["spurious"]
    torch.testing.assert_close(
        torch.stack([random.cells[rows].sum() for rows in random.populations]),
        torch.full((3,), float(n_train)),
    )
    assert (atlas.history["train_random_effects"] > 0).all()
    mapped = ia.embed(atlas, frozen_study, "spurious")
    assert mapped.shape == (600, 3) and np.isfinite(mapped).all()


def test_an_atlas_with_random_effects_is_saved_and_loaded(atlas: ia.Atlas, tmp_path: Path) -> None:
    ia.save(atlas, tmp_path / "atlas")
    back = ia.load(tmp_path / "atlas").model.prior_spurious
    own = atlas.model.prior_spurious
    for name, value in own.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name
    assert torch.equal(own.departure(own()), back.departure(back()))


def test_a_new_value_learnt_from_few_cells_stays_nearer_to_its_population(
    atlas: ia.Atlas, study: AnnData
) -> None:
    prior = atlas.model.prior_spurious
    row = len(atlas.schema.technical[0].categories)
    learnt = []
    for times in (1, 60):  # the same two cells, met once or often
        odd = study[[0, 1]].copy()
        obs = pd.concat([odd.obs.assign(donor="somebody")] * times)
        obs.index = [f"cell {i}" for i in range(2 * times)]
        odd = AnnData(sp.vstack([odd.X] * times).tocsr(), obs, odd.var)
        effects = ia.adapt(atlas, odd).model.prior_spurious.effects[row]
        departure = effects / prior.random_effects.log_spread[0].exp()
        learnt.append(float(departure.detach().norm()))
    assert learnt[0] < 0.7 * learnt[1]
