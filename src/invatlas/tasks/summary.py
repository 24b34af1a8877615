"""What was fitted, counted and told in plain values, for a page or a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from invatlas.atlas import Atlas
from invatlas.data.covariates import MISSING, Covariate


def summarise(atlas: Atlas, obs: pd.DataFrame, title: str = "Invariant atlas") -> dict[str, Any]:
    """Count the cells of every value and gather what the fit recorded.

    Parameters
    ----------
    atlas
        A fitted atlas.
    obs
        obs of the cells it was fitted to.
    title
        Headline.

    Returns
    -------
    Plain values: title, version, created, cells, genes, held_out, biological and technical
    (column to category to cells), missing (column to cells), training, settings, versions.
    """
    versions = dict(atlas.record["versions"])
    return {
        "title": title,
        "version": versions["invatlas"],
        "created": atlas.record["created"],
        "cells": len(obs),
        "genes": len(atlas.genes),
        "held_out": atlas.record["held_out"],
        "biological": {c.name: _count(c, obs) for c in atlas.schema.biological},
        "technical": {c.name: _count(c, obs) for c in atlas.schema.technical},
        "missing": {c.name: int((c.encode(obs) == MISSING).sum()) for c in atlas.schema.covariates},
        "training": dict(atlas.record["training"]),
        "settings": asdict(atlas.settings),
        "versions": versions,
    }


def _count(covariate: Covariate, obs: pd.DataFrame) -> dict[str, int]:
    counts = pd.Series(covariate.encode(obs)).value_counts()
    return {name: int(counts.get(code, 0)) for code, name in enumerate(covariate.categories)}
