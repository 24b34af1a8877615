"""The model as a whole: no label in an encoder, and what the decoder is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import invatlas as ia
from invatlas.data.minibatch import Minibatch, SparseCounts
from invatlas.model.invae import Explanation, Model
from invatlas.model.networks import Encoder
from invatlas.model.priors import CovariateTable

SETTINGS = {"hidden": 8, "layers": 2, "invariant_latents": 3, "spurious_latents": 2}


def make_model(settings: Callable[..., ia.Settings], **changes: object) -> Model:
    torch.manual_seed(0)
    tables = [
        CovariateTable(
            list(sizes), torch.tensor(list(product(*map(range, sizes)))), torch.full((n,), 1 / n)
        )
        for sizes, n in (((3, 2), 6), ((4,), 4))
    ]
    return Model(10, *tables, 20.0, settings(**{**SETTINGS, **changes})).eval()


def make_minibatch(n: int = 30, biological: int = 0, technical: int = 0) -> Minibatch:
    x = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (n, 10)).astype(np.float32))
    size = torch.from_numpy(np.asarray(x.sum(1)).ravel().astype(np.float32)).clamp_min(1)
    return Minibatch(
        np.arange(n),
        SparseCounts.from_csr(x),
        size,
        torch.full((n, 2), biological),
        torch.full((n, 1), technical),
        torch.zeros(1, 1),
        torch.full((n, 1), technical),
    )


def explain(model: Model, minibatch: Minibatch) -> Explanation:
    torch.manual_seed(3)
    return model(minibatch)


def test_the_only_inputs_of_an_encoder_are_counts_and_library_size() -> None:
    assert list(inspect.signature(Encoder.forward).parameters) == [
        "self",
        "counts",
        "library_size",
    ]


@pytest.mark.parametrize("technical_in_decoder", [False, True])
def test_labels_move_no_posterior(
    settings: Callable[..., ia.Settings], technical_in_decoder: bool
) -> None:
    model = make_model(settings, technical_in_decoder=technical_in_decoder)
    first, second = explain(model, make_minibatch()), explain(model, make_minibatch(30, 1, 3))
    for name in ("invariant", "spurious"):
        one, two = getattr(first, name), getattr(second, name)
        assert torch.equal(one.posterior.mean, two.posterior.mean)
        assert torch.equal(one.posterior.log_variance, two.posterior.log_variance)
        assert not torch.equal(one.allowed, two.allowed), "labels do reach the prior"


@pytest.mark.parametrize("technical_in_decoder", [False, True])
def test_technical_values_reach_the_decoder_only_where_wanted(
    settings: Callable[..., ia.Settings], technical_in_decoder: bool
) -> None:
    model = make_model(settings, technical_in_decoder=technical_in_decoder)
    with torch.no_grad():
        for parameter in model.decode.parameters():
            parameter.copy_(torch.randn_like(parameter))
    means = [explain(model, make_minibatch(technical=e)).counts.mean for e in (0, 3, -1)]
    assert torch.equal(means[0], means[1]) != technical_in_decoder
    assert torch.equal(means[0], means[2]) != technical_in_decoder
    biology = explain(model, make_minibatch(biological=2)).counts.mean
    assert torch.equal(means[0], biology), "biological values reach counts through z_I alone"


def test_the_encoder_sees_proportions_so_a_deeper_cell_of_one_kind_looks_the_same(
    settings: Callable[..., ia.Settings],
) -> None:
    model, minibatch = make_model(settings), make_minibatch()
    x = minibatch.counts
    twice = replace(
        minibatch,
        counts=replace(x, values=2 * x.values),
        library_size=2 * minibatch.library_size,
    )
    shallow, deep = explain(model, minibatch), explain(model, twice)
    torch.testing.assert_close(shallow.invariant.posterior.mean, deep.invariant.posterior.mean)
    torch.testing.assert_close(2 * shallow.counts.mean, deep.counts.mean)


def test_cells_without_any_count_have_finite_posteriors_and_likelihoods(
    settings: Callable[..., ia.Settings],
) -> None:
    model = make_model(settings)
    nothing = SparseCounts.from_csr(sp.csr_matrix((30, 10), dtype=np.float32))
    minibatch = replace(make_minibatch(), counts=nothing, library_size=torch.ones(30))
    explanation = explain(model, minibatch)
    assert torch.isfinite(explanation.invariant.posterior.mean).all()
    assert torch.isfinite(explanation.counts.log_prob(nothing)).all()


def test_what_a_cell_is_does_not_depend_on_its_neighbours(
    settings: Callable[..., ia.Settings],
) -> None:
    model, together = make_model(settings), make_minibatch(30)
    alone = make_minibatch(1)  # the generator draws the same first cell
    torch.testing.assert_close(
        explain(model, alone).invariant.posterior.mean,
        explain(model, together).invariant.posterior.mean[:1],
    )
