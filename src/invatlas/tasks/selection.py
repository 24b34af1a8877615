"""Cells that were lost before they were counted: what conclusions stand under which losses.

    share = mean_i sum_{c in state} w_c / sum_c w_c            i: samples, c: the cells of i
    w_c   = 1 / r for cells of the state in condition b, else 1      assumed survival ratio r
    w_c   = viability_c^-a                                            or a measured viability

A cell that survives death and dissociation with probability p stands for 1 / p cells (Horvitz and
Thompson 1952, JASA 47). r is the survival of the state in b, over that of other cells there, over
the same ratio in a. The curve shows each result for every r, or for a from 0 (viability says
nothing of survival) to 1 (survival is proportional to it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import brentq

from invatlas.data.columns import text_values
from invatlas.data.counts import CountSource
from invatlas.data.gene_names import read_names
from invatlas.data.knots import read_numbers
from invatlas.errors import CovariateError, SettingsError
from invatlas.wording import Outlined

RATIOS = tuple(float(r) for r in np.geomspace(1 / 8, 8, 25))
STRENGTHS = tuple(float(a) for a in np.linspace(0, 1, 11))
WIDEST = 1e4
STATEMENT = (
    "A snapshot shows the cells that were left, so it cannot tell which cells were lost: no "
    "analysis of these counts alone identifies the survival. The curve says what would follow from "
    "each assumption, not which one holds."
)


@dataclass(frozen=True, repr=False)
class Sensitivity(Outlined):
    """Results under every assumption.

    Attributes
    ----------
    curve
        One row an assumption: ``survival`` (r) or ``strength`` (a), ``share_a``, ``share_b`` (of
        the state among the cells of a condition, mean over samples), ``log_ratio`` (natural, of
        share_b to share_a), ``standard_error`` (over samples), and for each gene
        ``log_fold_change_GENE`` (natural, of the mean expression of all cells in b to a).
    tipping_point
        The r at which the shares are equal; None where there is none, or a viability was given.
    statement
        What the curve cannot tell.
    """

    curve: pd.DataFrame
    tipping_point: float | None
    statement: str = STATEMENT


def selection(
    adata: AnnData,
    *,
    state: tuple[str, str],
    condition: str,
    between: tuple[str, str],
    donor: str | None = None,
    viability: str | None = None,
    assumed: Sequence[float] | None = None,
    genes: Sequence[str] = (),
    layer: str | None = None,
) -> Sensitivity:
    """Show how abundance and expression depend on what is assumed of lost cells.

    Parameters
    ----------
    adata
        Cells with obs; raw counts are looked at only where ``genes`` are named. A cell without a
        state, condition or donor is left out.
    state
        Column of obs and its value that make the state: ``("cell_type", "B cells")``.
    condition, between
        Column of conditions, and the two compared, a then b.
    donor
        Column of donors, each of whom counts the same; without it, all cells of a condition are
        one sample.
    viability
        Column with each cell's (or sample's) viability, above 0.
    assumed
        The r, or the strengths a where a viability is given; 1/8 to 8, or 0 to 1, by default.
    genes
        Genes whose expression (share of the library) is followed.
    layer
        Layer of the counts; X where none is named.

    Returns
    -------
    Sensitivity

    Raises
    ------
    CovariateError
        If a column or value is absent, or a viability is no number above 0.
    SettingsError
        If an assumption is out of range.
    """
    conditions = text_values(adata.obs, condition)
    states = text_values(adata.obs, state[0])
    inside = (states == state[1]).to_numpy()
    if absent := [value for value in between if not (conditions == value).any()]:
        raise CovariateError(f"No cell has {condition} {', '.join(absent)}.")
    if not inside.any():
        raise CovariateError(f"No cell has {state[0]} {state[1]}.")
    people = text_values(adata.obs, donor) if donor else pd.Series("all", adata.obs_names)
    rows = np.flatnonzero(conditions.isin(between) & people.notna() & states.notna())
    second = (conditions.iloc[rows] == between[1]).to_numpy()
    inside = inside[rows]
    keys = pd.DataFrame({"second": second, "donor": people.iloc[rows].to_numpy()})
    sample = keys.groupby(["second", "donor"], sort=True).ngroup().to_numpy()
    in_b = keys.groupby(["second", "donor"], sort=True).size().index.get_level_values(0).to_numpy()
    points = _check_points(assumed, viability)
    living = _read_viability(adata.obs.iloc[rows], viability) if viability else None
    expression = _express(adata[rows], genes, layer) if genes else np.zeros((len(rows), 0))
    measured = np.column_stack([inside, expression]).astype(float)
    lines = []
    for point in points:
        if living is None:
            weight = np.where(inside & second, 1 / point, 1.0)
        else:
            weight = living**-point
        lines.append(_compare(_average(weight, measured, sample), in_b, genes))
    curve = pd.DataFrame(lines)
    curve.insert(0, "survival" if living is None else "strength", points)
    tipping = None if viability else _find_tipping(measured[:, :1], sample, in_b, second)
    return Sensitivity(curve, tipping)


def _average(weight: np.ndarray, measured: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Weighted mean of each sample, (sample, measured)."""
    totals = np.zeros((sample.max() + 1, measured.shape[1]))
    np.add.at(totals, sample, weight[:, None] * measured)
    return totals / np.bincount(sample, weight)[:, None]


def _compare(means: np.ndarray, in_b: np.ndarray, genes: Sequence[str]) -> dict[str, float]:
    a, b = means[~in_b], means[in_b]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(b.mean(0) / a.mean(0))
        relative = [
            side[:, 0].var(ddof=1) / len(side) / side[:, 0].mean() ** 2 if len(side) > 1 else np.nan
            for side in (a, b)
        ]
    return {
        "share_a": float(a[:, 0].mean()),
        "share_b": float(b[:, 0].mean()),
        "log_ratio": float(ratios[0]),
        "standard_error": float(np.sqrt(sum(relative))),
        **{f"log_fold_change_{g}": float(x) for g, x in zip(genes, ratios[1:], strict=True)},
    }


def _find_tipping(
    inside: np.ndarray, sample: np.ndarray, in_b: np.ndarray, second: np.ndarray
) -> float | None:
    """The survival ratio under which a and b have equal shares."""

    def difference(log_ratio: float) -> float:
        weight = np.where((inside[:, 0] > 0) & second, np.exp(-log_ratio), 1.0)
        means = _average(weight, inside, sample)
        return float(means[in_b].mean() - means[~in_b].mean())

    low, high = -np.log(WIDEST), np.log(WIDEST)
    if difference(low) <= 0 or difference(high) >= 0:
        return None
    return float(np.exp(brentq(difference, low, high, xtol=1e-10)))


def _check_points(assumed: Sequence[float] | None, viability: str | None) -> list[float]:
    points = list(assumed if assumed is not None else STRENGTHS if viability else RATIOS)
    low = 0.0 if viability else np.finfo(float).tiny
    if odd := [point for point in points if not low <= point < np.inf]:
        allowed = "strengths, 0 or more" if viability else "survival ratios above 0"
        raise SettingsError(f"assumed holds {odd[0]}; it takes {allowed}.")
    if not points:
        raise SettingsError("assumed is empty; it takes one number or more.")
    return points


def _read_viability(obs: pd.DataFrame, column: str) -> np.ndarray:
    numbers = np.asarray(read_numbers(text_values(obs, column)), dtype=float)
    if not (numbers > 0).all():
        row = int((~(numbers > 0)).argmax())
        raise CovariateError(
            f"{column} of cell {obs.index[row]!r} is {obs[column].iloc[row]}; a viability is a "
            "number above 0."
        )
    return numbers


def _express(adata: AnnData, genes: Sequence[str], layer: str | None) -> np.ndarray:
    """Share of each cell's counts that the genes hold, (cell, gene)."""
    names = list(dict.fromkeys(map(str, read_names(adata.var))))
    genes = [gene.strip() for gene in genes]
    if absent := sorted(set(genes) - set(names)):
        raise CovariateError(f"The data have no gene {', '.join(absent[:5])}.")
    source = CountSource.from_anndata(adata, names, layer)
    columns = [names.index(gene) for gene in genes]
    return np.asarray(source.matrix[:, columns].toarray() / source.library_size[:, None])
