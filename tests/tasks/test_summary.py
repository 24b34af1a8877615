"""The summary counts what is there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from anndata import AnnData

import invatlas as ia
from invatlas.tasks.summary import describe_calibration


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


def test_a_calibration_on_whole_values_names_their_column(atlas: ia.Atlas) -> None:
    assert atlas.calibration is not None
    whole = replace(atlas, calibration=replace(atlas.calibration, whole_donors=True))
    assert "cells of values of donor that training never met" in describe_calibration(whole)
