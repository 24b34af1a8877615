"""Which genes differ between two groups of cells, with donors as replicates.

The posterior over cells alone is sure of anything: ten thousand cells of four donors are four
donors. Each donor of a group is one value y of each gene (expression.py), technique taken out
by the model; groups are compared by these, and gene_effects.py says how likely each difference is
larger than a threshold ("change" in Boyeau et al. 2019, bioRxiv 794289), in base 2:

    lfc_g = mean_{s in 1} y_sg - mean_{s in 2} y_sg     or the mean of y_1 - y_2 within donors
    se_g^2 = max{moderated variance over donors, 1 / (c + X_1g) + 1 / (c + X_2g)}

with X the counts of a group: donors whose cells the model drew together look too much alike.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.counts import check_cells, sum_counts
from invatlas.errors import SettingsError
from invatlas.tasks.embed import MINIMUM_OVERLAP, find_counted, match_counts
from invatlas.tasks.expression import Profiles, profile
from invatlas.tasks.gene_effects import expected_false_discoveries, moderate, shrink
from invatlas.tasks.groups import Group, Samples, choose_cells, take_samples
from invatlas.tasks.pseudobulk import compare_pseudobulk

METHODS = ("posterior", "pseudobulk")
THRESHOLD = 0.25
LEAST_THRESHOLD = 0.01  # nearer to 0 every gene differs, if by next to nothing
FEWEST_CELLS = 5


def differential_expression(
    atlas: Atlas,
    adata: AnnData,
    group1: Group,
    group2: Group,
    *,
    donor: str = "donor",
    method: str = "posterior",
    threshold: float = THRESHOLD,
    fewest_cells: int = FEWEST_CELLS,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> pd.DataFrame:
    """Compare the expression of two groups of cells, technique taken out, donors as replicates.

    Parameters
    ----------
    atlas
        A fitted atlas of counts.
    adata
        Raw counts; obs has the donors and, where known, the technical columns of the atlas.
    group1, group2
        Values by obs column, ``{"condition": "stim", "cell_type": "B cells"}``, or a mask.
    donor
        Column of obs that names the replicates. Where at least half of the donors are in both
        groups, each is compared with itself.
    method
        ``posterior`` takes the technical side out by the model; ``pseudobulk`` tests the bare
        sums of counts by DESeq2 (Love et al. 2014, Genome Biology 15), through pydeseq2, and
        needs ``pip install invatlas[deseq]``.
    threshold
        Fold change, in log2, beyond which a gene counts as different: 0.01 or more, of
        ``pseudobulk`` 0 or more.
    fewest_cells
        Cells a donor must have in a group to count.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.

    Returns
    -------
    DataFrame
        One row a gene of the atlas that the data count, the likeliest to differ first:
        ``share_1``, ``share_2`` (mean share of a cell's counts, geometric over donors),
        ``log2_fold_change`` (group 1 over 2) and ``log2_fold_change_sd``, ``estimate`` (before
        shrinkage), ``probability`` (that abs(lfc) > threshold), ``false_discovery_rate`` (expected
        in the list down to this gene). Of ``pseudobulk``: ``share_1``, ``share_2``,
        ``log2_fold_change``, ``log2_fold_change_sd``, ``p_value``, ``false_discovery_rate``
        (Benjamini-Hochberg).

    Raises
    ------
    SettingsError
        If method or threshold is none that is allowed.
    DataError
        If groups overlap, are empty, or have fewer than two donors; if the likelihood is
        Gaussian; if pydeseq2 is wanted and absent.
    CovariateError, GeneError, CountsError
        If a column, value, gene or count is none that can be used.
    """
    check_atlas(atlas)
    check_cells(adata)
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; it takes {' or '.join(METHODS)}.")
    least = LEAST_THRESHOLD if method == "posterior" else 0
    if not isinstance(threshold, int | float) or not least <= threshold < np.inf:
        raise SettingsError(
            f"threshold is {threshold!r}; method {method} takes {least:g} or more, in log2."
        )
    groups = [
        choose_cells(adata.obs, group, name)
        for group, name in ((group1, "group1"), (group2, "group2"))
    ]
    samples = take_samples(adata.obs, groups[0], groups[1], donor, fewest_cells)
    source, _ = match_counts(atlas, adata, layer, minimum_overlap, gene_column)
    cells, n_samples = samples.cells, len(samples.donor)
    counted = find_counted(atlas, adata.var, gene_column)
    genes = np.array(atlas.genes, dtype=object)[counted]
    if method == "pseudobulk":
        counts = sum_counts(source, cells, n_samples)[:, counted]
        table = compare_pseudobulk(counts, samples, genes, threshold)
    else:
        technical = atlas.schema.encode(adata.obs)[1]
        profiles = profile(atlas, source, technical, cells, n_samples)
        table = compare_profiles(profiles, samples, counted, genes, threshold)
    return table.sort_values("false_discovery_rate", kind="stable")


def compare_profiles(
    profiles: Profiles,
    samples: Samples,
    counted: np.ndarray,
    genes: np.ndarray,
    threshold: float,
) -> pd.DataFrame:
    """Compare y of the genes that were counted, (gene,) bool, in base 2."""
    y = profiles.log_expression()[:, counted] / np.log(2)
    y_1, y_2 = y[samples.first], y[~samples.first]
    estimate = y_1.mean(0) - y_2.mean(0)
    if samples.paired:
        degrees, v = len(y_1) - 1, 1 / len(y_1)
        variance = (y_1 - y_2).var(0, ddof=1)
    else:
        degrees, v = len(y) - 2, 1 / len(y_1) + 1 / len(y_2)
        variance = (len(y_1) * y_1.var(0) + len(y_2) * y_2.var(0)) / degrees
    groups = samples.first, ~samples.first
    least = sum(profiles.least_variance(group)[counted] for group in groups) / np.log(2) ** 2
    error = np.sqrt(np.maximum(v * moderate(variance, degrees), least))
    effects = shrink(estimate, error, degrees, threshold)
    return pd.DataFrame(
        {
            "share_1": np.exp2(y_1.mean(0)),
            "share_2": np.exp2(y_2.mean(0)),
            "log2_fold_change": effects.mean,
            "log2_fold_change_sd": effects.sd,
            "estimate": estimate,
            "probability": effects.probability,
            "false_discovery_rate": expected_false_discoveries(effects.probability),
        },
        index=pd.Index(genes, name="gene"),
    )
