"""Donors of a simulated study: nested in diseases and batches, as correlated as asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import chi2_contingency

from invatlas.data.simulate import simulate

SMALL: dict[str, Any] = {"cells": 300, "genes": 60}


@pytest.fixture(scope="module")
def study() -> AnnData:
    """Simulate a study large enough for statistics; two donors for each disease and batch."""
    return simulate(cells=6000, genes=400, donors=24, seed=3)


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    """Compute Cramer's V through scipy."""
    table = pd.crosstab(a, b).to_numpy()
    chi2 = chi2_contingency(table, correction=False).statistic
    return float(np.sqrt(chi2 / table.sum() / (min(table.shape) - 1)))


def test_donors_are_nested_in_diseases_and_batches(study: AnnData) -> None:
    donors = study.obs.groupby("donor", observed=True)
    assert (donors[["disease", "batch", "severity"]].nunique() == 1).all(axis=None)
    first = donors[["disease", "severity"]].first()
    healthy = first["disease"] == "healthy"
    assert (first.loc[healthy, "severity"] == 0).all()
    ill = first.loc[~healthy, "severity"]
    assert ill.between(0.3, 1).all() and ill.nunique() == ill.size
    assert first["disease"].value_counts().tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("donors", "diseases", "batches"), [(12, 3, 4), (24, 3, 4), (16, 4, 2), (20, 2, 5)]
)
def test_correlation_moves_the_association_of_disease_and_batch(
    donors: int, diseases: int, batches: int
) -> None:
    association, cellwise = [], []
    for correlation in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        obs = simulate(
            cells=2000, genes=2, truth=False, correlation=correlation,
            donors=donors, diseases=diseases, batches=batches,
        ).obs  # fmt: skip
        people = obs.drop_duplicates("donor")
        assert people["batch"].nunique() == batches
        association.append(cramers_v(people["disease"], people["batch"]))
        cellwise.append(cramers_v(obs["disease"], obs["batch"]))
    assert association[0] < 0.15 and association[-1] == pytest.approx(1)
    assert (np.diff(association) >= -1e-12).all() and len(set(np.round(association, 6))) > 3
    np.testing.assert_allclose(association, [0, 0.2, 0.4, 0.6, 0.8, 1], atol=0.2)
    np.testing.assert_allclose(cellwise, association, atol=0.2)
    assert cellwise[-1] == pytest.approx(1)


def test_nested_batches_belong_to_one_disease_and_balanced_ones_to_all() -> None:
    nested, balanced = (
        pd.crosstab(one.obs["disease"], one.obs["batch"]).to_numpy() > 0
        for one in (simulate(**SMALL, correlation=1.0), simulate(**SMALL, correlation=0.0))
    )
    assert (nested.sum(axis=0) == 1).all()
    assert balanced.all()
