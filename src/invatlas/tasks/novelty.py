"""Have we seen this cell before: conformal p-values, and a flag that keeps its error rate.

    p(x) = (1 + #{held-out cells at least as new as x}) / (1 + #{held-out cells})

New is how far z_I lies from reference cells and how undecided the call is; where a query has at
least 50 cells, each is judged together with its nearest neighbours among them, so that rare
oddities of single cells count less than a state nobody has met (training/novelty.py). Compared
are held-out cells of the same called combination where there are at least 200
(Mondrian; Vovk et al. 2005), and those of all other combinations together otherwise. The flag
is that of Benjamini and Hochberg (1995) over the cells of a query; for conformal p-values it
keeps its rate (Bates et al. 2023, Annals of Statistics 51).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.stats import false_discovery_control

from invatlas.atlas import Atlas
from invatlas.errors import SettingsError
from invatlas.model.priors import DiagonalGaussian
from invatlas.tasks.embed import MINIMUM_OVERLAP, match_counts
from invatlas.training.novelty import pooled
from invatlas.training.posterior import call_cells, encode_cells

FALSE_DISCOVERY_RATE = 0.05
ENOUGH_CELLS = 200
FEWEST_TOGETHER = 50
POOLED = -1


def novelty(
    atlas: Atlas,
    adata: AnnData,
    *,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> pd.DataFrame:
    """Say how new each cell is to an atlas.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts (cell, gene); obs is never looked at.
    false_discovery_rate
        Expected share of known cells among those flagged, between 0 and 1.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.

    Returns
    -------
    DataFrame, one row a cell: ``novelty_score`` (how far z_I is from reference cells and how
    undecided the call, of the cell and its nearest neighbours in the query; 0 on average for
    known cells), ``novelty_pvalue`` and ``novelty_flag``. Without a calibration all three are
    missing, missing and false.

    Raises
    ------
    SettingsError
        If the rate is no share.
    GeneError, CountsError
        As :func:`invatlas.embed`.
    """
    check_rate(false_discovery_rate)
    source, _ = match_counts(atlas, adata, layer, minimum_overlap, gene_column)
    q = encode_cells(atlas.model, source)["invariant"]
    return judge(atlas, q, false_discovery_rate).set_axis(pd.Index(adata.obs_names))


def check_rate(false_discovery_rate: float) -> None:
    """Refuse a rate that is no share."""
    if not 0 < false_discovery_rate < 1:
        raise SettingsError(
            f"false_discovery_rate is {false_discovery_rate!r}; it takes a share between 0 and 1."
        )


@torch.inference_mode()
def judge(atlas: Atlas, q: DiagonalGaussian, false_discovery_rate: float) -> pd.DataFrame:
    """Novelty of cells whose posterior is known."""
    known = atlas.calibration
    if known is None:
        nothing = np.full(len(q.mean), np.nan)
        return pd.DataFrame(
            {"novelty_score": nothing, "novelty_pvalue": nothing, "novelty_flag": False}
        )
    prior = atlas.model.prior_invariant()
    alone, of_known = known.novelty(q, prior), known.novelty_scores
    if together := len(alone) >= FEWEST_TOGETHER:
        of_known = known.pooled_scores
    score = (pooled(alone, q.mean) if together else alone).numpy()
    called = call_cells(q, prior).argmax(1)
    common = np.flatnonzero(np.bincount(known.called.numpy()) >= ENOUGH_CELLS)
    bins, bins_of_known = (
        np.where(np.isin(codes, common), codes, POOLED)
        for codes in (called.numpy(), known.called.numpy())
    )
    if not (bins_of_known == POOLED).any():  # nobody to pool: compare with everybody
        bins, bins_of_known = np.full_like(bins, POOLED), np.full_like(bins_of_known, POOLED)
    pvalue = np.ones(len(score))
    for chosen in np.unique(bins):
        here, known_here = bins == chosen, np.sort(of_known.numpy()[bins_of_known == chosen])
        as_new = len(known_here) - np.searchsorted(known_here, score[here])
        pvalue[here] = (1 + as_new) / (1 + len(known_here))
    flag = false_discovery_control(pvalue) <= false_discovery_rate
    return pd.DataFrame({"novelty_score": score, "novelty_pvalue": pvalue, "novelty_flag": flag})
