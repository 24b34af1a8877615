"""Packing: the cells a page draws by script, as the shortest text that holds them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from invatlas.report.plots import (
    COLOURS,
    LAYOUTS,
    choose_cells,
    code_categories,
    palette,
)

MOST_NAMES = 500  # categories with a name on the maps, for each colouring
MOST_LETTERS = 120  # longer category names are cut on the maps
MOST_CELLS = 100_000  # drawn at most; all of them move with the hand
MOST_BYTES = 20_000_000  # packed coordinates and categories; fewer cells are drawn beyond it

RANGES = 6
FEW_VALUES = 12  # numbers with more values than that are shown in ranges


@dataclass(frozen=True)
class Colouring:
    """One way to colour the maps.

    Attributes
    ----------
    values
        Category of each cell (cell,); missing values are NaN.
    role
        Colourings of one role stand together, under its name.
    reading
        How to read the maps with these colours.
    shades
        Variables of the style sheet, one for each category of `values`, which are then in the
        order of the categories; colours of the palette where empty.
    top
        Position of the category that is drawn last and larger; only with `shades`.
    order
        Names in the order in which they get the colours of the palette, whether they are there or
        not, so that a name has one colour on all pages; the others follow, the largest first.
    """

    values: pd.Series
    role: str
    reading: str
    shades: Sequence[str] = ()
    top: int | None = None
    order: Sequence[str] = ()


def pack_maps(
    cells: AnnData, colourings: Sequence[Colouring], layouts: Mapping[str, str] = LAYOUTS
) -> dict[str, Any]:
    """Pack the cells to draw: places as base64 uint16, categories as base64 codes.

    Parameters
    ----------
    cells
        obsm with the latents and their layouts; layouts that are not there are left out.
    colourings
        What the maps can be coloured by, in the order of the buttons.
    layouts
        Name of a latent to the key of its layout in obsm.

    Returns
    -------
    dict
        `cells` and `drawn` (numbers of cells), `maps` (latent to places), `columns` (as of
        `pack_column`) and `colours`.
    """
    drawable = {
        name: np.asarray(cells.obsm[key])
        for name, key in layouts.items()
        if key in cells.obsm and cells.obsm.get(f"X_{name}", cells.obsm[key]).shape[1]
    }
    room = MOST_BYTES // (4 * len(drawable) + 2 * len(colourings) + 1)
    rows = choose_cells(cells.n_obs, min(MOST_CELLS, room))
    for layout in drawable.values():
        rows = rows[np.isfinite(layout[rows]).all(axis=1)]
    return {
        "cells": cells.n_obs,
        "drawn": len(rows),
        "maps": {name: pack_places(layout[rows]) for name, layout in drawable.items()},
        "columns": [pack_column(colouring, rows) for colouring in colourings],
        "colours": palette(COLOURS),
    }


def pack_places(places: npt.NDArray[np.floating]) -> str:
    """Scale places into the unit square, both axes alike, and pack them as uint16.

    Parameters
    ----------
    places
        Finite coordinates (cell, 2).

    Returns
    -------
    str
        Base64 of little-endian uint16, x before y; y points down.
    """
    if not len(places):
        return ""
    places = places.astype(float)
    low, high = places.min(axis=0), places.max(axis=0)
    span = float((high - low).max()) or 1.0
    unit = 0.5 + (places - (low + high) / 2) / span
    unit[:, 1] = 1 - unit[:, 1]
    return base64.b64encode(np.rint(unit * 65535).astype("<u2").tobytes()).decode()


def pack_column(colouring: Colouring, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Pack one colouring; the largest code of its width stands for a missing value.

    Parameters
    ----------
    colouring
        What to colour by.
    rows
        The cells to draw (drawn,).

    Returns
    -------
    dict
        `name`, `role`, `reading`, `codes` (base64), `bytes` (1 or 2), `names`, `counts`,
        `categories`, `missing`; `shades` and `top` where the colouring has shades, `tints` (place
        of each category in the palette) where it has an order.
    """
    values = colouring.values
    if colouring.shades:
        codes = values.cat.codes.to_numpy()[rows].astype(np.int64)
        names = [str(name) for name in values.cat.categories]
        counts = [int((values.cat.codes == code).sum()) for code in range(len(names))]
    else:
        codes, names, counts = code_categories(values, rows)
    width, none = (1, 255) if len(names) <= 255 else (2, 65535)
    packed = np.where(codes < 0, none, np.minimum(codes, none - 1)).astype(f"<u{width}")
    shaded: dict[str, Any] = {"tints": tint(names, colouring.order)} if colouring.order else {}
    if colouring.shades:
        shaded = {"shades": list(colouring.shades), "top": colouring.top}
    return {
        "name": str(values.name),
        "role": colouring.role,
        "reading": colouring.reading,
        "codes": base64.b64encode(packed.tobytes()).decode(),
        "bytes": width,
        "names": [name[:MOST_LETTERS] for name in names[:MOST_NAMES]],
        "counts": counts[:MOST_NAMES],
        "categories": len(names),
        "missing": int(values.isna().sum()),
        **shaded,
    }


def tint(names: Sequence[str], order: Sequence[str]) -> list[int]:
    """Give each name its place in the palette: that in the order, or one after all of it."""
    known = set(order)
    all_of_them = [*order, *(name for name in names if name not in known)]
    place = {name: k for k, name in enumerate(all_of_them)}
    return [place[name] for name in names]


def colour_values(
    values: pd.Series, role: str, reading: str, order: Sequence[str] = ()
) -> Colouring:
    """Colour by a column as it is: numbers with many values in ranges, all else by category."""
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > FEW_VALUES:
        return colour_numbers(values, role, reading)
    return Colouring(values, role, reading, order=order)


def colour_numbers(values: pd.Series, role: str, reading: str) -> Colouring:
    """Cut numbers into ranges of about as many cells, shaded from low to high."""
    numbers = values.to_numpy(dtype=float, na_value=np.nan, copy=True)
    numbers[~np.isfinite(numbers)] = np.nan
    finite = numbers[np.isfinite(numbers)]
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, RANGES + 1))) if len(finite) else finite
    if len(edges) < 2:
        names = [f"{edge:.3g}" for edge in edges]
    else:
        for digits in range(3, 18):
            ends = [f"{edge:.{digits}g}" for edge in edges]
            if len(set(ends)) == len(ends):
                break
        names = [f"{low} to {high}" for low, high in pairwise(ends)]
    codes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(len(names) - 1, 0))
    codes = np.where(np.isfinite(numbers), codes, -1)
    steps = np.linspace(0, RANGES - 1, len(names)).round().astype(int)
    return Colouring(
        pd.Series(pd.Categorical.from_codes(codes, names), name=values.name),
        role,
        f"{reading} Ranges hold about equally many cells." if len(names) > 1 else reading,
        [f"--ramp-{step}" for step in steps],
    )
