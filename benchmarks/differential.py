"""Differential expression between diseased and healthy cells of a type, truth known.

True genes: those of the programmes a disease shifts (``uns["differential_genes"]``) whose true
change, at the severities of the study's donors, is beyond the threshold; the true expression of
twelve thousand cells of the same donors says which. Every cell type with two donors of five cells
in each group is one comparison. The false discovery rate is the share of false genes among those
listed, averaged over comparisons (0 where none is listed), and pooled.

    posterior     donors as replicates, technique taken out by the model     invatlas
    pseudobulk    DESeq2 on sums of counts, |lfc| > threshold
    cells         posterior over cells alone: random pairs of cells, as scVI's change mode
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from peers import describe_environment, limit_threads, say, silence, write_json

DESIGNS = {
    "8 and 8 donors": {"donors": 16, "diseases": 2, "batches": 4},
    "4 and 4 donors": {"donors": 12, "diseases": 3, "batches": 4},
}
NOMINAL = (0.05, 0.1)
PAIRS = 1000
CELLS_OF_TRUTH = 12_000


def compare_cells(atlas, z, groups: list[np.ndarray], threshold: float) -> pd.DataFrame:
    """P(|lfc| > threshold) of a random cell of one group against one of the other."""
    import torch

    from invatlas.tasks.expression import decode_biology
    from invatlas.tasks.gene_effects import expected_false_discoveries

    generator = np.random.default_rng(0)
    with torch.inference_mode():
        one, two = (
            decode_biology(atlas, z.split(len(z.mean))[0].sample()[generator.choice(rows, PAIRS)])
            for rows in map(np.flatnonzero, groups)
        )
    change = np.log2(one.numpy() / two.numpy())
    rate = expected_false_discoveries((np.abs(change) > threshold).mean(0))
    return pd.DataFrame(
        {"log2_fold_change": change.mean(0), "false_discovery_rate": rate}, index=atlas.genes
    )


def measure(design: str, seed: int, cells: int, genes: int, threshold: float) -> list[dict]:
    """Fit one study and compare all of its cell types."""
    import torch

    import invatlas as ia
    from invatlas.tasks.embed import match_counts
    from invatlas.training.posterior import encode_cells

    study = ia.simulate(cells=cells, genes=genes, truth=False, seed=seed, **DESIGNS[design])
    more = ia.simulate(cells=CELLS_OF_TRUTH, genes=genes, seed=seed, **DESIGNS[design])
    people = [more.obs[name].to_numpy() for name in ("cell_type", "disease", "donor")]
    truth = pd.DataFrame(more.layers["expression_true"], columns=more.var_names)
    truth = np.log2(truth.groupby(people).mean())
    planted = study.uns["differential_genes"].set_index(["cell_type", "disease"])["gene"]
    settings = ia.Settings(genes=0, spared_donors=0.0, seed=seed)
    atlas = ia.fit(study, ["cell_type", "disease"], ["donor", "batch"], settings=settings)
    torch.manual_seed(seed)
    z = encode_cells(atlas.model, match_counts(atlas, study, None, 0.5)[0], "invariant")
    rows = []
    for kind in study.obs["cell_type"].cat.categories:
        for disease in sorted(set(study.obs["disease"]) - {"healthy"}):
            groups = [
                ((study.obs["cell_type"] == kind) & (study.obs["disease"] == value)).to_numpy()
                for value in (disease, "healthy")
            ]
            change = truth.loc[kind].loc[disease].mean() - truth.loc[kind].loc["healthy"].mean()
            listed = set(planted.loc[[(kind, disease)]]) if (kind, disease) in planted else set()
            true = (change.abs() > threshold) & change.index.isin(listed)
            asked = {"threshold": threshold}
            try:
                with silence():
                    tables = {
                        "posterior": ia.differential_expression(atlas, study, *groups, **asked),
                        "pseudobulk": ia.differential_expression(
                            atlas, study, *groups, method="pseudobulk", **asked
                        ),
                        "cells": compare_cells(atlas, z, groups, threshold),
                    }
            except ia.InvatlasError as error:
                say(f"left out: {kind}, {disease}: {error}")
                continue
            for method, table in tables.items():
                found = table.loc[change.index]
                for nominal in NOMINAL:
                    hit = found["false_discovery_rate"] <= nominal
                    rows.append(
                        {
                            "design": design,
                            "seed": seed,
                            "cell_type": kind,
                            "disease": disease,
                            "method": method,
                            "nominal": nominal,
                            "listed": int(hit.sum()),
                            "false": int((hit & ~true).sum()),
                            "true": int(true.sum()),
                            "error": float(
                                np.sqrt(((found["log2_fold_change"] - change) ** 2).mean())
                            ),
                        }
                    )
    return rows


def summarise(rows: list[dict]) -> pd.DataFrame:
    """Rates and recovery by design, method and nominal rate."""
    table = pd.DataFrame(rows)
    table["rate"] = table["false"] / table["listed"].clip(lower=1)
    by = table.groupby(["design", "method", "nominal"])
    return pd.DataFrame(
        {
            "comparisons": by.size(),
            "mean_fdr": by["rate"].mean(),
            "pooled_fdr": by["false"].sum() / by["listed"].sum().clip(lower=1),
            "recovered": (by["listed"].sum() - by["false"].sum()) / by["true"].sum(),
            "listed": by["listed"].sum(),
            "error_of_lfc": by["error"].mean(),
        }
    ).reset_index()


def main() -> None:
    """Measure each design and seed, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--designs", default=",".join(DESIGNS))
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--threshold", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    rows: list[dict] = []
    for seed in map(int, arguments.seeds.split(",")):
        for design in arguments.designs.split(","):
            rows += measure(design, seed, arguments.cells, arguments.genes, arguments.threshold)
            say(f"seed {seed}, {design}")
            if arguments.json:
                content = {"environment": describe_environment(), "rows": rows}
                write_json(arguments.json, content)
    say(summarise(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
