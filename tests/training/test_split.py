"""Which cells are held out."""

from __future__ import annotations

import numpy as np
import pytest

from invatlas.training.split import Split, split_cells, split_donors


def split(
    biological: np.ndarray, technical: np.ndarray, share: float = 0.1, seed: int = 0
) -> Split:
    return split_cells(biological, technical, share, np.random.default_rng(seed))


def codes(generator: np.random.Generator, cells: int, *sizes: int) -> np.ndarray:
    columns = [generator.integers(0, size, cells) for size in sizes]
    return np.stack(columns, 1) if columns else np.zeros((cells, 0), dtype=np.int64)


@pytest.mark.parametrize("donors", [0, 5, 40])
def test_cells_are_either_trained_on_or_watched(
    donors: int, generator: np.random.Generator
) -> None:
    technical = codes(generator, 1000, *([donors] if donors else []))
    found = split(codes(generator, 1000, 3), technical)
    assert sorted([*found.train, *found.held_out]) == list(range(1000))
    assert 0.05 <= len(found.held_out) / 1000 <= 0.16


def test_whole_donors_are_held_out_where_there_are_enough(generator: np.random.Generator) -> None:
    technical = np.c_[generator.integers(0, 4, 1000), generator.integers(0, 40, 1000)]
    found = split(codes(generator, 1000, 3), technical)
    assert found.covariate == 1, "the covariate with the most values decides"
    donors = technical[:, 1]
    assert not set(donors[found.train]) & set(donors[found.held_out])
    assert len(set(donors[found.held_out])) >= 2


def test_cells_are_held_out_where_donors_are_few(generator: np.random.Generator) -> None:
    technical = codes(generator, 1000, 8)
    found = split(codes(generator, 1000, 3), technical)
    assert found.covariate is None
    assert set(technical[found.held_out, 0]) == set(range(8))


def test_a_donor_who_alone_has_a_cell_type_is_not_held_out() -> None:
    donor = np.repeat(np.arange(30), 20)
    kind = np.where(donor < 25, donor % 5, donor)  # five donors have a cell type of their own
    for seed in range(10):
        found = split(kind[:, None], donor[:, None], seed=seed)
        assert found.covariate == 0
        assert set(kind[found.train]) == set(kind)
        assert not set(donor[found.held_out]) & set(range(25, 30))


def test_cells_without_a_donor_stay_in_training(generator: np.random.Generator) -> None:
    donor = generator.integers(-1, 40, 2000)
    found = split(codes(generator, 2000, 3), donor[:, None])
    assert found.covariate == 0
    assert (donor[found.held_out] >= 0).all()


def test_the_donors_spared_have_every_disease_where_they_can() -> None:
    donor = np.repeat(np.arange(9), 100)
    disease = donor % 3
    for seed in range(10):
        found = split_donors(disease[:, None], donor[:, None], 0.25, np.random.default_rng(seed))
        assert found is not None
        assert len(found.held_out) == 300 and set(disease[found.held_out]) == {0, 1, 2}


@pytest.mark.parametrize(("cells", "share"), [(30, 0.1), (199, 0.05), (1000, 0.0)])
def test_nothing_is_held_out_where_it_would_be_too_few(
    cells: int, share: float, generator: np.random.Generator
) -> None:
    found = split(codes(generator, cells, 3), codes(generator, cells, 2), share)
    assert len(found.held_out) == 0 and len(found.train) == cells


def test_one_seed_gives_one_split(generator: np.random.Generator) -> None:
    biological, technical = codes(generator, 500, 3), codes(generator, 500, 4)
    one, two, other = (split(biological, technical, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.held_out, two.held_out)
    assert not np.array_equal(one.held_out, other.held_out)
