"""Which laboratories have seen which biology, and what they say of it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from invatlas.data.covariates import Covariate, Schema
from invatlas.data.crossing import Crossing, K, find_crossing

TYPE = Covariate("type", "categorical", ("a", "b"))
DISEASE = Covariate("disease", "categorical", ("flu", "healthy"))
AGE = Covariate("age", "continuous", ("0", "1"), knots=(0.0, 1.0))
BATCH = Covariate("batch", "categorical", ("b0", "b1"))
DONOR = Covariate("donor", "categorical", tuple(f"d{i}" for i in range(8)))
BIOLOGY = (TYPE, DISEASE)
COMBINATIONS = np.array(list(product(range(2), range(2))))


def study(flu: tuple[int, int] = (3, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Eight donors of 20 cells, four in each batch, of which some have flu; codes of all cells."""
    donor = np.repeat(np.arange(8), 20)
    batch = donor // 4
    disease = (donor % 4 >= np.array(flu)[batch]).astype(int)
    return np.c_[np.arange(160) % 2, disease], np.c_[batch, donor]


def cross(biological: np.ndarray, technical: np.ndarray) -> Crossing:
    return find_crossing(Schema(BIOLOGY, (BATCH, DONOR)), biological, technical, COMBINATIONS)


def test_donors_do_not_cross_a_disease_that_batches_do() -> None:
    crossing = cross(*study())
    assert crossing.crossed.tolist() == [[True, True], [True, False]]
    assert crossing.columns == [0]


def test_what_a_batch_says_is_its_own_frequency_over_that_of_all() -> None:
    biological, technical = study()
    crossing = cross(biological, technical)
    told = crossing.expect(technical[[0, 159]])
    for row, batch in ((0, 0), (1, 1)):
        for number, (kind, disease) in enumerate(COMBINATIONS):
            of = (biological == [kind, disease]).all(1)
            here = technical[:, 0] == batch
            p = (sum(of & here) + K * of.mean()) / (sum(here) + K)
            assert told[row, number] == pytest.approx(np.log(p / of.mean()), abs=1e-6)


def test_a_balanced_study_says_nothing() -> None:
    biological, technical = study(flu=(2, 2))
    np.testing.assert_allclose(cross(biological, technical).expect(technical), 0, atol=1e-6)


def test_nobody_knows_what_an_unknown_batch_says() -> None:
    crossing = cross(*study())
    assert not crossing.expect(np.array([[-1, 3], [7, 3]])).any()


def test_cells_without_a_disease_are_compared_between_batches_alone() -> None:
    crossing = cross(*study())
    doubt = crossing.doubt(np.array([[0, 1], [0, -1], [-1, 1], [0, -2]]))
    assert doubt.tolist() == [[False, False], [False, True], [False, False], [False, True]]


def test_where_nothing_crosses_all_biology_cells_are_compared_as_they_are_called() -> None:
    biological, technical = study(flu=(4, 0))
    crossing = cross(biological, technical)
    assert crossing.columns == []
    assert not crossing.expect(technical).any()
    assert not crossing.doubt(np.full((3, 2), -1)).any()


def test_a_disease_that_one_batch_alone_has_is_still_learnt_from_it() -> None:
    """Both types in batches 0 and 1; batch 2 is all flu, which is nowhere else."""
    technical = np.repeat(np.arange(3), 60)[:, None]
    disease = np.where(technical[:, 0] < 2, np.arange(180) % 2, 2)
    biological = np.c_[np.arange(180) // 2 % 2, disease]
    three = Covariate("disease", "categorical", ("copd", "healthy", "flu"))
    batch = Covariate("batch", "categorical", ("b0", "b1", "b2"))
    combinations = np.array(list(product(range(2), range(3))))
    schema = Schema((TYPE, three), (batch,))
    told = find_crossing(schema, biological, technical, combinations).expect(technical)
    assert not told[-1].any()
    biological[::12, 1] = 2  # now the others have it too
    told = find_crossing(schema, biological, technical, combinations).expect(technical)
    assert told[-1, [2, 5]].min() > 0.5 > -1 > told[-1, [0, 1, 3, 4]].max()


def test_two_technical_covariates_are_one_laboratory_as_long_as_they_cross_biology() -> None:
    site, chemistry = (Covariate(name, "categorical", ("0", "1")) for name in ("site", "chem"))
    cells = np.arange(160)
    technical = np.c_[cells // 80, cells // 40 % 2]
    biological = np.c_[cells % 2, cells // 2 % 2]
    schema = Schema(BIOLOGY, (site, chemistry))
    assert find_crossing(schema, biological, technical, COMBINATIONS).columns == [0, 1]
    biological[:, 1] = technical.sum(1) % 2  # given both nothing is left to tell
    assert find_crossing(schema, biological, technical, COMBINATIONS).columns == [0]


def test_scales_say_nothing_and_have_what_their_categories_have() -> None:
    biological, technical = study()
    biological = np.c_[biological, technical[:, 1] % 2]
    combinations = np.array(list(product(range(2), range(2), range(2))))
    schema = Schema((*BIOLOGY, AGE), (BATCH, DONOR))
    crossing = find_crossing(schema, biological, technical, combinations)
    plain = cross(biological[:, :2], technical).expect(technical)
    np.testing.assert_array_equal(crossing.expect(technical), plain.repeat(2, axis=1))
    assert not crossing.doubt(np.array([[0, 0, -1]])).any()


@pytest.mark.parametrize("technical", [np.zeros((160, 0), dtype=int), np.full((160, 2), -1)])
def test_studies_without_laboratories_or_labels(technical: np.ndarray) -> None:
    biological, _ = study()
    schema = Schema(BIOLOGY, (BATCH, DONOR)[: technical.shape[1]])
    for labels in (biological, np.full_like(biological, -1)):
        crossing = find_crossing(schema, labels, technical, COMBINATIONS)
        assert crossing.expect(technical).shape == (160, 4)
        assert not crossing.expect(technical).any()
        assert crossing.doubt(labels).shape == technical.shape
