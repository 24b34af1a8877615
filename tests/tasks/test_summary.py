"""The summary counts what is there."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import invatlas as ia
from invatlas.tasks.summary import (
    describe_agreement,
    describe_calibration,
    describe_choice,
    order_values,
)


def test_cells_of_every_value_are_counted_and_everything_is_plain(
    atlas: ia.Atlas, study: AnnData
) -> None:
    study.obs["disease"] = study.obs["disease"].astype(object)
    study.obs.iloc[:13, study.obs.columns.get_loc("disease")] = np.nan
    summary = ia.summarise(atlas, study.obs, "A title")
    counted = study.obs["cell_type"].value_counts().to_dict()
    assert summary["biological"]["cell_type"] == counted
    assert sum(summary["biological"]["disease"].values()) == 587
    assert summary["missing"] == {"cell_type": 0, "disease": 13, "donor": 0, "batch": 0}
    assert set(summary["technical"]) == {"donor", "batch"}
    assert (summary["title"], summary["cells"], summary["genes"]) == ("A title", 600, 120)
    assert "drawn at random" in summary["calibration"]
    assert summary["training"]["calibration_seconds"] > 0
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["seeds"] == ""


def test_it_is_said_by_what_the_epoch_was_chosen(atlas: ia.Atlas) -> None:
    def told(best: int, epochs: int, **changes: Any) -> str:
        training = {"best_epoch": best, "epochs": epochs, "planned": {"epochs": 56}}
        return describe_choice(
            replace(atlas, record=atlas.record | {"training": training}, **changes)
        )

    assert "held_out_objective" in atlas.history
    chosen = told(43, 56)
    assert chosen.startswith(
        "The weights of epoch 43 were kept: of epochs 42 to 56, the last quarter"
    )
    assert "not at all before 10 % of its epochs and in full only from 40 % on" in chosen
    assert "epoch 20 were kept, the latest there were: weights are compared from epoch 42" in told(
        20, 20
    )
    assert "kept: of epochs 42 to 43, the last" in told(42, 43)
    assert "kept: it alone is of the last quarter of the 56" in told(42, 42)
    assert told(1, 1) == "There was one epoch, whose weights were kept."
    alone = atlas.history.drop(columns="held_out_objective")
    assert "epoch 56, the last, were kept: no cells" in told(56, 56, history=alone)
    assert ia.summarise(atlas, pd.DataFrame(index=[]))["kept"] == describe_choice(atlas)


def test_colours_go_by_the_frequency_in_the_fit(atlas: ia.Atlas, study: AnnData) -> None:
    order = order_values(atlas)
    assert list(order) == ["cell_type", "disease", "donor", "batch"]
    for name, values in order.items():
        assert sorted(values) == sorted(study.obs[name].unique())
    counts = study.obs["cell_type"].value_counts()
    assert order["cell_type"][0] == counts.index[0]
    grown = deepcopy(atlas.model)
    prior = grown.prior_spurious
    rarest = atlas.schema.technical[0].categories.index(order["donor"][-1])
    prior.combinations = torch.cat([prior.combinations, torch.tensor([[rarest, 0]])])
    prior.weights = torch.cat([prior.weights, torch.ones(1)])
    record = atlas.record | {"adapted": [{"combinations": 1}]}
    assert order_values(replace(atlas, model=grown, record=record)) == order, "as before adapting"


def test_a_calibration_on_whole_values_names_their_column(atlas: ia.Atlas) -> None:
    assert atlas.calibration is not None
    whole = replace(atlas, calibration=replace(atlas.calibration, whole_donors=True))
    assert "cells of values of donor that training never met" in describe_calibration(whole)


PAIR = {
    **{"first": 0, "second": 1, "linear": 0.95, "matched": 0.7, "cells": 350, "strata": 16},
    **{"linear_pooled": 0.6, "matched_pooled": 0.4, "linear_within": None, "matched_within": None},
    "needed": 100,
}


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (
            [PAIR],
            ["2 seeds agree", "correlation 0.950 after", "0.700 latent by", "(350 cells less"],
        ),
        (
            [PAIR],
            ["it is 0.600 and 0.400", "no single combination has the 100 cells", "Kept: seed 1."],
        ),
        ([PAIR, PAIR | {"second": 2, "linear": 0.85}], ["3 seeds", "0.900 (0.850 to 0.950)"]),
        ([PAIR | {"linear_within": 0.66, "matched_within": 0.5}], ["or more 0.660 and 0.500"]),
        (
            [PAIR | {"linear_pooled": None, "matched_pooled": None, "cells": 110}],
            ["nothing can be said: 110 labelled cells", "are 94, and five for each latent are 100"],
        ),
    ],
    ids=["pooled", "no stratum", "three seeds", "strata", "too few"],
)
def test_agreement_of_seeds_is_told_and_what_is_unknown_with_its_reason(
    atlas: ia.Atlas, pairs: list[dict[str, object]], told: list[str]
) -> None:
    said = describe_agreement(replace(atlas, record={**atlas.record, "seeds": pairs}))
    for words in told:
        assert words in said, said


def test_agreement_of_older_fits_is_told_as_far_as_it_is_known(atlas: ia.Atlas) -> None:
    pair = {"first": 0, "second": 1, "linear": 0.95, "matched": 0.7}
    pair |= {"matched_within": None, "linear_within": None}
    said = describe_agreement(replace(atlas, record={**atlas.record, "seeds": [pair]}))
    assert said.endswith(", 0.700 latent by latent. Kept: seed 1.")


@pytest.mark.parametrize(
    ("exponents", "told", "untold"),
    [
        ([1.0, 1.0, 0.001], ["taught nothing of disease", "more donors"], ["trust their order"]),
        ([1.0, 0.5, 0.5], ["trust their order"], ["taught nothing", "by itself"]),
        ([0.001, 1.0, 0.5], ["each column is called by itself"], ["taught nothing"]),
    ],
    ids=["a covariate", "none", "together"],
)
def test_a_covariate_that_cannot_be_called_is_named(
    atlas: ia.Atlas, exponents: list[float], told: list[str], untold: list[str]
) -> None:
    assert atlas.calibration is not None
    known = replace(
        atlas.calibration, exponents=torch.tensor(exponents), expected_calibration_error=0.3
    )
    said = describe_calibration(replace(atlas, calibration=known))
    assert all(words in said for words in told), said
    assert not any(words in said for words in untold), said
