"""Guides that miss, and guides that hit something else: planted, found and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import invatlas as ia

if TYPE_CHECKING:
    from conftest import Truth

GUIDES = 3
QUICK = ia.grn.NetworkSettings(steps=400, members=1)
COLUMNS = {"interventions": "target", "experiment": "experiment"}


def fit_guides(
    truth: Truth, kind: str, share: float, changes: dict[tuple[str, int, str], float]
) -> ia.grn.Network:
    """Three guides a gene; changes say what another share is of (target, guide, gene)."""
    place = {gene: j for j, gene in enumerate(truth.genes)}
    done = [("none", "wildtype", np.ones(len(place)))] * 3
    for gene in truth.genes:
        for guide in range(GUIDES):
            left = np.ones(len(place))
            left[place[gene]] = share
            for (target, number, other), changed in changes.items():
                if (target, number) == (gene, guide):
                    left[place[other]] = changed
            done.append((gene, kind, left))
    adata = truth.measure(done, seed=0)
    adata.obs_names = [f"{row.target}-{i % GUIDES}" for i, row in enumerate(adata.obs.itertuples())]
    return ia.grn.fit(adata, **COLUMNS, settings=QUICK)


@pytest.mark.parametrize("moved", [0.3, 3.0])
def test_the_off_target_of_one_guide_in_three_is_named_and_no_other(
    truth: Truth, moved: float
) -> None:
    found = fit_guides(truth, "knockout", 0.0, {("G4", 1, "G6"): moved}).off_targets
    assert found[["experiment", "target", "off_target"]].to_numpy().tolist() == [
        ["G4-1", "G4", "G6"]
    ]
    assert np.sign(found.loc[0, "change"]) == np.sign(moved - 1)
    assert found.loc[0, "gain"] > 0
    assert found.loc[0, "verdict"] == "off-target"


def test_a_guide_that_cuts_nothing_makes_no_off_targets_of_true_edges(truth: Truth) -> None:
    """G0 has two targets, which only its other guides move."""
    network = fit_guides(truth, "knockout", 0.0, {("G0", 2, "G0"): 0.95})
    assert network.strengths.set_index("experiment").loc["G0-2", "left"] > 0.7
    assert not len(network.off_targets)


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        (("knockout", "overexpression"), "off-target or steep edge"),
        (("knockout", "knockdown"), "off-target or steep edge"),
        (("knockout", "knockout"), "off-target"),
    ],
)
def test_only_an_experiment_as_strong_the_same_way_makes_a_verdict_sure(
    kinds: tuple[str, str], verdict: str
) -> None:
    """Of two experiments on g0 the first alone moves g1, as one on a saturated edge does."""
    rng = np.random.default_rng(0)
    left = {"knockout": 0.0, "knockdown": 0.5, "overexpression": 2.0}
    done = [("none", "wildtype")] * 3 + [(f"g{j}", kind) for j in range(8) for kind in kinds]
    y = np.ones((len(done), 8))
    for row, (target, kind) in enumerate(done[3:], 3):
        y[row, int(target[1])] = left[kind]
    y[3, 1] = 0
    y += rng.normal(0, 0.03, y.shape)
    obs = pd.DataFrame(done, columns=["target", "experiment"], index=[f"r{i}" for i in range(19)])
    adata = AnnData(y, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(8)]))
    found = ia.grn.fit(adata, **COLUMNS, settings=QUICK).off_targets
    assert found[["experiment", "off_target", "verdict"]].to_numpy().tolist() == [
        ["r3", "g1", verdict]
    ]


def test_partial_strength_is_learned_and_no_off_target_is_named_for_it(truth: Truth) -> None:
    network = fit_guides(truth, "knockdown", 0.5, {("G2", 1, "G2"): 0.25, ("G6", 0, "G6"): 0.9})
    left = network.strengths.set_index("experiment")["left"]
    assert left["G2-1"] == pytest.approx(0.25, abs=0.08)
    assert left["G6-0"] == pytest.approx(0.9, abs=0.12)
    others = left.drop(["G2-1", "G6-0"])
    assert (others - 0.5).abs().max() < 0.2
    assert (network.strengths["nominal"] == 0.5).all()
    assert not len(network.off_targets)
