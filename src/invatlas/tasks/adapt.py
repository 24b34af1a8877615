"""New donors and batches: learn what they do to a cell, without touching anything else.

A query needs no adaptation to be embedded or called: encoders see counts alone, so its z_I is
the same before and after, bit for bit. What is learnt is how the new laboratory looks: p(z_S | e)
and the decoder's vector of each new value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.columns import text_values
from invatlas.data.counts import check_cells
from invatlas.data.covariates import Covariate, Schema
from invatlas.data.minibatch import Cells
from invatlas.errors import CovariateError, DataError
from invatlas.model.invae import Model
from invatlas.model.priors import CovariateTable
from invatlas.tasks.embed import match_counts
from invatlas.training.adaptation import Growth, adapt_rows, grow
from invatlas.training.combinations import tabulate_values

MINIMUM_OVERLAP = 0.95


def adapt(
    atlas: Atlas,
    adata: AnnData,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> Atlas:
    """Teach an atlas the technical values of new cells.

    Parameters
    ----------
    atlas
        A fitted atlas; it is left as it is.
    adata
        Raw counts (cell, gene), and in obs the technical columns of the atlas that are known.
        Cells without a new value are passed over.
    layer, gene_column
        As in :func:`invatlas.embed`.
    minimum_overlap
        Share of the reference's counts that the common genes must have held. A missing gene
        counts as zero, which the new values would learn, so this is stricter than elsewhere.

    Returns
    -------
    Atlas
        The atlas with the new values after its own; every weight it had is bit-identical.
        ``record["adapted"]`` says what was added; :func:`undo_adaptation` takes it away.

    Raises
    ------
    CovariateError
        If the atlas has no technical covariate, obs has none of their columns, or no new value.
    DataError
        If the atlas has neither spurious latents nor technical values in its decoder.
    GeneError, CountsError
        As :func:`invatlas.embed`.
    """
    check_atlas(atlas)
    check_cells(adata)
    known = atlas.schema.technical
    added = [_new_values(covariate, adata) for covariate in known]
    if not atlas.settings.spurious_latents and not atlas.settings.technical_in_decoder:
        raise DataError(
            "There is nothing to adapt: the atlas has no spurious latents, and its decoder is not "
            "told the technical values."
        )
    columns = ", ".join(covariate.name for covariate in known) or "none"
    if not any(covariate.name in adata.obs.columns for covariate in known):
        raise CovariateError(
            f"There is nothing to adapt to: obs has none of the atlas's technical columns "
            f"({columns}); it has {', '.join(map(str, adata.obs.columns)) or 'none'}."
        )
    if not any(added):
        raise CovariateError(
            f"There is nothing to adapt to: obs has no value the atlas lacks in its technical "
            f"columns ({columns})."
        )
    technical = tuple(
        replace(covariate, categories=covariate.categories + values)
        for covariate, values in zip(known, added, strict=True)
    )
    schema = Schema(atlas.schema.biological, technical)
    growth = Growth(_sizes(known), _sizes(technical))
    biological_codes, technical_codes = schema.encode(adata.obs)
    new = (technical_codes >= np.array(growth.before)).any(1)
    biological_codes, technical_codes = biological_codes[new], technical_codes[new]
    source, overlap = match_counts(atlas, adata[new], layer, minimum_overlap, gene_column)
    cells = Cells(source, biological_codes, technical_codes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(atlas.settings.seed)
        model = _make_model(atlas, _extend_table(atlas, technical, technical_codes))
        grow(atlas.model, model, growth)
        before, after = adapt_rows(
            model, cells, growth, atlas.settings.divergence_weight, atlas.settings.seed
        )
    step = {
        "cells": source.n_cells,
        "values": {c.name: list(new) for c, new in zip(known, added, strict=True) if new},
        "combinations": len(model.prior_spurious.combinations)
        - len(atlas.model.prior_spurious.combinations),
        "missing_genes": overlap.n_missing,
        "reconstruction": {"before": before, "after": after},
    }
    record: dict[str, Any] = {**atlas.record, "adapted": [*atlas.record["adapted"], step]}
    return replace(atlas, model=model, schema=schema, record=record)


def undo_adaptation(atlas: Atlas) -> Atlas:
    """Take away what the last :func:`adapt` added; the atlas before it, bit for bit.

    An alignment made since (:func:`invatlas.align`) is kept.

    Raises
    ------
    DataError
        If the atlas was never adapted.
    """
    check_atlas(atlas)
    if not atlas.record["adapted"]:
        raise DataError("The atlas was never adapted: there is nothing to undo.")
    *earlier, last = atlas.record["adapted"]
    technical = tuple(
        replace(
            c, categories=c.categories[: len(c.categories) - len(last["values"].get(c.name, []))]
        )
        for c in atlas.schema.technical
    )
    prior = atlas.model.prior_spurious
    n = len(prior.combinations) - last["combinations"]
    table = tabulate_values(technical, prior.combinations[:n].clone(), prior.weights[:n].clone())
    with torch.random.fork_rng(devices=[]):
        model = _make_model(atlas, table)
    growth = Growth(_sizes(technical), _sizes(atlas.schema.technical))
    shrunk = model.state_dict()
    for name, value in atlas.model.state_dict().items():
        kept = growth.kept(name, len(value)) if value.dim() else None
        if kept is not None:
            shrunk[name] = value[kept].clone()
        elif shrunk[name].shape == value.shape:
            shrunk[name] = value.clone()
    model.load_state_dict(shrunk)
    record = {**atlas.record, "adapted": earlier}
    return replace(
        atlas,
        model=model.eval(),
        schema=Schema(atlas.schema.biological, tuple(technical)),
        record=record,
    )


def _new_values(covariate: Covariate, adata: AnnData) -> tuple[str, ...]:
    if covariate.name not in adata.obs.columns or covariate.knots:
        return ()
    met = set(text_values(adata.obs, covariate.name).dropna())
    return tuple(sorted(met - set(covariate.categories)))


def _sizes(covariates: Sequence[Covariate]) -> list[int]:
    return [len(covariate.categories) for covariate in covariates]


def _extend_table(
    atlas: Atlas, technical: Sequence[Covariate], codes: np.ndarray
) -> CovariateTable:
    """Combinations the new cells may have after those there were, at the frequency they come with.

    What is missing in a new cell may be whatever the atlas or other new cells have in its place.
    """
    prior = atlas.model.prior_spurious
    before = np.array(_sizes(atlas.schema.technical))
    found, times = np.unique(codes, axis=0, return_counts=True)
    pool = np.concatenate([prior.combinations.numpy(), found[(found >= 0).all(1)]])
    rows, weights = [], []
    for row, n in zip(found, times, strict=True):
        filled = np.unique(np.where(row < 0, pool, row), axis=0)
        filled = filled[(filled >= before).any(1)]
        rows.append(filled)
        weights.append(np.full(len(filled), n / len(filled)))
    combinations, place = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    weight = np.bincount(place.ravel(), np.concatenate(weights)) / atlas.record["cells"]
    return tabulate_values(
        technical,
        torch.cat([prior.combinations, torch.from_numpy(combinations)]),
        torch.cat([prior.weights, torch.from_numpy(weight.astype(np.float32))]),
    )


def _make_model(atlas: Atlas, technical: CovariateTable) -> Model:
    prior = atlas.model.prior_invariant
    biological = tabulate_values(atlas.schema.biological, prior.combinations, prior.weights)
    technical = replace(technical, cells=torch.zeros(sum(technical.sizes)))
    median = atlas.model.encode.median_library_size.item()
    return Model(len(atlas.genes), biological, technical, median, atlas.settings)
