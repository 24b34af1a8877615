"""Who is drawn together in a member of the ensemble."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from invatlas.grn.experiments import read_experiments
from invatlas.grn.measured import measure
from invatlas.grn.member import draw_weights


def test_donors_are_drawn_whole_in_series_and_at_rest() -> None:
    """Ten rows at rest and three series, of donors a and b; two rows name no donor."""
    donors = [*list("aaaabbbb"), None, None, *list("aabb"), *list("bb")]
    obs = pd.DataFrame(
        {
            "donor": donors,
            "time": [np.nan] * 10 + [0, 1] * 3,
            "series": [None] * 10 + ["s", "s", "s", "s", "t", "t"],
            "target": (["A"] * 2 + ["none"] * 2) * 2 + ["A", "none"] + ["none"] * 6,
        },
        index=[f"r{i}" for i in range(16)],
    )
    y = np.random.default_rng(0).random((16, 3))
    adata = AnnData(y, obs=obs, var=pd.DataFrame(index=list("ABC")))
    m = measure(
        read_experiments(
            adata, time="time", lineage="series", donor="donor", interventions="target"
        )
    )
    assert m.donors == ("a", "b")
    assert all((part == 1).all() for part in vars(draw_weights(m, 0, 0)).values())
    w = draw_weights(m, 1, 0)
    assert len(w.rest) == len(w.seen) == 5
    for rows in (w.rest, w.seen):
        assert rows[0] == rows[1] == w.series[0]
        assert rows[2] == rows[3] == w.series[1] == w.series[2]
        assert len(torch.unique(rows)) == 3
    assert w.series[0] != w.series[1]
    assert not torch.equal(w.rest, draw_weights(m, 2, 0).rest)
