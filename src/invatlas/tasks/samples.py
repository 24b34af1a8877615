"""Cells of an atlas by what they were taken from: a sample is one donor in one condition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.columns import text_values
from invatlas.errors import CovariateError, SettingsError
from invatlas.tasks.embed import embed


@dataclass(frozen=True)
class Samples:
    """Cells whose donor, condition and cell type are known.

    Attributes
    ----------
    z
        z_I, (cell, latent).
    rows
        Positions of the cells in the data, (cell,).
    sample, cell_type
        Codes, (cell,).
    table
        ``sample``, ``donor`` and ``condition`` of every sample, in the order of the codes.
    cell_types
        Their names, in the order of the codes.
    doubt
        What a reader of a comparison of conditions should know first; nothing by default.
    met
        How many samples are of a donor the atlas was fitted to.
    """

    z: np.ndarray
    rows: np.ndarray
    sample: np.ndarray
    cell_type: np.ndarray
    table: pd.DataFrame
    cell_types: list[str]
    doubt: str = ""
    met: int = 0


def gather_samples(
    atlas: Atlas,
    adata: AnnData,
    donor: str | None,
    condition: str | None,
    cell_type: str | None,
    layer: str | None = None,
    gene_column: str | None = None,
) -> Samples:
    """Embed cells and tell their samples.

    By default the donor is the technical covariate with most values, the cell type the first and
    the condition the second biological covariate with categories, or the first beside the other
    one where that is named; without a second one all cells are of one condition.
    """
    check_atlas(atlas)
    donor = donor or name_donor(atlas)
    cell_type, condition = name_biology(atlas, cell_type, condition)
    labels = pd.DataFrame({"donor": text_values(adata.obs, donor)})
    labels["condition"] = text_values(adata.obs, condition) if condition else "all"
    labels["cell_type"] = text_values(adata.obs, cell_type)
    rows = np.flatnonzero(labels.notna().all(axis=1))
    if not len(rows):
        names = ", ".join(filter(None, (donor, condition, cell_type)))
        raise CovariateError(f"No cell has a value of each of {names}.")
    labels = labels.iloc[rows]
    of_sample = labels.groupby(["donor", "condition"], sort=True)
    table = of_sample.size().index.to_frame(index=False)
    repeated = table["donor"].duplicated(keep=False)
    table.insert(0, "sample", table["donor"])
    table.loc[repeated, "sample"] = table["donor"] + " " + table["condition"]
    kind = pd.Categorical(labels["cell_type"])
    z = embed(atlas, adata[rows], layer=layer, gene_column=gene_column).astype(float)
    sample, code = of_sample.ngroup().to_numpy(), np.asarray(kind.codes, dtype=np.int64)
    known = {c.name: c.categories for c in atlas.schema.technical}.get(donor, ())
    met = int(table["donor"].isin(known).sum())
    doubt = _doubt(atlas, met, table, donor, condition)
    return Samples(z, rows, sample, code, table, list(kind.categories), doubt, met)


def name_biology(
    atlas: Atlas, cell_type: str | None, condition: str | None
) -> tuple[str, str | None]:
    """Columns of cell types and conditions, by default the first two that are called."""
    called = [covariate.name for covariate in atlas.schema.called]
    cell_type = cell_type or next((name for name in called if name != condition), called[0])
    return cell_type, condition or next((name for name in called if name != cell_type), None)


def _doubt(atlas: Atlas, met: int, table: pd.DataFrame, donor: str, condition: str | None) -> str:
    """Say that z_I was taught the condition of these donors, if it was."""
    if not met or condition not in {c.name for c in atlas.schema.biological}:
        return ""
    return (
        f"{met} of {len(table)} samples are of a {donor} the atlas was fitted to, with {condition} "
        f"among what z_I is to tell, so cells of one {condition} lie together there even where "
        "nothing else differs. Ask donors that were kept from the fit."
    )


def name_donor(atlas: Atlas) -> str:
    """The technical covariate with most values, of those that have categories."""
    named = [covariate for covariate in atlas.schema.technical if not covariate.knots]
    if not named:
        raise SettingsError(
            "The atlas has no technical covariate with categories; name the column of donors."
        )
    return max(named, key=lambda covariate: len(covariate.categories)).name
