"""Which laboratories have seen which biology, and what they say of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import invatlas as ia
from invatlas.data.counts import CountSource
from invatlas.data.covariates import MISSING, Covariate, Schema
from invatlas.data.crossing import Crossing
from invatlas.data.minibatch import Cells
from invatlas.training import job
from invatlas.training.combinations import combine
from invatlas.training.crossing import K, find_crossing

TYPE = Covariate("type", "categorical", ("a", "b"))
DISEASE = Covariate("disease", "categorical", ("flu", "healthy"))
AGE = Covariate("age", "continuous", ("0", "1"), knots=(0.0, 1.0))
BATCH = Covariate("batch", "categorical", ("b0", "b1"))
DONOR = Covariate("donor", "categorical", tuple(f"d{i}" for i in range(8)))
BIOLOGY = (TYPE, DISEASE)
SCHEMA = Schema(BIOLOGY, (BATCH, DONOR))
COMBINATIONS = np.array(list(product(range(2), range(2))))


def study(flu: tuple[int, int] = (3, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Eight donors of 20 cells, four in each batch, of which some have flu; codes of all cells."""
    donor = np.repeat(np.arange(8), 20)
    batch = donor // 4
    disease = (donor % 4 >= np.array(flu)[batch]).astype(int)
    return np.c_[np.arange(160) % 2, disease], np.c_[batch, donor]


def cross(
    biological: np.ndarray,
    technical: np.ndarray,
    schema: Schema = SCHEMA,
) -> Crossing:
    return find_crossing(schema, biological, technical, *combine(schema.biological, biological))


def named(name: str, values: int) -> Covariate:
    return Covariate(name, "categorical", tuple(f"{name}{i}" for i in range(values)))


def columns(crossing: Crossing) -> list[list[int]]:
    return [level.columns for level in crossing.levels]


def test_donors_do_not_cross_a_disease_that_batches_do() -> None:
    crossing = cross(*study())
    assert columns(crossing) == [[0]]
    assert crossing.apart.tolist() == [[False, False], [False, True]]


def test_what_a_batch_says_is_its_own_frequency_over_that_of_all() -> None:
    biological, technical = study()
    told = cross(biological, technical).expect(technical[[0, 159]])
    p = combine(BIOLOGY, biological)[1]
    for row, batch in ((0, 0), (1, 1)):
        here = technical[:, 0] == batch
        n = np.array([(biological[here] == d).all(1).sum() for d in COMBINATIONS])
        expected = np.log((n + K * p) / (n.sum() + K) / p)
        np.testing.assert_allclose(told[row], expected, atol=1e-6)


def test_a_balanced_study_says_nothing() -> None:
    biological, technical = study(flu=(2, 2))
    np.testing.assert_allclose(cross(biological, technical).expect(technical), 0, atol=0.01)


def test_nobody_knows_what_an_unknown_batch_says() -> None:
    crossing = cross(*study())
    assert not crossing.expect(np.array([[-1, 3], [7, 3]])).any()


def test_cells_without_a_disease_are_compared_between_batches_alone() -> None:
    left_out = cross(*study()).leave_out(np.array([[0, 1], [0, -1], [-1, 1], [0, -2]]))
    assert left_out.tolist() == [[False, False], [False, True], [False, False], [False, True]]


def test_where_nothing_crosses_a_disease_cells_are_compared_as_they_are_called() -> None:
    biological, technical = study(flu=(4, 0))
    crossing = cross(biological, technical)
    assert not crossing.leave_out(np.full((3, 2), -1)).any()
    told = crossing.expect(technical)[:, [0, 1]]
    np.testing.assert_allclose(told[:, 0], told[:, 1], err_msg="types are told, diseases are not")


def test_a_column_that_nothing_crosses_leaves_the_others_as_they_were() -> None:
    biological, technical = study()
    schema = Schema((*BIOLOGY, named("tissue", 2)), (BATCH, DONOR))
    crossing = cross(np.c_[biological, technical[:, 0]], technical, schema)
    assert columns(crossing) == [[0]]
    assert crossing.apart.tolist() == [[False] * 3, [False, True, False]]
    assert np.abs(crossing.expect(technical)).max() > 0.5


def test_coarse_and_missing_labels_count_as_what_they_may_be() -> None:
    """Two batches of one composition, of which one tells most T cells as such, or not at all."""
    rng = np.random.default_rng(0)
    kind = Covariate("type", "categorical", ("B", "CD4", "CD8"), (("T", ("CD4", "CD8")),))
    batch = np.arange(8000)[:, None] % 2
    truth = rng.choice(3, len(batch), p=[0.4, 0.3, 0.3])
    vague = (batch[:, 0] == 1) & (truth > 0) & (rng.random(len(batch)) < 0.9)
    schema = Schema((kind,), (BATCH,))
    for code in (-2, MISSING):
        codes = np.where(vague, code, truth)[:, None]
        told = cross(codes, batch, schema).expect(np.array([[0], [1]]))
        assert np.abs(told).max() < (0.1 if code == -2 else 1.5)


def test_a_label_that_no_combination_holds_moves_no_other() -> None:
    """Above 4,096 combinations those that occur are modelled, with all their values known."""
    rng = np.random.default_rng(0)
    kind, disease = named("type", 100), named("disease", 10)
    age = Covariate("age", "continuous", tuple("01234"), knots=(0.0, 1.0, 2.0, 3.0, 4.0))
    schema = Schema((kind, disease, age), (BATCH,))
    codes = np.c_[rng.integers(1, 100, 4000), rng.integers(0, 10, 4000), rng.integers(0, 5, 4000)]
    batch = (rng.random(4000) < np.where(codes[:, 1] == 9, 0.9, 0.5)).astype(int)[:, None]
    plain = cross(codes, batch, schema).expect(batch)
    codes, batch = np.r_[codes, [[0, 0, MISSING]] * 5], np.r_[batch, [[1]] * 5]
    np.testing.assert_allclose(cross(codes, batch, schema).expect(batch[:-5]), plain, atol=0.01)


def test_a_disease_that_one_batch_alone_has_is_still_learnt_from_it() -> None:
    """Both types in batches 0 and 1; batch 2 is all flu, which is nowhere else but by mistake."""
    batch = np.repeat(np.arange(3), 60)[:, None]
    disease = np.where(batch[:, 0] < 2, np.arange(180) % 2, 2)
    biological = np.c_[np.arange(180) // 2 % 2, disease]
    biological[0, 1] = 2
    schema = Schema((TYPE, named("disease", 3)), (named("batch", 3),))
    assert not cross(biological, batch, schema).expect(batch)[-1].any()
    biological[::12, 1] = 2  # now the others have it too
    told = cross(biological, batch, schema).expect(batch)
    assert told[-1, [2, 5]].min() > 0.5 > -1 > told[-1, [0, 1, 3, 4]].max()


def test_two_technical_covariates_are_one_laboratory_as_long_as_they_cross_biology() -> None:
    cells = np.arange(160)
    technical = np.c_[cells // 80, cells // 40 % 2]
    biological = np.c_[cells % 2, cells // 2 % 2]
    schema = Schema(BIOLOGY, (named("site", 2), named("chemistry", 2)))
    assert columns(cross(biological, technical, schema)) == [[0], [0, 1]]
    biological[:, 1] = technical.sum(1) % 2  # given both nothing is left to tell
    assert columns(cross(biological, technical, schema)) == [[0]]


def test_small_plates_say_what_their_batch_does() -> None:
    """Plates of twelve cells in two batches, one of which has three times as much of a type."""
    rng = np.random.default_rng(0)
    plate = np.repeat(np.arange(100), 12)
    technical = np.c_[plate // 50, plate]
    kind = (rng.random(1200) < np.where(plate < 50, 0.25, 0.75)).astype(int)[:, None]
    schema = Schema((TYPE,), (BATCH, named("plate", 100)))
    crossing = cross(kind, technical, schema)
    assert columns(crossing) == [[0], [0, 1]]
    told = crossing.expect(technical)
    by_batch = crossing.expect(np.array([[0, -1], [1, -1]]))
    assert by_batch[0, 0] - by_batch[0, 1] == pytest.approx(np.log(3), abs=0.2)
    means = np.array([told[technical[:, 0] == b].mean(0) for b in (0, 1)])
    np.testing.assert_allclose(means, by_batch, atol=0.15)


def test_scales_say_nothing_and_have_what_their_categories_have() -> None:
    biological, technical = study()
    schema = Schema((*BIOLOGY, AGE), (BATCH, DONOR))
    crossing = cross(np.c_[biological, technical[:, 1] % 2], technical, schema)
    told = crossing.expect(technical).reshape(-1, 4, 2)
    np.testing.assert_allclose(told[:, :, 0], told[:, :, 1], atol=1e-6)
    assert np.abs(told).max() > 0.5
    assert not crossing.leave_out(np.array([[0, 0, -1]])).any()


@pytest.mark.parametrize("technical", [np.zeros((160, 0), dtype=int), np.full((160, 2), -1)])
def test_studies_without_laboratories_or_labels(technical: np.ndarray) -> None:
    biological, _ = study()
    schema = Schema(BIOLOGY, (BATCH, DONOR)[: technical.shape[1]])
    for labels in (biological, np.full_like(biological, -1)):
        crossing = cross(labels, technical, schema)
        assert crossing.expect(technical).shape == (160, 4)
        assert not crossing.expect(technical).any()
        assert crossing.leave_out(labels).shape == technical.shape
        assert not crossing.leave_out(labels).any()


def test_minibatches_hold_what_laboratories_say() -> None:
    source = CountSource(sp.eye(160, 3, dtype=np.uint8, format="csr"), np.ones(160, np.float32))
    biological, technical = study()
    biological[:3, 1] = MISSING
    crossing = cross(biological, technical)
    cells = Cells(source, biological, technical)
    rows = np.array([0, 5, 159])
    minibatch = Cells(source, biological, technical, crossing=crossing).read(rows)
    np.testing.assert_array_equal(minibatch.expected, crossing.expect(technical[rows]))
    assert minibatch.compared.tolist() == [[0, -1], [0, 0], [1, 7]]
    assert minibatch.technical.tolist() == technical[rows].tolist()
    assert not cells.read(rows).expected.any()
    assert cells.read(rows).compared.tolist() == technical[rows].tolist()


def test_a_fit_is_told_what_laboratories_say(
    frozen_study: AnnData, fit: Callable[..., ia.Atlas], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], job.train

    def note(model: object, cells: Cells, *rest: Any) -> Any:
        seen.append(cells.crossing)
        return original(model, cells, *rest)

    monkeypatch.setattr(job, "train", note)
    fit(frozen_study, epochs=1)
    assert len(seen) == 1 and seen[0].levels
