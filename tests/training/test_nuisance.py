"""Directions of laboratories are told from biology, and z_I's encoder does not look along them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.data.counts import CountSource, compact
from invatlas.data.minibatch import Cells
from invatlas.training.nuisance import find_nuisance

GENES = 6
PROFILE = np.array([[40, 10, 10, 20, 20, 30], [10, 40, 10, 20, 20, 30], [10, 10, 40, 20, 20, 30]])


def make_cells(mean: np.ndarray, biology: np.ndarray, laboratory: np.ndarray) -> Cells:
    counts = np.random.default_rng(0).poisson(mean)
    source = CountSource.from_matrix(compact(sp.csr_matrix(counts)))
    return Cells(source, biology[:, None], laboratory[:, None])


def find(cells: Cells, most: int = 3) -> np.ndarray:
    rows = np.arange(len(cells.source.library_size))
    median = float(np.median(cells.source.library_size))
    return find_nuisance(cells, rows, median, most).numpy()


@pytest.fixture
def design() -> tuple[np.ndarray, np.ndarray]:
    """Biology and laboratory of 4,000 cells; laboratory 1 has more of biology 1."""
    generator = np.random.default_rng(1)
    biology, laboratory = generator.integers(3, size=4000), generator.integers(2, size=4000)
    return biology, np.where(generator.random(4000) < 0.6, biology % 2, laboratory)


def test_what_a_laboratory_does_is_found_whatever_cells_it_has(
    design: tuple[np.ndarray, np.ndarray],
) -> None:
    biology, laboratory = design
    mean = PROFILE[biology].astype(float)
    mean[laboratory == 1, 3] *= 2
    mean[laboratory == 1, 4] /= 2
    found = find(make_cells(mean, biology, laboratory))
    assert found.shape == (GENES, 1), "two laboratories differ along one direction"
    expected = np.array([0, 0, 0, 1, -1, 0]) / np.sqrt(2)
    assert abs(found[:, 0] @ expected) > 0.98


def test_directions_are_orthonormal_and_the_largest_come_first() -> None:
    generator = np.random.default_rng(2)
    biology, laboratory = generator.integers(3, size=4000), generator.integers(3, size=4000)
    mean = PROFILE[biology].astype(float)
    mean[laboratory == 1, 3] *= 3
    mean[laboratory == 2, 4] *= 1.3
    cells = make_cells(mean, biology, laboratory)
    found = find(cells)
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-5)
    assert abs(found[3, 0]) > 0.8
    np.testing.assert_array_equal(find(cells, 1), found[:, :1])


def test_biology_of_one_laboratory_stays_biology() -> None:
    biology = np.repeat([0, 1], 200)
    assert find(make_cells(PROFILE[biology], biology, biology)).shape == (GENES, 0)


def test_laboratories_that_differ_by_chance_have_no_directions() -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        biology, laboratory = generator.integers(3, size=2000), generator.integers(20, size=2000)
        mean = np.tile(PROFILE[biology].astype(float), 20)
        assert find(make_cells(mean, biology, laboratory)).shape[1] == 0
        mean[:, 3] *= generator.lognormal(0, 0.5, 20)[laboratory]
        assert abs(find(make_cells(mean, biology, laboratory))[3, 0]) > 0.8


def test_cells_that_lack_a_value_do_not_count(design: tuple[np.ndarray, np.ndarray]) -> None:
    biology, laboratory = design
    cells = make_cells(PROFILE[biology], biology, laboratory)
    lacking = biology.copy()
    lacking[1000:2000] = -1
    other = Cells(cells.source, lacking[:, None], laboratory[:, None])
    kept = np.r_[0:1000, 2000:4000]
    median = float(np.median(cells.source.library_size))
    torch.testing.assert_close(
        find_nuisance(other, np.arange(4000), median, 3), find_nuisance(cells, kept, median, 3)
    )


def test_one_laboratory_or_none_has_no_directions(design: tuple[np.ndarray, np.ndarray]) -> None:
    biology, laboratory = design
    cells = make_cells(PROFILE[biology], biology, 0 * laboratory)
    alone = Cells(cells.source, cells.biological, np.zeros((4000, 0), dtype=np.int64))
    unknown = Cells(cells.source, cells.biological - 3, cells.technical)
    for some in (cells, alone, unknown):
        assert find(some).shape == (GENES, 0)
    assert find(make_cells(PROFILE[biology], biology, laboratory), most=0).shape == (GENES, 0)


def test_the_encoder_of_z_i_alone_is_orthogonal_to_them(
    study: AnnData, fit: Callable[..., ia.Atlas], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor] = []

    def remember(*arguments: object) -> torch.Tensor:
        kept.append(find_nuisance(*arguments))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr("invatlas.training.job.find_nuisance", remember)
    encode = fit(study).model.encode
    found = kept[0]
    assert found.shape[1] > 1
    invariant, spurious = encode.first.detach().split(encode.hidden, 1)
    length = invariant.norm()
    assert (found.T @ invariant).norm() < 1e-4 * length
    assert (found.T @ spurious).norm() > 1e-2 * length
    assert encode.nuisance.shape == (len(found), 0)


def test_a_fit_can_do_without(study: AnnData, fit: Callable[..., ia.Atlas]) -> None:
    fits = [fit(study, nuisance_directions=most) for most in (8, 0)]
    assert not np.array_equal(ia.embed(fits[0], study), ia.embed(fits[1], study))
