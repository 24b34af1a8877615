"""The layout on a plane."""

from __future__ import annotations

import numpy as np
import pytest

from invatlas.tasks import layout
from invatlas.tasks.layout import lay_out


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.normal(size=(200, 6)) + 12 * np.repeat(np.eye(6)[:2], 100, 0)).astype("f4")


def test_clusters_stay_clusters_and_one_seed_gives_one_layout(clusters: np.ndarray) -> None:
    plane = lay_out(clusters, 2**40)
    assert plane.shape == (200, 2) and plane.dtype == np.float32 and np.isfinite(plane).all()
    centres = plane[:100].mean(0), plane[100:].mean(0)
    apart = np.linalg.norm(centres[0] - centres[1])
    assert apart > 2 * np.linalg.norm(plane[:100] - centres[0], axis=1).mean()
    assert np.array_equal(plane, lay_out(clusters, 2**40))


def test_cells_beyond_those_laid_out_lie_among_their_neighbours(
    clusters: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LAID_OUT_CELLS", 150)
    plane = lay_out(clusters, 0)
    assert np.isfinite(plane).all()
    kinds = np.repeat([0, 1], 100)
    centres = np.stack([np.median(plane[kinds == k], 0) for k in (0, 1)])
    nearest = np.linalg.norm(plane[:, None] - centres, axis=2).argmin(1)
    assert (nearest == kinds).mean() > 0.95


@pytest.mark.parametrize("latents", [0, 1, 2])
@pytest.mark.parametrize("cells", [1, 5, 300])
def test_two_latents_or_fewer_are_a_plane_already(cells: int, latents: int) -> None:
    x = np.random.default_rng(0).normal(size=(cells, latents)).astype(np.float32)
    plane = lay_out(x)
    assert np.array_equal(plane[:, :latents], x) and not plane[:, latents:].any()


@pytest.mark.parametrize("cells", [1, 2, 16])
def test_a_few_cells_are_laid_out_too(cells: int) -> None:
    x = np.random.default_rng(0).normal(size=(cells, 9)).astype(np.float32)
    assert np.isfinite(lay_out(x)).all() and lay_out(x).shape == (cells, 2)
