"""What laboratories do to genes is told from biology, and only training hears of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.data import counts
from invatlas.data.counts import CountSource, compact
from invatlas.data.minibatch import Cells, SparseCounts
from invatlas.model.networks import Encoder
from invatlas.training.laboratories import FEWEST_CELLS, K, compare_laboratories

GENES = 6


def make_cells(
    mean: np.ndarray, biology: np.ndarray, laboratory: np.ndarray, seed: int = 0
) -> Cells:
    counts = np.random.default_rng(seed).poisson(mean)
    counts[:, 0] += counts.sum(1) == 0
    source = CountSource.from_matrix(compact(sp.csr_matrix(counts)))
    return Cells(source, biology[:, None], laboratory[:, None])


def crossed(n: int = 900) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.integers(3, size=n), generator.integers(2, size=n)


def test_ratios_solve_the_model() -> None:
    """At the solution what each laboratory counted is what the model expects, but for K."""
    biology, laboratory = crossed(240)
    cells = make_cells(np.full((240, GENES), 2.0), biology, laboratory)
    x, size = cells.source.matrix.toarray().astype(float), cells.source.library_size
    r = np.exp(compare_laboratories(cells, np.arange(240)).numpy())
    weight = size[:, None] * r[laboratory]
    alike = biology[:, None] == np.arange(3)
    p = (alike.T @ x) / (alike.T @ weight)
    for e in range(2):
        here = laboratory == e
        expected = (size[:, None] * p[biology])[here].sum(0)
        np.testing.assert_allclose(r[e], (K + x[here].sum(0)) / (K + expected), rtol=1e-3)


def test_what_a_laboratory_does_is_found_whatever_cells_it_has() -> None:
    biology, laboratory = crossed(4000)
    laboratory = np.where(np.random.default_rng(2).random(4000) < 0.6, biology % 2, laboratory)
    profile = np.array(
        [[40, 10, 10, 20, 20, 30], [10, 40, 10, 20, 20, 30], [10, 10, 40, 20, 20, 30]]
    )
    mean = profile[biology].astype(float)
    mean[laboratory == 1, 3] *= 2
    mean[laboratory == 1, 4] /= 2
    found = compare_laboratories(make_cells(mean, biology, laboratory), np.arange(4000)).numpy()
    np.testing.assert_allclose(found[1] - found[0], np.log([1, 1, 1, 2, 0.5, 1]), atol=0.12)


def test_biology_of_one_laboratory_says_nothing() -> None:
    biology = np.repeat([0, 1], 200)
    mean = np.where(biology[:, None] == 0, [5.0] * GENES, [1.0, 9.0, 5.0, 5.0, 5.0, 5.0])
    found = compare_laboratories(make_cells(mean, biology, biology), np.arange(400))
    torch.testing.assert_close(found, torch.zeros(2, GENES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("missing", ["biology", "laboratory"])
def test_cells_that_lack_a_value_and_small_laboratories_do_not_count(missing: str) -> None:
    biology, laboratory = crossed()
    laboratory[: FEWEST_CELLS - 1] = 2
    cells = make_cells(np.full((900, GENES), 3.0), biology, laboratory)
    rows = np.arange(900)
    assert len(compare_laboratories(cells, rows)) == 2
    lacking = {"biology": biology, "laboratory": laboratory}[missing].copy()
    lacking[300:600] = -1
    other = Cells(
        cells.source,
        lacking[:, None] if missing == "biology" else biology[:, None],
        lacking[:, None] if missing == "laboratory" else laboratory[:, None],
    )
    kept = np.concatenate([rows[:300], rows[600:]])
    found = compare_laboratories(other, rows)
    torch.testing.assert_close(found, compare_laboratories(cells, kept))


def test_cells_are_summed_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    biology, laboratory = crossed(100)
    cells = make_cells(np.full((100, GENES), 3.0), biology, laboratory)
    whole = compare_laboratories(cells, np.arange(100))
    monkeypatch.setattr(counts, "CHUNK", 7)
    assert torch.equal(compare_laboratories(cells, np.arange(100)), whole)


def test_one_laboratory_or_none_has_nothing_to_compare() -> None:
    biology, laboratory = crossed(100)
    cells = make_cells(np.full((100, GENES), 3.0), biology, 0 * laboratory)
    alone = Cells(cells.source, cells.biological, np.zeros((100, 0), dtype=np.int64))
    for some in (cells, alone):
        assert compare_laboratories(some, np.arange(100)).shape == (0, GENES)


def test_encoders_hear_of_laboratories_in_training_alone() -> None:
    torch.manual_seed(0)
    encode = Encoder(GENES, {"invariant": 2}, 8, 1, 0.0, 0.0, 0.0, 10.0)
    counts = SparseCounts.from_csr(sp.csr_matrix(np.arange(1.0, 1 + 4 * GENES).reshape(4, GENES)))
    size = counts.sum_by_cell(counts.values)
    plain, trained = encode.eval()(counts, size), encode.train()(counts, size)
    encode.laboratories = torch.ones(3, GENES)
    same = encode(counts, size)["invariant"].mean
    torch.testing.assert_close(same, trained["invariant"].mean)
    encode.laboratories = torch.randn(3, GENES)
    assert not torch.equal(encode(counts, size)["invariant"].mean, trained["invariant"].mean)
    encode.eval()
    assert "laboratories" not in encode.state_dict()
    again = Encoder(GENES, {"invariant": 2}, 8, 1, 0.0, 0.0, 0.0, 10.0)
    again.load_state_dict(encode.state_dict())
    torch.testing.assert_close(
        again.eval()(counts, size)["invariant"].mean, encode(counts, size)["invariant"].mean
    )
    assert plain["invariant"].mean.shape == (4, 2)


def test_a_fit_forgets_the_laboratories_and_can_do_without(
    study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    fits = [fit(study, laboratory_noise=noise) for noise in (True, False)]
    assert all(len(atlas.model.encode.laboratories) == 0 for atlas in fits)
    assert not np.array_equal(ia.embed(fits[0], study), ia.embed(fits[1], study))
