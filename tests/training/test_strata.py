"""Strata: scales are cut so far that laboratories can still be compared, and no further."""

from __future__ import annotations

import numpy as np

import invatlas as ia
from invatlas.data.covariates import Covariate
from invatlas.training.strata import count_bins, merge

KNOTS = tuple(float(k) for k in range(8))
TYPE = Covariate("type", "categorical", ("a", "b"))
AGE = Covariate("age", "continuous", tuple(map(str, KNOTS)), knots=KNOTS)


def deal(donors: int, cells: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Types of cells in turn, and the donor of each."""
    order = np.arange(cells)
    return order % 2, order // 2 % donors


def test_a_scale_that_differs_from_cell_to_cell_keeps_its_knots() -> None:
    kind, donor = deal(6)
    age = np.random.default_rng(0).integers(0, 8, len(kind))
    assert count_bins([TYPE, AGE], np.c_[kind, age], donor[:, None]) == 8


def test_a_scale_that_is_constant_in_donors_has_bins_of_several_donors() -> None:
    kind, donor = deal(8)
    codes = np.c_[kind, donor]  # one donor a knot
    bins = count_bins([TYPE, AGE], codes, donor[:, None])
    assert bins == 4
    merged = merge([TYPE, AGE], codes, bins)
    assert (merged[:, 0] == kind).all() and (merged[:, 1] == donor // 2).all()


def test_a_scale_that_is_the_laboratory_itself_is_no_stratum_at_all() -> None:
    kind, batch = deal(2)
    assert count_bins([TYPE, AGE], np.c_[kind, 7 * batch], batch[:, None]) == 1


def test_missing_numbers_stay_missing_and_other_codes_are_as_they_were() -> None:
    codes = np.array([[0, -1], [-1, 3], [1, 7]])
    np.testing.assert_array_equal(merge([TYPE, AGE], codes, 2), [[0, -1], [-1, 0], [1, 1]])
    kinds = codes[:, :1]
    np.testing.assert_array_equal(merge([TYPE], kinds, 1), kinds)


def test_the_penalty_compares_donors_whose_ages_differ() -> None:
    study = ia.simulate(
        cells=600, genes=80, donors=9, batches=3, diseases=2, cell_types=2, truth=False, seed=0
    )
    donors = study.obs["donor"].cat.categories
    ages = dict(zip(donors, np.linspace(20, 80, len(donors)), strict=True))
    study.obs["age"] = study.obs["donor"].map(ages).astype(float)
    settings = ia.Settings(genes=0, epochs=4, spared_donors=0.0)
    atlas = ia.fit(study, ["cell_type", "age:continuous"], ["donor"], settings=settings)
    prior = atlas.model.prior_invariant
    assert len(prior.strata.unique()) < len(prior.combinations)
    assert (atlas.history["train_invariant_dependence"].iloc[1:] != 0).all()
