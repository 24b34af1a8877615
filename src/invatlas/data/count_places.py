"""Where else in the data raw counts may be, if they are not where they were looked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

LOOKED_AT = 200  # cells, from the first to the last
FROM_RAW = (
    ".raw holds whole numbers. In Python, "
    "anndata.read_h5ad('FILE').raw.to_adata().write_h5ad('counts.h5ad') makes a file of them."
)


def advise(adata: AnnData, tried: str | None) -> str:
    """Say where counts seem to be instead of in the layer that was tried, None for X."""
    if tried is not None and _looks_counted(adata.X):
        return "X holds whole numbers: name no layer."
    found = [name for name in adata.layers if name != tried and _looks_counted(adata.layers[name])]
    found.sort(key=lambda name: "count" not in name.lower())  # spliced counts are not all there are
    if found:
        hold = "holds" if len(found) == 1 else "hold"
        return f"{', '.join(map(repr, found))} {hold} whole numbers: pass layer={found[0]!r}."
    none = f"No layer holds any; the layers are {list_layers(adata)}." if adata.layers else ""
    return advise_raw(adata) or none or "There are no layers, and no .raw with whole numbers."


def advise_raw(adata: AnnData) -> str:
    """Say how to come by the counts in .raw; nothing where none are there."""
    return FROM_RAW if adata.raw is not None and _looks_counted(adata.raw.X) else ""


def list_layers(adata: AnnData) -> str:
    """Names of the layers."""
    return ", ".join(adata.layers) or "none"


def _looks_counted(matrix: Any) -> bool:
    """Whether some cells of a matrix hold whole numbers from 0, and not only zeros."""
    if matrix is None or not np.issubdtype(matrix.dtype, np.number):
        return False
    some = matrix[:: max(1, matrix.shape[0] // LOOKED_AT)]
    values = some.data if sp.issparse(some) else np.asarray(some)
    if not np.isfinite(values).all() or not values.any():
        return False
    return bool((values >= 0).all() and (values == np.floor(values)).all())
