"""What cells would look like, were they of another disease, donor or age.

    z_I, z_S ~ q(z | x)             abduction: what the cell is
    z'_I = T(z_I)                   action: T the optimal transport of z_I given d to that given d'
    x' = E[x' | x, a(z), a(z')]     prediction: the cell keeps its own residual (likelihoods.py)

after Pearl (2009, Causality, section 7.1). T is that of ``invatlas.model.transport``, between what
the cells of d and of d' are (``invatlas.model.measured``). A technical change moves z_S between
the priors of the laboratories and tells the decoder the new value; ``reference`` moves z_S to
their average and tells the decoder none. Values together that nobody measured so, such as "A+B",
add up in a and not in z (``invatlas.tasks.combined``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.counts import CountSource
from invatlas.data.covariates import REFERENCE
from invatlas.data.genes import GeneOverlap
from invatlas.errors import CovariateError, SettingsError
from invatlas.model.measured import Additive
from invatlas.model.priors import DiagonalGaussian
from invatlas.record import describe_reserved
from invatlas.tasks.annotate import Calling, describe
from invatlas.tasks.averages import PER
from invatlas.tasks.change import (
    Change,
    Values,
    apply_change,
    find_strange,
    move_biology,
    move_technique,
    read_values,
    split_moments,
    technical_codes,
)
from invatlas.tasks.combined import check_parts, share_of_sum, split_change
from invatlas.tasks.differential import LEAST_THRESHOLD, THRESHOLD
from invatlas.tasks.embed import LATENTS, MINIMUM_OVERLAP, find_counted, match_counts
from invatlas.tasks.prediction import Action, Cells, Route, pool
from invatlas.training.posterior import encode_cells
from invatlas.wording import suggest

SAMPLES = 20


def counterfactual(
    atlas: Atlas,
    adata: AnnData,
    change: Change,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
    log_normalised: bool = False,
    threshold: float = THRESHOLD,
    samples: int = SAMPLES,
    seed: int = 0,
    others: Sequence[Atlas] = (),
) -> AnnData:
    """Say what cells would look like, had they other values of some covariates.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts (cell, gene). What a cell is, is read from the columns of obs that the atlas
        knows; a biological value that is missing there is called as by :func:`invatlas.annotate`.
    change
        The value each covariate is to have: ``{"condition": "stim"}``. A number where it is
        continuous; ``"A+B"`` adds the log fold changes of two values, as of a pair of
        perturbations, as far as the combinations that were measured have those of their parts
        (Ahlmann-Eltze et al. 2025, Nature Methods 22); ``"reference"`` takes what a technical
        covariate with categories does away, unless it has a value of that very name, which is then
        meant: a warning says so.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.
    log_normalised
        Whether the layers hold log(1 + counts per 10,000) instead of counts.
    threshold
        Change of an average, in log2, beyond which a gene counts as different; 0.01 or more.
    samples
        Draws of the latents, 2 or more.
    seed
        Seed of the draws.
    others
        Fits of the same study with other seeds. Means are then over all fits, and deviations,
        intervals and probabilities hold how far the fits disagree. Which cells are supported, and
        the draw in X, are told by ``atlas``.

    Returns
    -------
    AnnData
        The cells with their obs, and the genes of the atlas. Layers ``counterfactual`` (expected
        counts, which sum to each cell's own library size) and ``counterfactual_sd`` (their
        standard deviation over the draws), float32; X holds one draw of whole counts, which
        scatter as counts do. ``obs["counterfactual_supported"]`` is false of cells that the atlas
        calls new, whose own values it does not know, or that have no counts.
        Both layers are dense: 8 bytes a cell and gene. var holds counts per 10,000 averaged over
        the supported cells, ``measured_mean`` and ``counterfactual_mean`` with a 90 % interval
        (``_low``, ``_high``), and how they differ: ``log2_fold_change`` and its ``_sd``,
        ``probability`` (that its size is over the threshold), ``false_discovery_rate`` (expected
        in the list down to this gene). These say what the model holds, not whether it is right.

    Raises
    ------
    CovariateError
        If the change names no covariate of the atlas or a value it cannot become, or the atlas
        knows none of the cells.
    SettingsError
        If ``samples`` is less than 2 or ``threshold`` less than 0.01, or another fit has other
        genes or covariates.
    GeneError, CountsError
        As :func:`invatlas.embed`.

    Notes
    -----
    This is a statement about causes only as far as z_I and z_S hold all that the changed covariate
    and the counts have in common: nothing unmeasured may decide both which cells had the new value
    and what they express, beyond the covariates of the atlas. Combinations that were never measured
    are taken to be, in the latents, the sum of what their values add.
    """
    check_atlas(atlas)
    if not isinstance(samples, int) or samples < 2:
        raise SettingsError(f"samples is {samples!r}; a deviation takes a whole number from 2.")
    if not isinstance(threshold, int | float) or not LEAST_THRESHOLD <= threshold < np.inf:
        raise SettingsError(
            f"threshold is {threshold!r}; it takes {LEAST_THRESHOLD} or more, in log2."
        )
    _check_names(atlas, change)
    _warn_of_reserved(atlas, change)
    _check_fits(atlas, others)
    source, overlap = match_counts(atlas, adata, layer, minimum_overlap, gene_column)
    q, called = _call(atlas, source, overlap)
    action, known = _plan(atlas, adata.obs, change, called)
    counts = source.matrix.getnnz(axis=1) > 0
    supported = known & counts & ~called["novelty_flag"].to_numpy()
    if not supported.any():
        unknown = _say_unknown(atlas, adata.obs, change)
        raise CovariateError(
            f"None of {adata.n_obs} cells can be changed: {(~counts).sum()} have no counts, "
            f"{called['novelty_flag'].sum()} are called new{unknown}."
        )
    counted = torch.from_numpy(find_counted(atlas, adata.var, gene_column))
    predicted = [action.predict(atlas.model, Cells(source, q, counted, supported), samples, seed)]
    for other in others:
        q, called = _call(other, source, overlap)
        action, _ = _plan(other, adata.obs, change, called)
        cells = Cells(source, q, counted, supported)
        predicted.append(action.predict(other.model, cells, samples, seed))
    found = pool(predicted)
    result = AnnData(
        found.drawn,
        obs=adata.obs.assign(counterfactual_supported=supported),
        var=found.averages.describe(pd.Index(atlas.genes), threshold),
    )
    mean, deviation = found.mean, found.deviation
    if log_normalised:
        scale = (PER / source.library_size)[:, None]
        mean, deviation = np.log1p(scale * mean), scale * deviation / (1 + scale * mean)
    result.layers["counterfactual"], result.layers["counterfactual_sd"] = mean, deviation
    return result


def _call(
    atlas: Atlas, source: CountSource, overlap: GeneOverlap
) -> tuple[dict[str, DiagonalGaussian], pd.DataFrame]:
    """Latents of some cells, and what they are called."""
    q = {which: encode_cells(atlas.model, source, which) for which in LATENTS}
    return q, describe(atlas, q["invariant"], Calling(), overlap)


def _check_fits(atlas: Atlas, others: Sequence[Atlas]) -> None:
    for number, other in enumerate(others, 1):
        check_atlas(other)
        if other.schema != atlas.schema:
            what = "covariates or values"
        elif other.genes != atlas.genes:
            what = "genes (fit it with the atlas's own)"
        else:
            continue
        raise SettingsError(
            f"Of the {len(others)} other fits, number {number} has other {what} than the atlas; "
            "others are fits of the same study with other seeds."
        )


@dataclass(frozen=True)
class Start:
    """What cells are before a change, each thing read when it is first asked for."""

    atlas: Atlas
    obs: pd.DataFrame
    biological: Values

    @cached_property
    def technical(self) -> Values:
        """Technical values."""
        return read_values(self.atlas.schema.technical, self.obs)

    @cached_property
    def codes(self) -> np.ndarray:
        """Codes of the technical covariates (cell, covariate)."""
        return self.atlas.schema.encode(self.obs)[1]

    @cached_property
    def added(self) -> Additive:
        """What biological values add to z_I."""
        return split_moments(self.atlas.model, self.biological)

    def route(self, change: Change) -> Route:
        """Where a change takes the cells."""
        schema, model, moves = self.atlas.schema, self.atlas.model, {}
        if any(covariate.name in change for covariate in schema.biological):
            after = apply_change(schema.biological, self.biological, change)
            moves["invariant"] = move_biology(model, self.added, self.biological, after)
        if any(covariate.name in change for covariate in schema.technical):
            after = apply_change(schema.technical, self.technical, change, model.prior_spurious)
            moves["spurious"] = move_technique(model, self.technical, after)
        told = technical_codes(schema.technical, self.codes, change)
        return Route(moves, torch.from_numpy(told))

    def share(self, name: str, parts: Sequence[str]) -> torch.Tensor:
        """How much of the sum of some values' effects there is (cell,); technical ones add."""
        schema = self.atlas.schema
        biological = name in [covariate.name for covariate in schema.biological]
        covariates = schema.biological if biological else schema.technical
        now = self.biological if biological else self.technical
        column = [covariate.name for covariate in covariates].index(name)
        check_parts(covariates[column], parts, now.weights[column])
        share = np.ones(len(now.weights[column]))
        if biological:
            share = share_of_sum(self.atlas, self.added, now, column)
        return torch.from_numpy(share[now.kind]).float()


def _plan(
    atlas: Atlas, obs: pd.DataFrame, change: Change, called: pd.DataFrame
) -> tuple[Action, np.ndarray]:
    """What happens to the cells, and which of them the atlas knows enough of."""
    schema = atlas.schema
    start = Start(atlas, obs, read_values(schema.biological, obs, called))
    known = start.biological.known
    if any(covariate.name in change for covariate in schema.technical):
        known = known & start.technical.known
    single, combined = split_change(schema.covariates, change)
    parts = []
    for name, values in combined.items():
        share = start.share(name, values)
        parts += [(share, start.route({**single, name: value})) for value in values]
    return Action(torch.from_numpy(start.codes), start.route(single), tuple(parts)), known


def _check_names(atlas: Atlas, change: Change) -> None:
    names = [covariate.name for covariate in atlas.schema.covariates]
    if not isinstance(change, Mapping):
        raise CovariateError(f"The change is {change!r}; it takes a value by covariate.")
    if not change:
        raise CovariateError(f"There is nothing to change; the covariates are {', '.join(names)}.")
    if unknown := [name for name in change if name not in names]:
        raise CovariateError(
            f"{unknown[0]!r} is no covariate of the atlas; they are {', '.join(names)}."
            f"{suggest(str(unknown[0]), names)}"
        )


def _warn_of_reserved(atlas: Atlas, change: Change) -> None:
    """Warn where the name of a value is asked for that means something else in other atlases."""
    asked = [
        one for one in atlas.schema.technical if str(change.get(one.name, "")).strip() == REFERENCE
    ]
    for sentence in describe_reserved(replace(atlas.schema, technical=tuple(asked))):
        warnings.warn(sentence, stacklevel=3)


def _say_unknown(atlas: Atlas, obs: pd.DataFrame, change: Change) -> str:
    """Say which columns hold values that the atlas does not know, with one of them."""
    asked = list(atlas.schema.biological)
    if any(covariate.name in change for covariate in atlas.schema.technical):
        asked += atlas.schema.technical
    told = ""
    for covariate in asked:
        if covariate.name not in obs.columns:
            told += f", obs has no column {covariate.name}"
        elif strange := list(obs[covariate.name][find_strange(covariate, obs)].iloc[:1]):
            n = int(find_strange(covariate, obs).sum())
            told += f", {n} have a {covariate.name} it does not know, such as {strange[0]!s}"
    return told
