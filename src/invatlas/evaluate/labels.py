"""Labels of an audit: what its cells are asked for, as text, a column a covariate.

A scale is cut into groups of equal size by the ranks of its numbers in the cells at hand::

    group = floor(4 (rank - 1/2) / cells)

Equal numbers share their mean rank: none is cut in two, and two distinct ones are two groups at
least. A group is called by its smallest and its largest number.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.random import Generator

from invatlas.data.columns import text_values
from invatlas.data.covariates import Schema
from invatlas.data.knots import name_knots, read_numbers

GROUPS = 4


def read_labels(schema: Schema, obs: pd.DataFrame) -> pd.DataFrame:
    """Read the covariates that obs has, coarse values as missing and scales as groups.

    Parameters
    ----------
    schema
        Covariates.
    obs
        Columns of the cells.

    Returns
    -------
    DataFrame
        Text, missing values as None or NaN (cell, covariate).
    """
    labels = pd.DataFrame(index=obs.index)
    for covariate in schema.covariates:
        if covariate.name in obs:
            values = text_values(obs, covariate.name)
            coarse = values.isin([name for name, _ in covariate.groups])
            labels[covariate.name] = cut_scale(values) if covariate.knots else values[~coarse]
    return labels


def cut_scale(values: pd.Series) -> pd.Series:
    """Cut numbers, given as text, into at most four groups of equal size; others are missing."""
    numbers = pd.Series(read_numbers(values), index=values.index)
    group = np.floor(GROUPS * (numbers.rank() - 0.5) / numbers.count())
    ends = numbers.groupby(group).agg(["min", "max"])
    distinct = np.unique(ends)
    spelled = (
        dict(zip(distinct, name_knots(distinct.tolist()), strict=True)) if len(distinct) else {}
    )
    names = {
        number: " to ".join(dict.fromkeys([spelled[low], spelled[high]]))
        for number, low, high in ends.itertuples()
    }
    return group.map(names).astype(object)


def draw_cells(labels: pd.DataFrame, most: int, generator: Generator) -> np.ndarray:
    """Draw cells so that every combination of values keeps its share: positions, rising."""
    if len(labels) <= most:
        return np.arange(len(labels))
    known = labels.fillna("")
    combination = (
        known.groupby(list(known.columns), sort=True).ngroup().to_numpy()
        if len(known.columns)
        else np.zeros(len(known), dtype=np.int64)
    )
    order = np.lexsort((generator.random(len(labels)), combination))
    return np.sort(order[np.linspace(0, len(order) - 1, most).round().astype(int)])
