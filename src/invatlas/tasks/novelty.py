"""Have we seen this cell before: a p-value by rank among held-out cells, and a flag.

    p(x) = (1 + #{held-out cells at least as new as x}) / (1 + #{held-out cells})

New is how far z_I lies from reference cells and how undecided the call is. Where there are at
least 50 cells, each is judged together with its nearest neighbours among them, and so were the
held-out cells (training/novelty.py): rare oddities of single cells then count less than a state
nobody has met. Compared are held-out cells of the same called combination where there are at
least 200, as in Mondrian conformal prediction (Vovk et al. 2005), and those of all other
combinations together otherwise.

The flag is that of Benjamini and Hochberg (1995), kept where the cell's own p-value is at most
0.1 too. Its rate is nominal. It would hold for cells judged alone whose donors are like the
held-out ones (Bates et al. 2023, Annals of Statistics 51); donors differ, and known cells beside
new ones share their neighbours' scores. docs/measurements.md says what was measured.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.stats import false_discovery_control

from invatlas.atlas import Atlas
from invatlas.data.genes import GeneOverlap
from invatlas.errors import SettingsError
from invatlas.tasks.embed import MINIMUM_OVERLAP, encode_counts
from invatlas.training.novelty import POOLED_CELLS, pooled
from invatlas.training.posterior import Calls, call_cells
from invatlas.wording import count_noun

FALSE_DISCOVERY_RATE = 0.05
ENOUGH_CELLS = 200
FEWEST_TOGETHER = 50
OWN_PVALUE = 0.1
POOLED = -1
MOST_MISSING = 0.2  # share of the reference's counts that missing genes may have held


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
        Nominal share of known cells among those flagged, between 0 and 1. It is no promise: donors
        differ from the held-out ones, and known cells beside new ones look newer than they are.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.

    Returns
    -------
    DataFrame, one row a cell: ``novelty_score`` (how far z_I is from reference cells and how
    undecided the call, of the cell and its nearest neighbours in the query; 0 on average for
    known cells), ``novelty_pvalue`` and ``novelty_flag``. Without a calibration, or where missing
    genes held more than 20 % of the reference's counts, all three are missing, missing and false.

    Raises
    ------
    SettingsError
        If the rate is no share.
    GeneError, CountsError
        As :func:`invatlas.embed`.
    """
    check_rate(false_discovery_rate)
    q, overlap = encode_counts(atlas, adata, ["invariant"], layer, minimum_overlap, gene_column)
    for message in describe_doubt(overlap):
        warnings.warn(message, stacklevel=2)
    calls = call_cells(q["invariant"], atlas.model.prior_invariant)
    judged = judge(atlas, q["invariant"].mean, calls, false_discovery_rate, overlap)
    return judged.set_axis(pd.Index(adata.obs_names))


def describe_doubt(overlap: GeneOverlap) -> list[str]:
    """Say which genes were added up, of which cells nothing can be said, and why of no novelty."""
    doubts = overlap.describe_repeated()
    if overlap.empty:
        doubts.append(
            f"{count_noun(len(overlap.empty), 'cell')} have no counts in the genes of the atlas: "
            "their calls and latents mean nothing, and their novelty is not judged."
        )
    if overlap.missing_share <= MOST_MISSING:
        return doubts
    return [
        *doubts,
        f"The genes missing from the query held {overlap.missing_share:.0%} of the reference's "
        f"counts. Beyond {MOST_MISSING:.0%} their absence alone makes known cells look new, so "
        "novelty is not judged.",
    ]


def check_rate(false_discovery_rate: float) -> None:
    """Refuse a rate that is no share."""
    if not 0 < false_discovery_rate < 1:
        raise SettingsError(
            f"false_discovery_rate is {false_discovery_rate!r}; it takes a share between 0 and 1."
        )


@torch.inference_mode()
def judge(
    atlas: Atlas,
    z: torch.Tensor,
    calls: Calls,
    false_discovery_rate: float,
    overlap: GeneOverlap,
) -> pd.DataFrame:
    """Novelty of cells that were encoded and called."""
    known, n_cells = atlas.calibration, len(z)
    judged = pd.DataFrame(
        {
            "novelty_score": np.full(n_cells, np.nan),
            "novelty_pvalue": np.full(n_cells, np.nan),
            "novelty_flag": False,
        }
    )
    if known is None or overlap.missing_share > MOST_MISSING:
        return judged
    counted = overlap.find_counted(n_cells)
    z, calls = z[counted], Calls(calls.log_p[counted], calls.entropy[counted])
    called = calls.log_p.argmax(1).numpy()
    alone = known.novelty(z, calls)
    own = rank_among(known.novelty_scores, known.called, alone, called)
    if min(len(alone), len(known.called)) < FEWEST_TOGETHER:
        score, pvalue = alone, own
    else:
        score = pooled(alone, z)
        pvalue = rank_among(known.pooled_scores, known.called, score, called)
    flag = (false_discovery_control(pvalue) <= false_discovery_rate) & (own <= OWN_PVALUE)
    judged.loc[counted, "novelty_score"] = score.numpy()
    judged.loc[counted, "novelty_pvalue"] = pvalue
    judged.loc[counted, "novelty_flag"] = flag
    return judged


def describe_limit(judged: pd.DataFrame, false_discovery_rate: float) -> list[str]:
    """Say that cells as far out as any can be are too few to be flagged, where they are."""
    pvalue = judged["novelty_pvalue"]
    least, n_cells = pvalue.min(), pvalue.count()
    farthest = int((pvalue == least).sum())
    if judged["novelty_flag"].any() or farthest < POOLED_CELLS or least > OWN_PVALUE:
        return []
    return [
        f"No cell is flagged, but {count_noun(farthest, 'cell')} are newer than any held-out cell "
        f"called alike. With so few held out, {least / false_discovery_rate:.1%} of {n_cells:,} "
        "cells would have to be so for a flag: look at novelty_score, or map a part of the query."
    ]


def rank_among(
    of_known: torch.Tensor, called_known: torch.Tensor, score: torch.Tensor, called: np.ndarray
) -> np.ndarray:
    """P-value of each score among those of held-out cells called alike, shape (cell,)."""
    codes, known = called_known.numpy(), of_known.numpy()
    common = np.flatnonzero(np.bincount(codes) >= ENOUGH_CELLS)
    bins, bins_of_known = (np.where(np.isin(c, common), c, POOLED) for c in (called, codes))
    few = (bins_of_known == POOLED).sum() < ENOUGH_CELLS  # too few to pool: take everybody
    pvalue = np.ones(len(score))
    for chosen in np.unique(bins):
        alike = (bins_of_known == chosen) | (few and chosen == POOLED)
        here, known_here = bins == chosen, np.sort(known[alike])
        as_new = len(known_here) - np.searchsorted(known_here, score.numpy()[here])
        pvalue[here] = (1 + as_new) / (1 + len(known_here))
    return pvalue
