"""Alignment to a query: what moves and what does not, and whether calls get better for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from cards import edit_card
from invatlas.data.minibatch import gather_counts
from invatlas.errors import DataError, GeneError, StorageError
from invatlas.tasks.embed import match_counts
from invatlas.tasks.summary import describe_calibration


@pytest.fixture(scope="module")
def world() -> AnnData:
    return ia.simulate(
        cells=1800,
        genes=150,
        cell_types=4,
        diseases=2,
        donors=8,
        batches=2,
        library_size=300,
        truth=False,
        seed=3,
    )


@pytest.fixture(scope="module")
def reference(world: AnnData) -> AnnData:
    return world[~world.obs["donor"].isin(world.obs["donor"].cat.categories[:2])].copy()


@pytest.fixture(scope="module")
def query(world: AnnData, reference: AnnData) -> AnnData:
    """New donors in a laboratory that finds genes far more or less often than the others."""
    new = world[~world.obs_names.isin(reference.obs_names)].copy()
    rng = np.random.default_rng(0)
    found = new.X.multiply(rng.lognormal(0, 2.5, new.n_vars)).tocsr()
    found.data = rng.poisson(found.data).astype(np.float32)
    new.X = found
    return new


@pytest.fixture(scope="module")
def atlas(reference: AnnData) -> ia.Atlas:
    settings = ia.Settings(genes=0, hidden=64, epochs=60, spared_donors=0.0)
    return ia.fit(reference, ["cell_type", "disease"], ["donor", "batch"], settings=settings)


@pytest.fixture(scope="module")
def aligned(atlas: ia.Atlas, query: AnnData) -> ia.Atlas:
    return ia.align(atlas, query)


def accuracy(atlas: ia.Atlas, cells: AnnData) -> float:
    called = ia.annotate(atlas, cells)["predicted_cell_type"].to_numpy().astype(str)
    return float((called == cells.obs["cell_type"].to_numpy().astype(str)).mean())


def test_cells_of_a_strange_laboratory_are_called_better(
    atlas: ia.Atlas, aligned: ia.Atlas, query: AnnData
) -> None:
    wrong = [1 - accuracy(one, query) for one in (atlas, aligned)]
    assert wrong[0] > 0.03
    assert wrong[1] < wrong[0] / 2


def test_a_query_of_other_composition_is_not_moved_for_it(
    atlas: ia.Atlas, reference: AnnData
) -> None:
    kinds = reference.obs["cell_type"].cat.categories
    some = reference[reference.obs["cell_type"].isin(kinds[:2])].copy()
    aligned = ia.align(atlas, some)
    assert aligned.record["aligned"]["shift"] < 0.05
    assert accuracy(aligned, some) > accuracy(atlas, some) - 0.01


def test_means_of_one_encoder_move_and_nothing_else(
    atlas: ia.Atlas, aligned: ia.Atlas, query: AnnData
) -> None:
    before, after, half = atlas.model.state_dict(), aligned.model.state_dict(), 64
    for name, value in after.items():
        if name.endswith("running_mean") and name.startswith("encode."):
            assert not torch.equal(value[:half], before[name][:half])
            assert torch.equal(value[half:], before[name][half:])
        else:
            assert torch.equal(value, before[name]), name
    z_s = [ia.embed(one, query, "spurious") for one in (atlas, aligned)]
    assert np.array_equal(*z_s)


def test_labels_of_the_query_change_nothing(atlas: ia.Atlas, query: AnnData) -> None:
    bare = AnnData(query.X, var=query.var[[]])
    found = ia.align(atlas, bare)
    assert np.array_equal(ia.embed(found, bare), ia.embed(ia.align(atlas, query), query))


def test_the_shift_is_that_of_the_formula_where_calls_are_sure(
    atlas: ia.Atlas, aligned: ia.Atlas, query: AnnData
) -> None:
    """By hand for the first layer, whose input no alignment changes."""
    encode, prior = aligned.model.encode.alone("invariant"), aligned.model.prior_invariant
    source, _ = match_counts(aligned, query, None, 0.5)
    with torch.no_grad():
        posteriors, hidden = encode.look(*gather_counts(source, slice(0, query.n_obs)))
        given, q = prior(), posteriors["invariant"]
        p = torch.softmax(given.log_evidence(q) + given.log_weight, 1)
    n = p.sum(0)
    means = (p.T @ hidden[0]) / n[:, None]
    moved = means - aligned.model.measured.hidden[:, 0]
    weight = (n * (n >= 1)).sqrt()
    expected = (weight[:, None] * moved).sum(0) / weight.sum()
    name = "encode.layers.0.normalise.running_mean"
    found = aligned.model.state_dict()[name] - atlas.model.state_dict()[name]
    torch.testing.assert_close(found[:64], expected, rtol=0.1, atol=0.02)


def test_hidden_means_are_those_of_the_cells_the_model_learnt_from(reference: AnnData) -> None:
    settings = ia.Settings(genes=0, hidden=8, epochs=1, held_out=0.0, spared_donors=0.0)
    atlas = ia.fit(reference, ["cell_type"], ["batch"], settings=settings)
    source, _ = match_counts(atlas, reference, None, 0.5)
    with torch.no_grad():
        encode = atlas.model.encode.alone("invariant")
        _, hidden = encode.look(*gather_counts(source, slice(0, reference.n_obs)))
    codes = torch.from_numpy(atlas.schema.encode(reference.obs)[0])[:, 0]
    place = atlas.model.prior_invariant.combinations[:, 0].tolist()
    for row, code in enumerate(place):
        mean = hidden[:, codes == code].mean(1)
        torch.testing.assert_close(atlas.model.measured.hidden[row], mean, rtol=1e-3, atol=1e-4)


def test_an_aligned_atlas_is_saved_and_loaded(
    atlas: ia.Atlas, aligned: ia.Atlas, query: AnnData, tmp_path: Path
) -> None:
    ia.save(aligned, tmp_path / "atlas")
    back = ia.load(tmp_path / "atlas")
    assert back.record["aligned"] == aligned.record["aligned"]
    assert "aligned" in repr(back)
    assert "aligned to 364 cells since" in describe_calibration(back)
    assert "aligned" not in describe_calibration(atlas)
    assert np.array_equal(ia.embed(back, query), ia.embed(aligned, query))


@pytest.mark.parametrize(
    "told",
    [
        {"cells": 40, "shift": "x", "missing_genes": 0},
        {"cells": 40, "shift": -1, "missing_genes": 0},
        {"cells": "x", "shift": 0.1, "missing_genes": 0},
        {"cells": 40, "shift": 0.1},
        None,
        [],
    ],
)
def test_a_damaged_account_of_an_alignment_is_refused(
    aligned: ia.Atlas, tmp_path: Path, told: object
) -> None:
    ia.save(aligned, tmp_path / "atlas")
    file = tmp_path / "atlas" / "atlas.json"
    edit_card(file, lambda card: card["record"].update(aligned=told))
    with pytest.raises(StorageError, match="damaged"):
        ia.load(tmp_path / "atlas")


def test_backed_cells_are_aligned_like_others(
    atlas: ia.Atlas, query: AnnData, tmp_path: Path
) -> None:
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    for how in ({"align": True}, {"align_by": "batch"}):
        z = [ia.map_cells(atlas, one, **how).cells.obsm["X_invariant"] for one in (query, backed)]
        np.testing.assert_allclose(*z, atol=1e-5)


def test_an_alignment_of_a_large_query_names_all_its_cells(
    atlas: ia.Atlas, query: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invatlas.tasks.align.MOST_CELLS", 100)
    assert ia.align(atlas, query).record["aligned"]["cells"] == query.n_obs


def test_an_atlas_of_cells_that_all_lack_a_label_is_not_aligned(reference: AnnData) -> None:
    """No cell is of one combination, so nothing is known of any, and nothing moves."""
    some = reference.copy()
    for k, name in enumerate(("cell_type", "disease")):
        lost = np.arange(some.n_obs) % 2 == k
        some.obs[name] = some.obs[name].astype(object).mask(lost)
    settings = ia.Settings(genes=0, hidden=8, epochs=1, spared_donors=0.0)
    atlas = ia.fit(some, ["cell_type", "disease"], ["donor"], settings=settings)
    assert ia.align(atlas, reference).record["aligned"]["shift"] == 0


def test_a_strange_query_is_told_from_a_usual_one(
    atlas: ia.Atlas, aligned: ia.Atlas, query: AnnData, world: AnnData
) -> None:
    calling = ia.Calling()
    assert atlas.calibration is not None and atlas.calibration.usual_shift == 0
    assert not any("call it better" in n for n in ia.map_cells(atlas, query, calling=calling).notes)
    known = replace(atlas.calibration, usual_shift=0.15)
    atlas, aligned = (replace(one, calibration=known) for one in (atlas, aligned))
    told = ia.map_cells(atlas, query, calling=calling).notes
    (advice,) = (note for note in told if "--align (Python: align=True) may call it better" in note)
    assert "of the reference's own types" in advice
    (moved,) = (n for n in ia.map_cells(atlas, query, align=True).notes if "Aligned" in n)
    for note in (advice, moved):
        assert (
            "If more cells are flagged aligned than unaligned, they are likelier new than shifted"
            in note
        )
    usual = world[query.obs_names].copy()
    for cells, asked in ((usual, {}), (query, {"align": True}), (query[:20].copy(), {})):
        notes = ia.map_cells(atlas, cells, calling=calling, **asked).notes
        assert not any("may call it better" in note for note in notes)
    assert not any("may call" in n for n in ia.map_cells(aligned, query, calling=calling).notes)


def test_what_cannot_be_aligned_is_refused(
    atlas: ia.Atlas, aligned: ia.Atlas, query: AnnData
) -> None:
    with pytest.raises(DataError, match="has 29 cells; an alignment needs at least 30"):
        ia.align(atlas, query[:29].copy())
    with pytest.raises(DataError, match=r"aligned to \d+ cells already"):
        ia.align(aligned, query)
    with pytest.raises(GeneError, match="Only 10 of 150 genes"):
        ia.align(atlas, query[:, :10].copy())
