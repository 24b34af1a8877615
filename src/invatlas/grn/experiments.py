"""What was measured of a network: series in time, steady states, interventions, prior edges.

    y(t)    expression of a series or a lineage, (time, gene)       Trajectory
    y*      expression at rest, where production equals decay       SteadyState
    do(g)   what was done to genes from outside                     Intervention

The border of ``grn``: everything behind it trusts what :func:`read_experiments` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from invatlas.data.columns import NOTHING_SPELLINGS, text_values
from invatlas.data.counts import check_cells
from invatlas.errors import CovariateError, DataError, GeneError, SettingsError
from invatlas.grn.interventions import Intervention, read_experiment_kinds, read_interventions
from invatlas.grn.names import find_genes
from invatlas.grn.prior_network import read_prior
from invatlas.grn.trajectories import Trajectory, is_like_time, read_times, read_trajectories
from invatlas.wording import count_noun, list_first

FloatArray = NDArray[np.float64]

MOST_COUNTED = 2.0**53  # beyond it every float is a whole number

GIVEN = "given"
ODD_SHARE = 0.01  # of the values that are no counts, up to which the others look like counts
NORMALISED = "log1p of counts per 10,000"

__all__ = ["Experiments", "Intervention", "SteadyState", "Trajectory", "read_experiments"]


@dataclass(frozen=True, eq=False)
class SteadyState:
    """Expression at rest.

    Attributes
    ----------
    expression
        Shape (gene,).
    intervention
        What was done before it came to rest.
    name
        Of the row.
    donor
        Empty where none is given.
    """

    expression: FloatArray
    intervention: Intervention
    name: str = ""
    donor: str = ""


@dataclass(frozen=True, eq=False)
class Experiments:
    """All that was measured of one network.

    Attributes
    ----------
    genes
        Names, in the order of every array.
    regulators
        Which genes may regulate others, (gene,).
    prior
        Believed edges, (regulator, target) over all genes: positive where the regulator raises the
        target, 0 where nothing is believed; None without a prior network.
    steady, trajectories
        What was measured at rest and in time.
    scale
        What the numbers are: ``given``, or ``log1p of counts per 10,000``.
    warnings
        What a reader of the results should know of the data.
    """

    genes: pd.Index
    regulators: NDArray[np.bool_]
    prior: FloatArray | None
    steady: tuple[SteadyState, ...]
    trajectories: tuple[Trajectory, ...]
    scale: str = GIVEN
    warnings: tuple[str, ...] = ()


def read_experiments(
    adata: AnnData,
    *,
    time: str | None = None,
    lineage: str | None = None,
    donor: str | None = None,
    regulators: Sequence[str] | None = None,
    prior_network: pd.DataFrame | str | None = None,
    interventions: str | None = None,
    experiment: str | None = None,
    layer: str | None = None,
    bins: int | None = None,
) -> Experiments:
    """Read what was measured of a network.

    Parameters
    ----------
    adata
        Expression (row, gene). Whole numbers that are not negative are counts: they become
        log(1 + counts per 10,000). All other values are taken as they are.
    time
        Column of obs with real time, simulated time or pseudotime; rows without a time are steady
        states, and so are all rows where no column is named, which warnings say if one looks like
        a time.
    lineage
        Column that names series, replicates or lineages.
    donor
        Column of donors; a series is a lineage of one donor.
    regulators
        Genes that may regulate; all by default.
    prior_network
        Table of edges with columns ``regulator`` and ``target``, and ``weight`` or ``sign`` where
        known; or the name of a matrix (regulator, target) in varm.
    interventions
        Column with the intervened gene of each row: several as "A+B", "none" or missing for none;
        a gene that is called NA or none is that gene.
    experiment
        Column with the kind: knockout, knockdown, overexpression; wildtype, timeseries or
        multifactorial where no gene is known. A row that names a gene and no kind is a knockout.
    layer
        Layer with the expression; X by default.
    bins
        Most bins of cells in a series; 0 makes a point of every time. By default, times that rows
        share are points, and pseudotime has up to 20 bins of 8 cells or more.

    Raises
    ------
    CovariateError
        If a column is absent or unusable, or a series too short.
    GeneError
        If a regulator or an intervened gene was not measured, or no prior edge is between genes
        that were.
    DataError
        If the expression is absent or holds a value that is no finite number.
    SettingsError
        If ``bins`` is negative, or a lineage is named without a time.
    """
    check_cells(adata)
    asked = {"time": time, "lineage": lineage, "donor": donor, "interventions": interventions}
    for name, column in {**asked, "experiment": experiment}.items():
        if column is not None and (not isinstance(column, str) or not column):
            raise SettingsError(f"{name} is {column!r}; it takes the name of a column of obs.")
    if bins is not None and (isinstance(bins, bool) or not isinstance(bins, int | np.integer)):
        raise SettingsError(f"bins is {bins!r}; it takes a whole number.")
    if bins is not None and (bins < 0 or bins == 1):
        raise SettingsError(f"bins is {bins}; it takes 0 (a point for each time), or 2 and more.")
    if lineage is not None and time is None:
        raise SettingsError(f"lineage is {lineage!r} and no time is named; a lineage needs times.")
    genes = _read_names(adata)
    y, scale, doubts = _read_expression(adata, layer)
    may_regulate = _read_regulators(regulators, genes)
    kinds = read_experiment_kinds(adata.obs, experiment)
    done = read_interventions(_read_column(adata.obs, interventions, genes), kinds, genes)
    names = pd.DataFrame(
        {
            "lineage": _read_column(adata.obs, lineage),
            "donor": _read_column(adata.obs, donor),
            "perturbed": (kinds == "timeseries").to_numpy(),
        }
    )
    times = read_times(adata.obs, time) if time else np.full(adata.n_obs, np.nan)
    timed = np.isfinite(times)
    _check_named(names["lineage"], timed, lineage)
    steady = tuple(
        SteadyState(y[i], done[i], str(adata.obs_names[i]), names["donor"].iloc[i])
        for i in np.flatnonzero(~timed)
    )
    in_time = np.flatnonzero(timed)
    trajectories, notes = read_trajectories(
        y[in_time],
        times[in_time],
        names.iloc[in_time],
        [done[i] for i in in_time],
        bins,
        scale == NORMALISED,
    )
    notes = doubts + notes
    if time is None:
        notes += _doubt_rest(adata.obs)
    if trajectories and steady and interventions is None and experiment is None:
        notes.append(
            f"{count_noun(len(steady), 'row')} without a {time} counted as steady states; leave "
            "them out if they are cells of other lineages."
        )
    prior = None
    if prior_network is not None:
        prior, left_out = read_prior(prior_network, adata, may_regulate)
        notes += left_out
    return Experiments(
        pd.Index(genes), may_regulate, prior, steady, trajectories, scale, tuple(notes)
    )


def _doubt_rest(obs: pd.DataFrame) -> list[str]:
    """Say that every row counts as a steady state where columns look like times."""
    found = [str(name) for name in obs.columns if is_like_time(obs, name)]
    if not found:
        return []
    they = f"{list_first(found)}, which {'look' if len(found) > 1 else 'looks'} like a time"
    return [
        f"No time is named, so {count_noun(len(obs), 'row')} count as steady states, each at "
        f"rest, as cells on their way to another state are not. obs has {they}: name it with "
        f"--time {found[0]} (Python: time={found[0]!r}), and lineages, if there are any, with "
        "--lineage."
    ]


def _read_names(adata: AnnData) -> list[str]:
    names = pd.Index(map(str, adata.var_names))
    if names.has_duplicates:
        raise GeneError(
            f"The gene {names[names.duplicated()][0]!r} is there twice; each gene has one column."
        )
    if len(names) < 2 or adata.n_obs == 0:
        raise DataError(
            f"The data have {count_noun(adata.n_obs, 'row')} and {count_noun(len(names), 'gene')}; "
            "a network takes two genes at least, and rows that differ."
        )
    return list(names)


def _read_expression(adata: AnnData, layer: str | None) -> tuple[FloatArray, str, list[str]]:
    """Expression (row, gene), checked, what its numbers are, and what is odd about them."""
    if layer is not None and layer not in adata.layers:
        raise DataError(
            f"There is no layer {layer!r}; the layers are {', '.join(adata.layers) or 'none'}."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise DataError("The data have no X; name a layer that holds expression.")
    if hasattr(matrix, "to_memory"):  # sparse, and left on the disk
        matrix = matrix.to_memory()
    y = np.array(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)
    if not np.isfinite(y).all():
        row, gene = np.argwhere(~np.isfinite(y))[0]
        raise DataError(
            f"Expression is {y[row, gene]} in row {adata.obs_names[row]!r}, gene "
            f"{adata.var_names[gene]!r}; it must be a finite number everywhere."
        )
    if not np.ptp(y, axis=0).any():
        raise DataError(
            f"Expression is the same in all of {count_noun(len(y), 'row')}: nothing varies that "
            "an edge could be read from."
        )
    whole = (y >= 0) & (y <= MOST_COUNTED) & (y == np.floor(y))
    if whole.all():
        return np.log1p(1e4 * y / np.maximum(y.sum(1, keepdims=True), 1)), NORMALISED, []
    odd, filled = int((~whole).sum()), int((y != 0).sum())
    if odd > ODD_SHARE * filled:
        return y, GIVEN, []
    row, gene = np.argwhere(~whole)[0]
    doubt = (
        f"All values but {odd:,} of {filled:,} look like counts ({y[row, gene]:g} in row "
        f"{adata.obs_names[row]!r}, gene {adata.var_names[gene]!r}); they were taken as they are, "
        "not normalised."
    )
    return y, GIVEN, [doubt]


def _read_regulators(regulators: Sequence[str] | None, genes: list[str]) -> NDArray[np.bool_]:
    if regulators is None:
        return np.ones(len(genes), dtype=bool)
    if isinstance(regulators, str) or not len(regulators):
        raise SettingsError(f"regulators is {regulators!r}; it takes a list of genes.")
    places, unknown = find_genes(list(map(str, regulators)), genes)
    if unknown:
        raise GeneError(f"The regulators name {unknown}.")
    chosen = np.zeros(len(genes), dtype=bool)
    chosen[places] = True
    return chosen


def _read_column(obs: pd.DataFrame, column: str | None, genes: Sequence[str] = ()) -> pd.Series:
    """Values of a column as text, empty where missing or where no column is named.

    A value that is one of the genes is never missing, whatever it is called.
    """
    if column is None:
        return pd.Series("", index=obs.index, dtype=object)
    text = text_values(obs, column, NOTHING_SPELLINGS)
    spelled = obs[column].map(str).str.strip()
    named = obs[column].notna() & spelled.isin(genes)
    return text.where(~named, spelled).fillna("")


def _check_named(lineage: pd.Series, timed: NDArray[np.bool_], column: str | None) -> None:
    unnamed = timed & (lineage == "").to_numpy()
    if column is not None and unnamed.any():
        raise CovariateError(
            f"obs column {column!r} is missing in row {lineage.index[unnamed][0]!r}, which has a "
            f"time ({unnamed.sum():,} such rows); every row with a time belongs to a series."
        )
