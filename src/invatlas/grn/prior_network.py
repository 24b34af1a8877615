"""What is believed of the network before it is fitted: edges of motifs, binding, a database.

    prior[r, t] = +w   r is believed to drive t, and to raise it where the sign is known
                  -w   r is believed to lower t
                   0   no opinion

A prior says where to look first; it never forbids an edge. Edges from a gene to itself are no part
of a network, and are left out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from invatlas.errors import CovariateError, GeneError, SettingsError
from invatlas.wording import count_noun

FloatArray = NDArray[np.float64]
SIGNS = {"+": 1.0, "-": -1.0, "": 0.0}


def read_prior(
    prior: pd.DataFrame | str, adata: AnnData, regulators: NDArray[np.bool_]
) -> tuple[FloatArray, list[str]]:
    """Matrix of the prior, (regulator, target) over all genes, and what was left out of it.

    Parameters
    ----------
    prior
        Edges with the columns ``regulator`` and ``target``, and ``weight`` (a number, negative
        where it lowers; 0 is no edge) or ``sign`` (+, -, 1, -1; 0 or nothing where it is not
        known), so also the edges of a network; or the key of a matrix in varm, whose rows are
        regulators.
    adata
        The genes, and the varm.
    regulators
        Which genes may regulate, (gene,); edges of others are left out, and those of a gene to
        itself.

    Raises
    ------
    SettingsError
        If the prior is neither a table nor a name.
    CovariateError
        If a column or every row is absent, or a weight or sign is none.
    GeneError
        If no edge is left.
    """
    notes: list[str] = []
    left_out: list[str] = []
    if isinstance(prior, str):
        matrix = _read_matrix(prior, adata)
    elif isinstance(prior, pd.DataFrame):
        matrix, notes, left_out = _read_edges(prior, list(map(str, adata.var_names)))
    else:
        raise SettingsError(
            f"prior_network is {prior!r} ({type(prior).__name__}); it takes a table of edges "
            "(regulator, target), or the name of a matrix in varm."
        )
    if themselves := int(np.count_nonzero(matrix.diagonal())):
        left_out.append(f"{count_noun(themselves, 'edge')} from a gene to itself")
        np.fill_diagonal(matrix, 0)
    if others := int(np.count_nonzero(matrix[~regulators])):
        left_out.append(f"{count_noun(others, 'edge')} from genes that do not regulate")
        matrix[~regulators] = 0
    if not matrix.any():
        why = "; ".join(left_out) or "every weight is 0"
        raise GeneError(f"The prior network has no edge left: {why}.")
    if left_out:
        notes.append(f"Left out of the prior network: {'; '.join(left_out)}.")
    return matrix, notes


def _read_matrix(key: str, adata: AnnData) -> FloatArray:
    if key not in adata.varm:
        raise CovariateError(
            f"varm has no prior network {key!r}; it has {', '.join(adata.varm) or 'nothing'}. A "
            "prior network is a table of edges (regulator, target), or the name of one in varm."
        )
    found = adata.varm[key]
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    try:
        matrix = np.array(found, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.full(found.shape, np.nan)
    if matrix.shape != (adata.n_vars, adata.n_vars):
        raise CovariateError(
            f"The prior network {key!r} in varm has the shape {matrix.shape}; it must have a row "
            f"and a column for each of {adata.n_vars} genes."
        )
    if not np.isfinite(matrix).all():
        raise CovariateError(f"The prior network {key!r} in varm holds a weight that is no number.")
    return matrix


def _read_edges(edges: pd.DataFrame, genes: list[str]) -> tuple[FloatArray, list[str], list[str]]:
    """Matrix, what to know of it, and what is left out of it."""
    if absent := [name for name in ("regulator", "target") if name not in edges.columns]:
        raise CovariateError(
            f"The prior network has no column {absent[0]!r}; it has "
            f"{', '.join(map(str, edges.columns)) or 'none'}. It needs regulator and target, and "
            "may have weight or sign."
        )
    if edges.empty:
        raise CovariateError(
            f"The prior network has the columns {', '.join(map(str, edges.columns))} and no row; "
            "each row is an edge."
        )
    weights = _read_weights(edges)
    notes, left_out = [], []
    place = pd.Series(np.arange(len(genes)), index=genes)
    rows, columns = (
        edges[name].astype(str).map(place).to_numpy(np.float64) for name in ("regulator", "target")
    )
    known = np.isfinite(rows) & np.isfinite(columns)
    if not known.all():
        first = edges[~known].iloc[0]
        left_out.append(
            f"{(~known).sum():,} of {len(edges):,} edges with a gene that was not "
            f"measured, such as {first['regulator']} to {first['target']}"
        )
    raised, lowered = (np.zeros((len(genes), len(genes))) for _ in range(2))
    place_of = rows[known].astype(int), columns[known].astype(int)
    np.maximum.at(raised, place_of, weights[known])
    np.maximum.at(lowered, place_of, -weights[known])
    if both := np.argwhere((raised > 0) & (lowered > 0)).tolist():
        source, target = both[0]
        notes.append(
            f"Believed with no sign, since rows of the prior network differ in it: "
            f"{count_noun(len(both), 'edge')}, such as {genes[source]} to {genes[target]}."
        )
    return np.where(raised > 0, np.maximum(raised, lowered), -lowered), notes, left_out


def _read_weights(edges: pd.DataFrame) -> FloatArray:
    """Signed weight of each edge; 1 where it has neither weight nor sign."""
    weights = np.ones(len(edges))
    if "weight" in edges.columns:
        text = _as_text(edges["weight"])
        weights = pd.to_numeric(text.where(text != "", "1"), errors="coerce").to_numpy(np.float64)
        if not np.isfinite(weights).all():
            odd = text[~np.isfinite(weights)].iloc[0]
            raise CovariateError(
                f"The prior network has the weight {odd!r}; it takes a number, or nothing where "
                "it is not known."
            )
    if "sign" in edges.columns:
        text = _as_text(edges["sign"])
        numbers = pd.to_numeric(text, errors="coerce")
        signs = text.map(SIGNS).fillna(numbers.where(numbers.isin([1, -1, 0]))).to_numpy(np.float64)
        if not np.isfinite(signs).all():
            odd = text[~np.isfinite(signs)].iloc[0]
            raise CovariateError(
                f"The prior network has the sign {odd!r}; it takes +, -, 1, -1, or nothing (or 0) "
                "where it is not known."
            )
        weights = np.where(signs == 0, weights, np.abs(weights) * signs)
    return weights


def _as_text(column: pd.Series) -> pd.Series:
    """Values as text, empty where missing."""
    known = column.astype(object).where(column.notna(), "")
    return known.map(str).str.strip().reset_index(drop=True)
