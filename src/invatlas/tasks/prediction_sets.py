"""Which calls a cell may have, such that the right one is among them as often as asked.

    p(x, d) = (held-out cells with s_i >= 1 - p(d | x), and one more) / (held-out cells + 1)
    set(x)  = {d : p(x, d) >= 1 - coverage}

The scores s of the held-out cells are those of ``training/calibration.py``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from crepes import ConformalClassifier

from invatlas.atlas import Atlas, check_atlas
from invatlas.errors import SettingsError
from invatlas.tasks.annotate import allowed_by, joint_names, log_probabilities
from invatlas.tasks.embed import MINIMUM_OVERLAP, encode_counts
from invatlas.training.calibration import FEWEST_CELLS
from invatlas.training.posterior import call_cells


def prediction_sets(
    atlas: Atlas,
    adata: AnnData,
    *,
    coverage: float = 0.9,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> pd.DataFrame:
    """Combinations a cell may be, such that the truth is among them as often as asked.

    Split-conformal sets (Vovk et al. 2005; scores of Sadinle et al. 2019), by crepes. The promise
    holds for cells like the held-out ones: see ``atlas.calibration.whole_donors``.

    Parameters
    ----------
    atlas, adata, layer, gene_column, minimum_overlap
        As in :func:`annotate`.
    coverage
        Share of cells whose set holds the truth, between 0 and 1.

    Returns
    -------
    DataFrame of bool (cell, combination); a set may be empty.

    Raises
    ------
    SettingsError
        If the coverage is no share, or the atlas was not calibrated.
    """
    if not 0 < coverage < 1:
        raise SettingsError(f"coverage is {coverage!r}; it takes a share between 0 and 1.")
    check_atlas(atlas)
    known = atlas.calibration
    scores = known.call_scores[known.call_scores.isfinite()].numpy() if known else np.zeros(0)
    if len(scores) < FEWEST_CELLS:
        raise SettingsError(
            f"{len(scores)} held-out cells have all their labels; sets need {FEWEST_CELLS}."
        )
    q, overlap = encode_counts(atlas, adata, ["invariant"], layer, minimum_overlap, gene_column)
    calls = call_cells(q["invariant"], atlas.model.prior_invariant)
    allowed = allowed_by(atlas, {})
    p = log_probabilities(atlas, calls, allowed, "reference", overlap).exp().numpy()
    conformal = ConformalClassifier().fit(alphas=scores)
    inside = conformal.predict_set(1 - p, confidence=coverage, smoothing=False)
    return pd.DataFrame(
        np.asarray(inside, dtype=bool),
        index=pd.Index(adata.obs_names),
        columns=joint_names(atlas),
    )
