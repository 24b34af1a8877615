"""Donors: distances without the noise of few cells, planted outliers and strata found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import invatlas as ia
from invatlas.tasks.donors import Donors, compare_samples
from invatlas.tasks.samples import Samples, name_donor


def draw_samples(
    shifts: np.ndarray, cells: int = 60, spread: float = 0.1, seed: int = 0, conditions: int = 1
) -> Samples:
    """Two cell types, one normal cloud a sample, moved by its shift (sample, latent)."""
    rng = np.random.default_rng(seed)
    n, latents = shifts.shape
    sample, kind = (a.ravel() for a in np.meshgrid(range(n), [0, 1], indexing="ij"))
    sample, kind = sample.repeat(cells), kind.repeat(cells)
    own = shifts + spread * rng.normal(size=shifts.shape)
    z = own[sample] + 5 * kind[:, None] + rng.normal(size=(len(sample), latents))
    table = pd.DataFrame(
        {
            "sample": [f"s{i}" for i in range(n)],
            "donor": [f"s{i}" for i in range(n)],
            "condition": [f"c{i % conditions}" for i in range(n)],
        }
    )
    return Samples(z, np.arange(len(z)), sample, kind, table, ["A", "B"])


def compare(samples: Samples, fewest: int = 10, drawings: int = 50) -> Donors:
    return compare_samples(samples, fewest, drawings, np.random.default_rng(1))


def test_distances_are_those_of_the_true_means() -> None:
    shifts = np.zeros((3, 8))
    shifts[1, 0], shifts[2] = 4.0, 1.0
    found = compare(draw_samples(shifts, cells=400, spread=0.0)).distances
    truth = np.sqrt(((shifts[:, None] - shifts) ** 2).mean(2))
    for kind in ("A", "B", "all"):
        np.testing.assert_allclose(found[kind], truth, atol=0.1)


def test_few_cells_do_not_lie_apart_by_chance() -> None:
    naive, squares = 2 / 12, []
    for seed in range(20):
        samples = draw_samples(np.zeros((6, 20)), 12, 0.0, seed)
        squares.append(np.square(compare(samples, drawings=1).distances["A"]))
    assert np.mean(squares) < 0.15 * naive


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_donor_stands_out_and_no_other(seed: int) -> None:
    shifts = np.zeros((8, 6))
    shifts[5, 2] = 3.0
    found = compare(draw_samples(shifts, seed=seed)).table.set_index(["cell_type", "sample"])
    together = found.loc["all"]
    assert together.index[together["outlying"]].tolist() == ["s5"]
    assert together.loc["s5", "distance"] == pytest.approx(3 / np.sqrt(6), rel=0.2)
    assert (found["outlyingness_05"] <= found["outlyingness_95"]).all()


def test_a_shift_shared_by_a_condition_is_not_outlying() -> None:
    shifts = np.zeros((10, 6))
    shifts[1::2] = 3.0
    found = compare(draw_samples(shifts, conditions=2))
    assert not found.table["outlying"].any()
    axes = found.strata.groupby("condition")["axis_1"].agg(["min", "max"])
    assert axes["max"].min() < axes["max"].max() and axes["max"].min() < axes["min"].max()


def test_planted_strata_are_found_within_a_condition_and_none_where_none_is() -> None:
    shifts = np.zeros((16, 6))
    shifts[[0, 4, 8, 12], 1] = 2.0  # half of the samples of c0
    found = compare(draw_samples(shifts, conditions=2)).strata.set_index("sample")
    ill = found[found["condition"] == "c0"]
    apart = ill.loc[["s0", "s4", "s8", "s12"], "stratum"]
    assert apart.nunique() == 1 and ill["stratum"].nunique() == 2
    assert (ill["stratum"] == apart.iloc[0]).sum() == 4
    assert ill["stability"].min() > 0.95 and ill["silhouette"].iloc[0] > 0.6
    for seed in range(5):
        alike = compare(draw_samples(np.zeros((8, 6)), spread=0.0, seed=seed)).strata
        assert (alike["stratum"] == 1).all()


def test_missing_cells_are_missing_distances_not_zeros() -> None:
    samples = draw_samples(np.zeros((5, 4)))
    kept = ~((samples.sample == 0) & (samples.cell_type == 0))
    fewer = Samples(
        samples.z[kept], samples.rows[kept], samples.sample[kept], samples.cell_type[kept],
        samples.table, samples.cell_types,
    )  # fmt: skip
    found = compare(fewer)
    assert found.distances["A"].loc["s0"].isna().all()
    np.testing.assert_allclose(found.distances["all"].loc["s0"], found.distances["B"].loc["s0"])
    rows = found.table.set_index(["cell_type", "sample"])
    assert rows.loc[("A", "s0"), "cells"] == 0 and np.isnan(rows.loc[("A", "s0"), "distance"])


def test_an_atlas_is_asked(atlas: ia.Atlas, study: AnnData) -> None:
    with pytest.warns(UserWarning, match="6 of 6 samples are of donors the atlas was fitted to"):
        found = ia.donors(atlas, study, drawings=5)
    assert set(found.distances) == {"type_1", "type_2", "type_3", "all"}
    assert list(found.strata["donor"]) == list(study.obs["donor"].cat.categories)
    assert set(found.strata["condition"]) == {"healthy", "disease_1"}
    again = ia.donors(atlas, study[::-1].copy(), drawings=5)
    pd.testing.assert_frame_equal(found.distances["all"], again.distances["all"], atol=1e-4)
    study.obs["arm"] = np.where(np.arange(study.n_obs) % 2, "left", "right")
    both = ia.donors(atlas, study, condition="arm", drawings=1).strata
    assert both["sample"].iloc[0] == "donor_01 left" and len(both) == 12


def test_questions_without_an_answer_are_refused(atlas: ia.Atlas, study: AnnData) -> None:
    with pytest.raises(ia.InvatlasError, match="no column 'person'"):
        ia.donors(atlas, study, donor="person")
    with pytest.raises(ia.InvatlasError, match="No cell type has 500 cells in each of two"):
        ia.donors(atlas, study, fewest_cells=500)
    with pytest.raises(ia.InvatlasError, match="fewest_cells is 1; it takes 2 or more"):
        ia.donors(atlas, study, fewest_cells=1)
    with pytest.raises(ia.InvatlasError, match="the largest has 74"):
        ia.donors(atlas, study, fewest_cells=500)
    study.obs["donor"] = None
    with pytest.raises(ia.InvatlasError, match="No cell has a value of each of donor"):
        ia.donors(atlas, study)


def test_a_scale_has_no_donors(study: AnnData, fit: Callable[..., ia.Atlas]) -> None:
    study.obs["hours"] = np.arange(study.n_obs) % 50
    atlas = fit(study, technical=["hours:continuous", "batch"], epochs=1)
    assert name_donor(atlas) == "batch"
