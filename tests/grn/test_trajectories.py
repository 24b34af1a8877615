"""Which rows are a series, which are cells, and how few are too few."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from invatlas.errors import CovariateError
from invatlas.grn.experiments import read_experiments


def make_rows(y: np.ndarray, times: np.ndarray) -> AnnData:
    obs = pd.DataFrame({"time": times}, index=[f"row{i}" for i in range(len(y))])
    return AnnData(y, obs=obs, var=pd.DataFrame(index=list("ABCD")))


@pytest.mark.parametrize("scale", [1.0, 0.5], ids=["counts", "given"])
def test_equal_cells_are_not_one_cell(scale: float) -> None:
    """Few counts of few genes are often equal; 60 cells a day, of four genes."""
    y = scale * np.random.default_rng(0).poisson(0.3, (300, 4))
    days = np.repeat(np.arange(5.0), 60)
    (found,) = read_experiments(make_rows(y, days), time="time").trajectories
    assert found.cells.tolist() == [60] * 5
    if scale < 1:
        assert np.allclose(found.mean[0], y[:60].mean(0))


def test_equal_samples_of_counts_are_two_samples() -> None:
    y = np.repeat(np.random.default_rng(0).poisson(5, (8, 4)), 2, axis=0).astype(float)
    rows = make_rows(y, np.repeat(np.arange(8.0), 2))
    (counted,) = read_experiments(rows, time="time").trajectories
    assert counted.cells.tolist() == [2] * 8
    rows.X = rows.X / 2
    found = read_experiments(rows, time="time")
    assert found.trajectories[0].cells.tolist() == [1] * 8
    assert "8 rows repeat" in found.warnings[0]


@pytest.mark.parametrize("scale", [1.0, 0.5], ids=["counts", "given"])
def test_three_cells_alone_are_no_series(scale: float) -> None:
    y = scale * np.random.default_rng(0).poisson(5, (5, 4))
    times = np.array([0.1, 0.23, 0.9, 0.95, 1.0])
    message = r"The series has 3 rows at 3 times and is the only one; a series alone needs 5 times"
    for bins in (None, 0):
        with pytest.raises(CovariateError, match=message):
            read_experiments(make_rows(y[:3], times[:3]), time="time", bins=bins)
        (found,) = read_experiments(make_rows(y, times), time="time", bins=bins).trajectories
        assert len(found.times) == 5
