"""The terms of the objective against brute force over combinations and Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import Normal, kl_divergence

import invatlas as ia
from invatlas.data.minibatch import Minibatch, SparseCounts
from invatlas.model.calls import call_log_probabilities
from invatlas.model.invae import LatentView, Model
from invatlas.model.objective import (
    divergence,
    nobody_yet,
    objective_terms,
    weigh,
)
from invatlas.model.priors import ConditionalGaussians, CovariateTable, DiagonalGaussian
from invatlas.settings import PRIOR_NAMES

EVERY_PART = list(product([False, True], repeat=3))[1:]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def view() -> LatentView:
    """Seven cells, each allowed another set of three combinations."""
    weight = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    prior = ConditionalGaussians(draw(3, 2, seed=1), 0.5 * draw(3, 2, seed=2), weight.log())
    posterior = DiagonalGaussian(draw(7, 2, seed=3), draw(7, 2, seed=4) - 1)
    allowed = torch.tensor(EVERY_PART)
    strata = torch.arange(allowed.shape[1])
    return LatentView(posterior.mean, posterior, posterior.mean, prior, allowed, strata)


def test_divergence_equals_brute_force(view: LatentView) -> None:
    q = Normal(view.posterior.mean[:, None], view.posterior.variance[:, None].sqrt())
    p = Normal(view.prior.mean, (0.5 * view.prior.log_variance).exp())
    kl, weight = kl_divergence(q, p).sum(2), view.prior.log_weight.exp()
    expected = []
    for i, part in enumerate(EVERY_PART):
        share = {d: weight[d] / weight[list(part)].sum() for d in range(3) if part[d]}
        expected.append(-sum(w * (-kl[i, d]).exp() for d, w in share.items()).log())
    torch.testing.assert_close(divergence(view), torch.stack(expected))


def test_divergence_of_a_labelled_cell_is_the_plain_one(view: LatentView) -> None:
    single = [i for i, part in enumerate(EVERY_PART) if sum(part) == 1]
    plain = view.prior.divergence(view.posterior)
    for i in single:
        torch.testing.assert_close(divergence(view)[i], plain[i, EVERY_PART[i].index(True)])


def test_divergence_bounds_that_from_the_mixture(view: LatentView) -> None:
    n = 100_000
    for i, part in enumerate(EVERY_PART):
        keep = torch.tensor(part)
        q = Normal(view.posterior.mean[i], view.posterior.variance[i].sqrt())
        z = q.mean + draw(n, 2, seed=9) * q.stddev
        log_share = view.prior.log_weight[keep] - view.prior.log_weight[keep].logsumexp(0)
        mixture = (view.prior.log_prob(z)[:, keep] + log_share).logsumexp(1)
        samples = q.log_prob(z).sum(1) - mixture
        assert float(divergence(view)[i]) > float(samples.mean() - 4 * samples.std() / n**0.5)


def test_calls_are_bayes_rule(view: LatentView) -> None:
    joint = view.prior.log_evidence(view.posterior).exp() * view.prior.log_weight.exp()
    expected = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(call_log_probabilities(view.posterior, view.prior).exp(), expected)


def make_model(settings: Callable[..., ia.Settings], **changes: object) -> Model:
    torch.manual_seed(0)
    tables = [
        CovariateTable(
            sizes, torch.tensor(list(product(*map(range, sizes)))), torch.full((n,), 1 / n)
        )
        for sizes, n in (([3, 2], 6), ([4], 4))
    ]
    return Model(20, *tables, 30.0, settings(**changes))


def make_minibatch(biological: torch.Tensor, technical: torch.Tensor) -> Minibatch:
    n = len(biological)
    x = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (n, 20)).astype(np.float32))
    size = torch.from_numpy(np.maximum(np.asarray(x.sum(1)).ravel(), 1).astype(np.float32))
    codes = biological, technical, torch.zeros(1, 1), technical
    return Minibatch(np.arange(n), SparseCounts.from_csr(x), size, *codes)


def some_codes(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    biological = torch.stack([torch.randint(k, (n,), generator=g) for k in (3, 2)], 1)
    return biological, torch.randint(4, (n, 1), generator=g)


def find_terms(
    model: Model, minibatch: Minibatch, settings: ia.Settings, moved: int = 1000
) -> dict[str, torch.Tensor]:
    """Every term with equal noise, and their weighted sum; their likes are remembered too."""
    torch.manual_seed(4)
    explanation = model(minibatch)
    latents = settings.invariant_latents, settings.spurious_latents
    nothing = nobody_yet(*latents, minibatch.technical.shape[1])
    _, recent = objective_terms(explanation, minibatch, nothing)
    others = replace(minibatch, rows=minibatch.rows + moved)
    terms, _ = objective_terms(explanation, others, recent)
    return {"objective": weigh(terms, settings), **terms}


def test_no_cell_is_compared_with_what_it_was(settings: Callable[..., ia.Settings]) -> None:
    model, minibatch = make_model(settings).eval(), make_minibatch(*some_codes(400))
    alike, itself = (find_terms(model, minibatch, settings(), moved) for moved in (1000, 0))
    for name in ("invariant_dependence", "spurious_dependence"):
        assert float(alike[name].detach()) != 0.0
        assert float(itself[name].detach()) == 0.0


def test_classification_alone_is_given_what_the_laboratory_says(
    settings: Callable[..., ia.Settings],
) -> None:
    biological, technical = some_codes()
    model, plain = make_model(settings).eval(), make_minibatch(biological, technical)
    truth = (model.prior_invariant.combinations == biological[:, None]).all(2).float()
    found = [
        find_terms(model, replace(plain, expected=sign * truth), settings())
        for sign in (-50.0, 0.0, 50.0)
    ]
    losses = [float(terms["classification"].detach()) for terms in found]
    assert losses[0] > losses[1] > losses[2] == pytest.approx(0.0, abs=1e-5)
    for name in set(found[0]) - {"classification", "objective"}:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_invariant_latents_are_compared_by_the_codes_meant_for_it(
    settings: Callable[..., ia.Settings],
) -> None:
    model, plain = make_model(settings).eval(), make_minibatch(*some_codes(400))
    left_out = replace(plain, compared=torch.full_like(plain.technical, -1))
    before, after = (find_terms(model, minibatch, settings()) for minibatch in (plain, left_out))
    assert float(before["invariant_dependence"].detach()) != 0.0
    assert float(after["invariant_dependence"].detach()) == 0.0
    assert float(after["spurious_dependence"].detach()) != 0.0


def test_terms_have_names_and_are_numbers(settings: Callable[..., ia.Settings]) -> None:
    terms = find_terms(make_model(settings), make_minibatch(*some_codes()), settings())
    assert {
        "objective",
        "reconstruction",
        "invariant_divergence",
        "spurious_divergence",
        "classification",
        "invariant_dependence",
        "spurious_dependence",
    } <= set(terms)
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())


WEIGHTS = {
    "classification_weight": ["classification"],
    "dependence_weight": ["invariant_dependence"],
    "spurious_dependence_weight": ["spurious_dependence"],
    "divergence_weight": ["invariant_divergence", "spurious_divergence"],
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_weight_moves_the_objective_by_its_terms(
    settings: Callable[..., ia.Settings], weight: str
) -> None:
    model, minibatch = make_model(settings).eval(), make_minibatch(*some_codes(400))
    none, two = (find_terms(model, minibatch, settings(**{weight: w})) for w in (0.0, 2.0))
    expected = 2 * sum(none[name] for name in WEIGHTS[weight])
    assert abs(float(expected.detach())) > 1e-4
    torch.testing.assert_close(two["objective"] - none["objective"], expected, rtol=1e-3, atol=1e-4)


def test_reconstruction_is_the_mean_over_cells(settings: Callable[..., ia.Settings]) -> None:
    model, minibatch = make_model(settings).eval(), make_minibatch(*some_codes())
    found = find_terms(model, minibatch, settings())["reconstruction"]
    torch.manual_seed(4)
    torch.testing.assert_close(found, -model(minibatch).counts.log_prob(minibatch.counts).mean())


def test_cells_without_labels_pay_nothing_for_classification(
    settings: Callable[..., ia.Settings],
) -> None:
    biological, technical = some_codes()
    model = make_model(settings)
    found = []
    for codes in (
        torch.full_like(biological, -1),
        torch.stack([biological[:, 0], -torch.ones(40).long()], 1),
        biological,
    ):
        terms = find_terms(model, make_minibatch(codes, technical), settings())
        found.append(float(terms["classification"].detach()))
    assert found[0] == pytest.approx(0.0, abs=1e-5)
    assert 0 < found[1] < found[2], "a cell with one of two labels pays for that one alone"


@pytest.mark.parametrize("prior", PRIOR_NAMES)
def test_every_parameter_learns_in_the_end(
    settings: Callable[..., ia.Settings], prior: str
) -> None:
    biological, technical = some_codes(64)
    biological[:8, 1], technical[8:12] = -1, -1
    minibatch = make_minibatch(biological, technical)
    model = make_model(settings, technical_in_decoder=True, prior=prior)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimiser.zero_grad()
        find_terms(model, minibatch, settings())["objective"].backward()
        optimiser.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n]) and p.numel()]
    assert still == []


@pytest.mark.parametrize("spurious", [0, 3])
@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "gaussian"])
def test_every_likelihood_trains_with_and_without_spurious_latents(
    settings: Callable[..., ia.Settings], likelihood: str, spurious: int
) -> None:
    changes = {"likelihood": likelihood, "spurious_latents": spurious}
    model, minibatch = make_model(settings, **changes), make_minibatch(*some_codes())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        objective = find_terms(model, minibatch, settings(**changes))["objective"]
        objective.backward()
        optimiser.step()
        values.append(float(objective.detach()))
    assert np.isfinite(values).all() and np.mean(values[-3:]) < np.mean(values[:3])


def test_calls_of_labelled_cells_come_to_agree_with_their_labels(
    settings: Callable[..., ia.Settings],
) -> None:
    """The prior is the classifier: minding its cross entropy alone must make it one."""
    biological, technical = some_codes(30)
    model, minibatch = make_model(settings).eval(), make_minibatch(biological, technical)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        find_terms(model, minibatch, settings())["classification"].backward()
        optimiser.step()
    view = model(minibatch).invariant
    called = model.prior_invariant.combinations[
        call_log_probabilities(view.posterior, view.prior).argmax(1)
    ]
    assert (called == biological).all(1).float().mean() > 0.9


@pytest.mark.parametrize("term", ["invariant_dependence", "spurious_dependence"])
def test_dependence_of_the_cells_met_before_moves_the_encoder(
    settings: Callable[..., ia.Settings], term: str
) -> None:
    model, minibatch = make_model(settings), make_minibatch(*some_codes(400))
    find_terms(model, minibatch, settings())[term].backward()
    gradient = model.encode.first.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_a_training_model_stays_one_after_it_has_looked_at_a_minibatch(
    settings: Callable[..., ia.Settings],
) -> None:
    model, minibatch = make_model(settings).train(), make_minibatch(*some_codes())
    model(minibatch)
    assert all(module.training for module in model.modules())
    model.eval()
    model(minibatch)
    assert not any(module.training for module in model.modules())
