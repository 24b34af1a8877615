"""Ranks and agreement where both are known, and the consensus of several fits."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.errors import DataError, SettingsError
from invatlas.evaluate.identifiability import agreement, match, predict, subtract_means

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
    assert (found["linear_pooled"].abs() < 0.1).all()
    few = agreement([z[:20] for z in fits], np.arange(20))
    assert few["linear_within"].isna().all() and few["linear"].notna().all()
    assert few["linear_pooled"].isna().all(), "no cell is left to compare without 20 means"


def test_small_strata_are_pooled_without_their_means() -> None:
    rng = np.random.default_rng(0)
    stratum = rng.integers(0, 60, 300)
    centres = 100 * rng.normal(size=(60, 4))
    own = rng.normal(size=(300, 4))
    turned = (own + centres[stratum]) @ rng.normal(size=(4, 4))
    half = own + rng.normal(size=own.shape) - 3 * centres[stratum]
    found = agreement([own + centres[stratum], turned, half], stratum)
    assert found["linear_within"].isna().all(), "no stratum has 20 cells"
    assert found["linear_pooled"][0] == pytest.approx(1)
    assert found["linear_pooled"][1] == pytest.approx(1 / np.sqrt(2), abs=0.05)
    assert found["matched_pooled"][1] == pytest.approx(1 / np.sqrt(2), abs=0.05)
    assert (found["cells"].iloc[0], found["strata"].iloc[0], found["needed"].iloc[0]) == (
        300,
        60,
        20,
    )


@pytest.mark.parametrize("size", [2, 3, 30])
def test_noise_agrees_in_no_size_of_strata(size: int) -> None:
    rng = np.random.default_rng(0)
    stratum = np.repeat(np.arange(600 // size), size)
    found = [
        agreement([rng.normal(size=(600, 20)) for _ in range(2)], stratum)["linear_pooled"][0]
        for _ in range(5)
    ]
    assert abs(np.mean(found)) < 0.02, "cells less their mean would tell of each other"


def test_rows_without_means_scatter_as_centred_cells_do() -> None:
    rng = np.random.default_rng(0)
    z, stratum = rng.normal(size=(50, 3)), np.repeat([0.0, 1.0, 2.0, 3.0, np.nan], [30, 9, 2, 1, 8])
    rows = subtract_means(z, stratum)
    assert len(rows) == 42 - 4
    centred = z - pd.DataFrame(z).groupby(stratum).transform("mean").to_numpy()
    np.testing.assert_allclose(rows.T @ rows, centred[:42].T @ centred[:42])


def test_cells_without_a_value_are_of_no_stratum() -> None:
    rng = np.random.default_rng(0)
    stratum = np.repeat([0.0, 1.0, np.nan], [100, 100, 400])
    shared = np.where(np.isnan(stratum), rng.normal(size=600), 0)[:, None]
    fits = [100 * shared + rng.normal(size=(600, 1)) for _ in range(2)]
    found = agreement(fits, stratum).iloc[0]
    assert (found["cells"], found["strata"]) == (200, 2) and found["linear"] > 0.99
    assert abs(found["linear_pooled"]) < 0.2 and abs(found["linear_within"]) < 0.2


def test_what_cannot_be_compared_is_refused(study: AnnData) -> None:
    with pytest.raises(DataError, match="at least two fits"):
        agreement([np.zeros((3, 2))], np.zeros(3))
    with pytest.raises(DataError, match="same cells"):
        agreement([np.zeros((3, 2)), np.zeros((4, 2))], np.zeros(3))
    with pytest.raises(SettingsError, match="at least 2"):
        ia.fit_seeds(study, ["cell_type"], seeds=1)
    with pytest.raises(DataError, match="No cells are held out"):
        ia.fit_seeds(study, ["cell_type"], seeds=2, settings=ia.Settings(held_out=0.0))


def test_several_fits_warn_of_their_study_once(study: AnnData) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ia.fit_seeds(study, ["cell_type"], seeds=2, settings=SETTINGS)
    assert sum("No technical column" in str(warning.message) for warning in caught) == 1


def test_the_consensus_is_one_of_the_fits_and_remembers(study: AnnData, tmp_path: Path) -> None:
    atlas, table = ia.fit_seeds(
        study, ["cell_type", "disease"], ["donor"], seeds=3, settings=SETTINGS
    )
    assert len(table) == 3 and table["linear"].between(-1, 1).all()
    assert table["linear_pooled"].between(-1, 1).all(), "60 cells of 6 strata, 2 latents"
    assert table["cells"].eq(60).all() and table["strata"].eq(6).all()
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
