"""DESeq2 on the counts of each donor summed up (Love et al. 2014, Genome Biology 15).

    x_sg ~ NB(s_s q_sg, alpha_g)     log2 q_sg = b_g [group 1] + intercept_g [+ donor]

The null is |b| <= threshold. pydeseq2 does the work (Muzellec et al. 2023, Bioinformatics 39).
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from invatlas.errors import DataError
from invatlas.tasks.groups import Samples


def compare_pseudobulk(
    counted: np.ndarray, samples: Samples, genes: np.ndarray, threshold: float
) -> pd.DataFrame:
    """Test the sums of counts (sample, gene) of two groups of samples against each other.

    Raises
    ------
    DataError
        If pydeseq2 is not installed.
    """
    try:
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.ds import DeseqStats
    except ImportError:
        raise DataError(
            "method pseudobulk takes pydeseq2, which is not installed: pip install "
            "'invatlas[deseq]'."
        ) from None
    names = [f"sample {s}" for s in range(len(counted))]
    design = pd.DataFrame(
        {"group": np.where(samples.first, "one", "two"), "donor": samples.donor}, index=names
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = DeseqDataSet(
            counts=pd.DataFrame(counted.astype(np.int64), index=names, columns=list(genes)),
            metadata=design,
            design="~donor + group" if samples.paired else "~group",
            quiet=True,
            n_cpus=1,
        )
        fitted.deseq2()
        test = DeseqStats(
            fitted,
            contrast=["group", "one", "two"],
            lfc_null=threshold,
            alt_hypothesis="greaterAbs",
            quiet=True,
            n_cpus=1,
        )
        test.summary()
    found = test.results_df
    shares = (counted + 0.5) / (counted + 0.5).sum(1, keepdims=True)
    return pd.DataFrame(
        {
            "share_1": np.exp(np.log(shares[samples.first]).mean(0)),
            "share_2": np.exp(np.log(shares[~samples.first]).mean(0)),
            "log2_fold_change": found["log2FoldChange"].to_numpy(),
            "log2_fold_change_sd": found["lfcSE"].to_numpy(),
            "p_value": found["pvalue"].fillna(1).to_numpy(),
            "false_discovery_rate": found["padj"].fillna(1).to_numpy(),
        },
        index=pd.Index(genes, name="gene"),
    )
