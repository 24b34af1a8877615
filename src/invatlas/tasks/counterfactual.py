"""What cells would look like, were they of another disease, donor or age.

    z_I, z_S ~ q(z | x)             abduction: what the cell is
    z'_I = T(z_I)                   action: T the optimal transport of z_I given d to that given d'
    x' = E[x' | x, a(z), a(z')]     prediction: the cell keeps its own residual (likelihoods.py)

after Pearl (2009, Causality, section 7.1). T is that of ``invatlas.model.transport``, between what
the cells of d and of d' are (``invatlas.model.measured``). A technical change moves z_S between
the priors of the laboratories and tells the decoder the new value; ``reference`` moves z_S to
their average and tells the decoder none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

from invatlas.atlas import Atlas
from invatlas.data.counts import CountSource
from invatlas.data.minibatch import gather_counts
from invatlas.errors import CovariateError, SettingsError
from invatlas.model.invae import Model
from invatlas.model.likelihoods import CountDistribution
from invatlas.model.priors import DiagonalGaussian
from invatlas.tasks.annotate import Calling, describe
from invatlas.tasks.averages import PER, Averages, average_counts
from invatlas.tasks.change import (
    Change,
    Moves,
    apply_change,
    find_strange,
    move_biology,
    move_technique,
    read_values,
    technical_codes,
)
from invatlas.tasks.differential import LEAST_THRESHOLD, THRESHOLD
from invatlas.tasks.embed import LATENTS, MINIMUM_OVERLAP, find_counted, match_counts
from invatlas.training.posterior import CHUNK, encode_cells

SAMPLES = 20
LEAST_COUNTS = 1e-12  # a cell without counts keeps none


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
        continuous; ``"A+B"`` adds the effects of two values, as of a pair of perturbations, to
        what cells are; ``"reference"`` takes what a technical covariate does away.
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
        If ``samples`` is less than 2 or ``threshold`` less than 0.01.
    GeneError, CountsError
        As :func:`invatlas.embed`.

    Notes
    -----
    This is a statement about causes only as far as z_I and z_S hold all that the changed covariate
    and the counts have in common: nothing unmeasured may decide both which cells had the new value
    and what they express, beyond the covariates of the atlas. Combinations that were never measured
    are taken to be, in the latents, the sum of what their values add.
    """
    if not isinstance(samples, int) or samples < 2:
        raise SettingsError(f"samples is {samples!r}; a deviation takes a whole number from 2.")
    if not isinstance(threshold, int | float) or not LEAST_THRESHOLD <= threshold < np.inf:
        raise SettingsError(
            f"threshold is {threshold!r}; it takes {LEAST_THRESHOLD} or more, in log2."
        )
    _check_names(atlas, change)
    source, overlap = match_counts(atlas, adata, layer, minimum_overlap, gene_column)
    q = {which: encode_cells(atlas.model, source, which) for which in LATENTS}
    called = describe(atlas, q["invariant"], Calling(), overlap)
    job, known = _plan(atlas, adata.obs, change, called)
    counts = source.matrix.getnnz(axis=1) > 0
    supported = known & counts & ~called["novelty_flag"].to_numpy()
    if not supported.any():
        unknown = _say_unknown(atlas, adata.obs, change)
        raise CovariateError(
            f"None of {adata.n_obs} cells can be changed: {(~counts).sum()} have no counts, "
            f"{called['novelty_flag'].sum()} are called new{unknown}."
        )
    counted = torch.from_numpy(find_counted(atlas, adata.var, gene_column))
    found = job.predict(atlas.model, Cells(source, q, counted, supported), samples, seed)
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


@dataclass(frozen=True)
class Cells:
    """Cells whose latents are known, the genes that were counted and the cells to average over."""

    source: CountSource
    q: dict[str, DiagonalGaussian]
    counted: Tensor
    supported: np.ndarray

    def order(self) -> np.ndarray:
        """An order of the cells that their latents decide, not the order they came in."""
        return np.lexsort(self.q["invariant"].mean.numpy().T[::-1])


@dataclass(frozen=True)
class Prediction:
    """Counts of cells after a change.

    Attributes
    ----------
    mean, deviation
        Expected counts and their standard deviation over draws, float32 (cell, gene).
    drawn
        One draw of the counts, CSR (cell, gene).
    averages
        Over the supported cells.
    """

    mean: np.ndarray
    deviation: np.ndarray
    drawn: sp.csr_matrix
    averages: Averages


@dataclass(frozen=True)
class Job:
    """Where each set of latents goes, and what the decoder is told before and after."""

    moves: dict[str, Moves]
    before: Tensor
    after: Tensor

    @torch.inference_mode()
    def predict(self, model: Model, cells: Cells, samples: int, seed: int) -> Prediction:
        """Predict the counts of cells, so that neither their order nor CHUNK makes a difference."""
        *seeds, thin, join, path = np.random.default_rng(seed).spawn(samples + 3)
        transports = [{w: moves.draw(path) for w, moves in self.moves.items()} for _ in seeds]
        order, (n_cells, n_genes) = cells.order(), cells.source.matrix.shape
        mean, deviation = (np.zeros((n_cells, n_genes), np.float32) for _ in range(2))
        sums, squares, drawn = np.zeros((samples, n_genes)), np.zeros(n_genes), []
        for start in range(0, n_cells, CHUNK):
            rows = order[start : start + CHUNK]
            sparse, library_size = gather_counts(cells.source, rows)
            counts, per = (
                sparse.to_dense(),
                PER / library_size * torch.from_numpy(cells.supported[rows]),
            )
            total, total_squares = torch.zeros(2, len(rows), n_genes, dtype=torch.float64)
            for s, (transport, generator) in enumerate(zip(transports, seeds, strict=True)):
                z = _draw(cells.q, rows, generator)
                here = _decode(model, z, self.before[rows], library_size)
                for which, moved in transport.items():
                    z[which] = moved(z[which], self.moves[which].kind[rows])
                there = _decode(model, z, self.after[rows], library_size)
                x = here.carry(torch.where(cells.counted, counts, here.expected_counts), there)
                x = x * (library_size / x.sum(1).clamp_min(LEAST_COUNTS))[:, None]
                total += x
                total_squares += x.double().square()
                sums[s] += (per @ x).double().numpy()
            expected = total / samples
            variance = (total_squares - samples * expected.square()) / (samples - 1)
            mean[rows], deviation[rows] = expected, variance.clamp_min(0).sqrt()
            squares += (per.double().square() @ expected.square()).numpy()
            drawn.append(draw_counts(counts.numpy(), mean[rows], thin, join))
        n = int(cells.supported.sum())
        noise = (squares / n - (sums.mean(0) / n) ** 2).clip(0) / n
        back = np.argsort(order)
        before = np.where(cells.counted, average_counts(cells.source, cells.supported), np.nan)
        averages = Averages(before, sums / n, noise)
        return Prediction(mean, deviation, sp.vstack(drawn, "csr")[back], averages)


def draw_counts(
    counts: np.ndarray, expected: np.ndarray, thin: np.random.Generator, join: np.random.Generator
) -> sp.csr_matrix:
    """Draw counts of some mean, the nearest to those there are: thinned, or joined by others."""
    kept = thin.binomial(counts.astype(np.int64), np.minimum(1, expected / np.maximum(counts, 1)))
    joined = join.poisson(np.maximum(0, expected - counts))
    return sp.csr_matrix((kept + joined).astype(np.float32))


def _draw(
    q: dict[str, DiagonalGaussian], rows: np.ndarray, generator: np.random.Generator
) -> dict[str, Tensor]:
    """One draw of all latents of each cell, a row of random numbers for each."""
    sizes = [posterior.mean.shape[1] for posterior in q.values()]
    noise = torch.from_numpy(generator.standard_normal((len(rows), sum(sizes)))).float()
    parts = zip(q.items(), noise.split(sizes, 1), strict=True)
    return {
        which: torch.addcmul(p.mean[rows], part, (0.5 * p.log_variance[rows]).exp())
        for (which, p), part in parts
    }


def _decode(
    model: Model, z: dict[str, Tensor], technical: Tensor, library_size: Tensor
) -> CountDistribution:
    logits = model.decode(torch.cat([z[which] for which in LATENTS], 1), technical)
    counts: CountDistribution = model.likelihood(logits, library_size)
    return counts


def _plan(
    atlas: Atlas, obs: pd.DataFrame, change: Change, called: pd.DataFrame
) -> tuple[Job, np.ndarray]:
    """What happens to the cells, and which of them the atlas knows enough of."""
    schema, model, moves = atlas.schema, atlas.model, {}
    before = read_values(schema.biological, obs, called)
    known = before.known
    if any(covariate.name in change for covariate in schema.biological):
        after = apply_change(schema.biological, before, change)
        moves["invariant"] = move_biology(model, before, after)
    codes = schema.encode(obs)[1]
    if any(covariate.name in change for covariate in schema.technical):
        before = read_values(schema.technical, obs)
        after = apply_change(schema.technical, before, change, model.prior_spurious)
        moves["spurious"] = move_technique(model, before, after)
        known = known & before.known
    told = technical_codes(schema.technical, codes, change)
    return Job(moves, torch.from_numpy(codes), torch.from_numpy(told)), known


def _check_names(atlas: Atlas, change: Change) -> None:
    names = [covariate.name for covariate in atlas.schema.covariates]
    if not isinstance(change, Mapping):
        raise CovariateError(f"The change is {change!r}; it takes a value by covariate.")
    if not change:
        raise CovariateError(f"There is nothing to change; the covariates are {', '.join(names)}.")
    if unknown := [name for name in change if name not in names]:
        raise CovariateError(
            f"{unknown[0]!r} is no covariate of the atlas; they are {', '.join(names)}."
        )


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
