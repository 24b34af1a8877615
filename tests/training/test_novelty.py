"""The nearest of many are found as a full sort finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invatlas.training.novelty import find_nearest, landmark_distance, pooled


@given(
    st.integers(1, 40), st.integers(1, 400), st.integers(1, 30), st.booleans(), st.integers(0, 99)
)
def test_nearest_are_those_of_a_sort(
    n_rows: int, n_columns: int, k: int, tied: bool, seed: int
) -> None:
    k = min(k, n_columns)
    squares = np.random.default_rng(seed).normal(size=(n_rows, n_columns)).astype(np.float32)
    if tied:
        squares = squares.round(0)
    found = find_nearest(torch.from_numpy(squares), k)
    ordered = np.sort(squares, axis=1)
    np.testing.assert_array_equal(np.sort(found.smallest, axis=1), ordered[:, :k])
    expected = np.nonzero(squares <= ordered[:, k - 1 : k])
    np.testing.assert_array_equal(found.rows, expected[0])
    np.testing.assert_array_equal(found.columns, expected[1])


def test_distance_to_landmarks_is_the_mean_over_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    z, landmarks = (torch.randn(n, 4, generator=generator) for n in (300, 1000))
    nearest = torch.cdist(z.double(), landmarks.double()).sort(1).values[:, :25]
    torch.testing.assert_close(
        landmark_distance(z, landmarks).double(), nearest.mean(1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("n_cells", [1, 5, 300])
def test_pooled_scores_are_means_over_a_cell_and_its_seven_nearest(n_cells: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z, scores = torch.randn(n_cells, 3, generator=generator), torch.arange(float(n_cells))
    nearest = torch.cdist(z, z).argsort(1)[:, :8]
    torch.testing.assert_close(pooled(scores, z), scores[nearest].mean(1))
