"""What is believed of the network before it is fitted: edges of motifs, binding, a database.

    prior[r, t] = +w   r is believed to raise t        0   no opinion
                  -w   r is believed to lower t

A prior says where to look first; it never forbids an edge.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from invatlas.errors import CovariateError, GeneError

FloatArray = NDArray[np.float64]
SIGNS = {"+": 1.0, "-": -1.0, "1": 1.0, "-1": -1.0, "+1": 1.0}


def read_prior(
    prior: pd.DataFrame | str, adata: AnnData, regulators: NDArray[np.bool_]
) -> tuple[FloatArray, list[str]]:
    """Matrix of the prior, (regulator, target) over all genes, and what was left out of it.

    Parameters
    ----------
    prior
        Edges with the columns ``regulator`` and ``target``, and ``weight`` (a number, negative
        where it lowers) or ``sign`` (+ or -) where known; or the key of a matrix in varm, whose
        rows are regulators.
    adata
        The genes, and the varm.
    regulators
        Which genes may regulate, (gene,); edges of others are left out.

    Raises
    ------
    CovariateError
        If a column is absent, or a weight or sign is none.
    GeneError
        If no edge is left.
    """
    notes: list[str] = []
    if isinstance(prior, str):
        matrix = _read_matrix(prior, adata)
    else:
        matrix, notes = _read_edges(prior, list(map(str, adata.var_names)))
    others = np.count_nonzero(matrix[~regulators])
    if others:
        notes.append(f"{others:,} edges of the prior network come from genes that do not regulate.")
        matrix[~regulators] = 0
    if not matrix.any():
        raise GeneError(
            "The prior network has no edge left: " + (" ".join(notes) or "every weight is 0.")
        )
    return matrix, notes


def _read_matrix(key: str, adata: AnnData) -> FloatArray:
    if key not in adata.varm:
        raise CovariateError(
            f"varm has no prior network {key!r}; it has {', '.join(adata.varm) or 'nothing'}. A "
            "prior network is a table of edges (regulator, target), or the name of one in varm."
        )
    found = adata.varm[key]
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    matrix = np.array(found, dtype=np.float64)
    if matrix.shape != (adata.n_vars, adata.n_vars):
        raise CovariateError(
            f"The prior network {key!r} in varm has the shape {matrix.shape}; it must have a row "
            f"and a column for each of {adata.n_vars} genes."
        )
    if not np.isfinite(matrix).all():
        raise CovariateError(f"The prior network {key!r} in varm holds a weight that is no number.")
    return matrix


def _read_edges(edges: pd.DataFrame, genes: list[str]) -> tuple[FloatArray, list[str]]:
    if absent := [name for name in ("regulator", "target") if name not in edges.columns]:
        raise CovariateError(
            f"The prior network has no column {absent[0]!r}; it has "
            f"{', '.join(map(str, edges.columns)) or 'none'}. It needs regulator and target, and "
            "may have weight or sign."
        )
    place = pd.Series(np.arange(len(genes)), index=genes)
    rows, columns = (
        edges[name].astype(str).map(place).to_numpy(np.float64) for name in ("regulator", "target")
    )
    known = np.isfinite(rows) & np.isfinite(columns)
    notes = []
    if not known.all():
        first = edges[~known].iloc[0]
        notes.append(
            f"{(~known).sum():,} of {len(edges):,} edges of the prior network name genes that were "
            f"not measured, such as {first['regulator']} to {first['target']}."
        )
    matrix = np.zeros((len(genes), len(genes)))
    place_of = rows[known].astype(int), columns[known].astype(int)
    matrix[place_of] = _read_weights(edges)[known]
    return matrix, notes


def _read_weights(edges: pd.DataFrame) -> FloatArray:
    """Signed weight of each edge; 1 where the table has neither weight nor sign."""
    weights = np.ones(len(edges))
    if "weight" in edges.columns:
        weights = pd.to_numeric(edges["weight"], errors="coerce").to_numpy(np.float64)
        if not np.isfinite(weights).all():
            odd = edges["weight"][~np.isfinite(weights)].iloc[0]
            raise CovariateError(f"The prior network has the weight {odd!r}, which is no number.")
    if "sign" in edges.columns:
        signs = edges["sign"].astype(str).str.strip().map(SIGNS).to_numpy(np.float64)
        if not np.isfinite(signs).all():
            odd = edges["sign"][~np.isfinite(signs)].iloc[0]
            raise CovariateError(f"The prior network has the sign {odd!r}; it may be + or -.")
        weights = np.abs(weights) * signs
    return weights
