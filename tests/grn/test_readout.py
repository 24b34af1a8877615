"""How sure an edge is: nothing is made of noise, and no member holds what no equation has."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.grn.readout import HALF, score_edges


def test_what_is_next_to_nothing_stays_so_in_a_large_network() -> None:
    """One small hit among ten thousand pairs is a hundred times the root mean square."""
    allowed = ~torch.eye(100, dtype=torch.bool)
    hit = torch.zeros(100, 100)
    hit[3, 4] = 0.1
    assert score_edges(hit, 0 * hit, allowed, 1.0)[3, 4] < HALF / 2
    hit[3, 4] = 1
    assert score_edges(hit, 0 * hit, allowed, 1.0)[3, 4] > HALF


def test_independent_genes_have_no_stable_edge_and_hardly_a_likely_one() -> None:
    y = np.random.default_rng(0).normal(5, 1, size=(40, 40))
    adata = AnnData(y, var=pd.DataFrame(index=[f"g{j}" for j in range(40)]))
    network = ia.grn.fit(adata, settings=ia.grn.NetworkSettings(steps=150, members=2))
    table = ia.grn.edges(network)
    assert (table["probability"] > 0.5).sum() <= 2
    assert not (table.query("probability > 0.5")["stability"] > 0.5).any()


def test_an_edge_of_the_linear_reading_alone_is_in_no_member() -> None:
    """The equations have half a step to learn in; the lasso needs none."""
    rng = np.random.default_rng(1)
    y = rng.normal(5, 1, size=(60, 4))
    y[:, 1] = y[:, 0] + rng.normal(0, 0.1, 60)
    adata = AnnData(y, var=pd.DataFrame(index=list("ABCD")))
    slow = ia.grn.NetworkSettings(steps=1, members=2, learning_rate=0.0, production="sigmoid")
    table = ia.grn.edges(ia.grn.fit(adata, settings=slow))
    first = table.iloc[0]
    assert {first["regulator"], first["target"]} == {"A", "B"}
    assert first["weight"] > 0.5 and first["stability"] == 0
