"""Adaptation to new donors: what is learnt, what stays, and how it is undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData, concat

import invatlas as ia
from invatlas.training.adaptation import Growth


@pytest.fixture(scope="module")
def reference(frozen_study: AnnData) -> AnnData:
    newcomers = sorted(frozen_study.obs["donor"].unique())[:2]
    return frozen_study[~frozen_study.obs["donor"].isin(newcomers)].copy()


@pytest.fixture(scope="module")
def query(frozen_study: AnnData, reference: AnnData) -> AnnData:
    rest = frozen_study[~frozen_study.obs_names.isin(reference.obs_names)].copy()
    rest.X = rest.X.copy()
    rest.X[:, :10] = 20 * rest.X[:, :10]  # a laboratory unlike the others
    return rest


@pytest.fixture(scope="module")
def before(reference: AnnData, fit: Callable[..., ia.Atlas]) -> ia.Atlas:
    return fit(reference, epochs=20)


@pytest.fixture(scope="module")
def after(before: ia.Atlas, query: AnnData) -> ia.Atlas:
    return ia.adapt(before, query)


def test_new_values_come_after_the_old_ones(
    before: ia.Atlas, after: ia.Atlas, query: AnnData
) -> None:
    old, new = before.schema.technical[0], after.schema.technical[0]
    assert new.categories == old.categories + tuple(sorted(query.obs["donor"].unique()))
    assert after.schema.technical[1] == before.schema.technical[1]
    assert after.schema.biological == before.schema.biological


def test_every_weight_there_was_is_bit_identical(before: ia.Atlas, after: ia.Atlas) -> None:
    sizes = [[len(c.categories) for c in a.schema.technical] for a in (before, after)]
    growth, old, grown = Growth(*sizes), before.model.state_dict(), set()
    for name, value in after.model.state_dict().items():
        kept = growth.kept(name, len(value)) if value.dim() else None
        if kept is not None:
            assert torch.equal(value[kept], old[name]), name
            grown.add(name)
        elif "prior_spurious" in name and value.shape != old[name].shape:
            grown.add(name)
        else:
            assert torch.equal(value, old[name]), name
    assert all(name.startswith(("prior_spurious", "decode.technical")) for name in grown)


def test_latents_and_calls_are_the_same_bit_for_bit(
    before: ia.Atlas, after: ia.Atlas, query: AnnData
) -> None:
    for which in ("invariant", "spurious"):
        old, new = (ia.embed(atlas, query, which) for atlas in (before, after))
        assert np.array_equal(old, new)
    assert ia.annotate(before, query).equals(ia.annotate(after, query))


def test_the_counts_of_the_new_donors_are_explained_better(after: ia.Atlas) -> None:
    (step,) = after.record["adapted"]
    assert step["reconstruction"]["after"] < step["reconstruction"]["before"] - 1


def test_it_can_be_undone(before: ia.Atlas, after: ia.Atlas) -> None:
    back = ia.undo_adaptation(after)
    assert back.schema == before.schema and back.record == before.record
    assert not back.model.training
    new = back.model.state_dict()
    assert new.keys() == before.model.state_dict().keys()
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, new[name]), name
    with pytest.raises(ia.InvatlasError, match="never adapted"):
        ia.undo_adaptation(back)


def test_twice_adapted_is_undone_step_by_step(after: ia.Atlas, query: AnnData) -> None:
    other = query.copy()
    other.obs["donor"] = "somebody"
    other.obs["batch"] = "batch of another year"
    twice = ia.adapt(after, other)
    assert len(twice.record["adapted"]) == 2
    once = ia.undo_adaptation(twice)
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, once.model.state_dict()[name]), name


def test_an_adapted_atlas_is_saved_and_loaded(after: ia.Atlas, tmp_path: Path) -> None:
    ia.save(after, tmp_path / "atlas")
    back = ia.load(tmp_path / "atlas")
    assert back.schema == after.schema and back.record == after.record
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, back.model.state_dict()[name]), name


def test_without_a_new_value_there_is_nothing_to_adapt_to(
    before: ia.Atlas, reference: AnnData, query: AnnData
) -> None:
    with pytest.raises(ia.InvatlasError, match=r"nothing to adapt to.*donor, batch"):
        ia.adapt(before, reference)
    bare = AnnData(query.X, var=query.var[[]])
    with pytest.raises(ia.InvatlasError, match=r"none of the atlas's technical columns \(donor"):
        ia.adapt(before, bare)


def test_too_many_missing_genes_are_refused(before: ia.Atlas, query: AnnData) -> None:
    with pytest.raises(ia.InvatlasError, match="at least 95% is needed"):
        ia.adapt(before, query[:, :60].copy())


@pytest.mark.parametrize(
    "changes",
    [
        {"technical_in_decoder": False},
        {"spurious_latents": 0},
        {"technical": ["donor"]},
        {"prior": "low_rank"},
        {"prior": "exponential_family"},
    ],
)
def test_every_kind_of_atlas_adapts(
    reference: AnnData, query: AnnData, fit: Callable[..., ia.Atlas], changes: dict
) -> None:
    atlas = fit(reference, **changes)
    adapted = ia.adapt(atlas, query)
    n = len(atlas.schema.technical[0].categories)
    effects = adapted.model.prior_spurious.effects.detach()
    vectors = [part.detach()[n] for part in adapted.model.decode.technical[:1]]
    learnt = [effects[n] - effects[:n].mean(0), *vectors]
    assert any(part.abs().max() > 1e-3 for part in learnt if part.numel())
    state = torch.get_rng_state()
    back = ia.undo_adaptation(adapted)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in atlas.model.state_dict().items():
        assert torch.equal(value, back.model.state_dict()[name]), name


def test_what_nothing_can_learn_is_refused(
    reference: AnnData, query: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    atlas = fit(reference, spurious_latents=0, technical_in_decoder=False)
    with pytest.raises(ia.InvatlasError, match="nothing to adapt: the atlas has no spurious"):
        ia.adapt(atlas, query)


def test_a_missing_technical_column_takes_the_values_the_atlas_has(
    before: ia.Atlas, query: AnnData
) -> None:
    some = query.copy()
    some.obs = some.obs[["donor"]].copy()
    (step,) = ia.adapt(before, some).record["adapted"]
    batches = len(before.schema.technical[1].categories)
    assert step["combinations"] == batches * some.obs["donor"].nunique()


def test_only_cells_with_a_new_value_teach(
    before: ia.Atlas, reference: AnnData, query: AnnData
) -> None:
    both = concat([reference, query], merge="same")
    adapted = ia.adapt(before, both)
    assert adapted.record["adapted"][0]["cells"] == query.n_obs
