"""Ranks and agreement where both are known, and the consensus of several fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.errors import DataError, SettingsError
from invatlas.evaluate.identifiability import agreement, match, predict

SETTINGS = ia.Settings(
    genes=0, hidden=16, epochs=8, invariant_latents=2, spurious_latents=1, spared_donors=0.0
)


@pytest.fixture(scope="module")
def study() -> AnnData:
    return ia.simulate(
        cells=600, genes=60, cell_types=3, diseases=2, donors=6, batches=2, truth=False, seed=0
    )


@pytest.fixture(scope="module")
def atlas(study: AnnData) -> ia.Atlas:
    return ia.fit(study, ["cell_type", "disease"], ["donor"], settings=SETTINGS)


def test_rank_is_what_the_priors_vary_in(atlas: ia.Atlas) -> None:
    found = ia.identifiability(atlas).loc["invariant"]
    assert (found["latents"], found["needed"], found["needed_rank"]) == (2, 5, 4)
    assert found["combinations"] == 6 and found["rank"] == 4 and found["holds"]
    assert 0 < found["weakest"] <= 1


def test_priors_that_do_not_vary_identify_nothing(study: AnnData) -> None:
    atlas = ia.fit(study, ["cell_type"], ["donor"], settings=SETTINGS)
    found = ia.identifiability(atlas)
    assert not found.loc["invariant", "holds"], "three types differ in two directions, not four"
    assert found.loc["invariant", "rank"] == 2 and found.loc["invariant", "weakest"] == 0
    with torch.no_grad():
        atlas.model.prior_spurious.effects.zero_()
    assert ia.identifiability(atlas).loc["spurious", "rank"] == 0


def test_agreement_sees_through_what_identifiability_leaves_open() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 4))
    turned = z @ rng.normal(size=(4, 4)) + 1
    shuffled = -3 * z[:, [2, 0, 3, 1]]
    noise = rng.normal(size=(4000, 4))
    assert match(z, shuffled) == pytest.approx(1) and predict(z, shuffled) == pytest.approx(1)
    assert match(z, turned) < 0.95 and predict(z, turned) == pytest.approx(1)
    assert match(z, noise) < 0.1 and abs(predict(z, noise)) < 0.1
    half = z + rng.normal(size=z.shape)
    assert predict(z, half) == pytest.approx(1 / np.sqrt(2), abs=0.02)


def test_agreement_within_strata_is_about_the_rest() -> None:
    rng = np.random.default_rng(0)
    stratum = rng.integers(0, 3, 3000)
    centres = 100 * rng.normal(size=(3, 2))
    fits = [centres[stratum] + rng.normal(size=(3000, 2)) for _ in range(3)]
    found = agreement(fits, stratum)
    assert list(zip(found["first"], found["second"], strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert (found["linear"] > 0.95).all() and (found["linear_within"].abs() < 0.1).all()
    few = agreement([z[:20] for z in fits], np.arange(20))
    assert few["linear_within"].isna().all() and few["linear"].notna().all()


def test_what_cannot_be_compared_is_refused(study: AnnData) -> None:
    with pytest.raises(DataError, match="at least two fits"):
        agreement([np.zeros((3, 2))], np.zeros(3))
    with pytest.raises(DataError, match="same cells"):
        agreement([np.zeros((3, 2)), np.zeros((4, 2))], np.zeros(3))
    with pytest.raises(SettingsError, match="at least 2"):
        ia.fit_seeds(study, ["cell_type"], seeds=1)
    with pytest.raises(DataError, match="No cells are held out"):
        ia.fit_seeds(study, ["cell_type"], seeds=2, settings=ia.Settings(held_out=0.0))


def test_the_consensus_is_one_of_the_fits_and_remembers(study: AnnData, tmp_path: Path) -> None:
    atlas, table = ia.fit_seeds(
        study, ["cell_type", "disease"], ["donor"], seeds=3, settings=SETTINGS
    )
    assert len(table) == 3 and table["linear"].between(-1, 1).all()
    assert atlas.settings.seed in {0, 1, 2}
    means = [
        table.loc[(table["first"] == s) | (table["second"] == s), "linear"].mean() for s in range(3)
    ]
    assert atlas.settings.seed == int(np.argmax(means))
    again = ia.fit(
        study,
        ["cell_type", "disease"],
        ["donor"],
        settings=atlas.settings,
    )
    assert np.array_equal(ia.embed(again, study), ia.embed(atlas, study))
    ia.save(atlas, tmp_path / "atlas")
    assert ia.load(tmp_path / "atlas").record["seeds"] == atlas.record["seeds"]
