"""What a network predicts: of counts, in each lineage, at rest and in time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import invatlas as ia

CELLS = {"time": "pseudotime", "lineage": "lineage"}


@pytest.fixture(scope="module")
def counted() -> ia.grn.Network:
    """Two lineages of cells, counted; genes A and B of one move the other way in the other."""
    rng = np.random.default_rng(0)
    t, right = rng.random(300), rng.random(300) < 0.5
    up = np.where(right, 1 - t, t)
    rates = np.stack([10 + 50 * up, 60 - 50 * up, np.full(300, 20), np.full(300, 900)], 1)
    obs = pd.DataFrame(
        {"pseudotime": t, "lineage": np.where(right, "right", "left")},
        index=[f"cell{i}" for i in range(300)],
    )
    cells = AnnData(rng.poisson(rates).astype("f4"), obs=obs, var=pd.DataFrame(index=list("ABCD")))
    settings = ia.grn.NetworkSettings(steps=60, members=2, refine_steps=0)
    return ia.grn.fit(cells, **CELLS, settings=settings)


def at_rest(predicted: AnnData) -> np.ndarray:
    """Steady states without and with the intervention, (state, gene)."""
    return np.asarray(predicted[predicted.obs["time"].isna()].X)


@pytest.mark.parametrize(("kind", "share"), [("knockdown", 0.5), ("overexpression", 2.0)])
def test_interventions_leave_a_share_of_counts(
    counted: ia.grn.Network, kind: str, share: float
) -> None:
    """Of the counts per 10,000: C stands at 200 of them, and nothing hears it."""
    rest = np.expm1(at_rest(ia.grn.intervene(counted, "C", kind=kind))[:, 2])
    assert 100 < rest[0] < 400
    assert rest[1] == pytest.approx(share * rest[0], rel=0.1)
