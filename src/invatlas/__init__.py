"""Invariant atlases of single cells: what is biology and what is the laboratory.

>>> import invatlas as ia
>>> atlas = ia.fit(adata, biological=["cell_type", "condition"], technical=["donor"])
>>> adata.obsm["X_invariant"] = ia.embed(atlas, adata)
>>> ia.save(atlas, "atlas/")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invatlas import evaluate, grn
    from invatlas.atlas import Atlas, fit
    from invatlas.data.confounding import confounding
    from invatlas.data.simulate import simulate
    from invatlas.errors import InvatlasError, StudyWarning
    from invatlas.evaluate.consensus import fit_seeds
    from invatlas.evaluate.identifiability import identifiability
    from invatlas.report import figures as pl
    from invatlas.report.answer import write_page
    from invatlas.report.page import write_report
    from invatlas.report.query import write_query_report
    from invatlas.settings import Settings
    from invatlas.storage import load, save
    from invatlas.tasks.abundance import abundance
    from invatlas.tasks.adapt import adapt, undo_adaptation
    from invatlas.tasks.align import align
    from invatlas.tasks.annotate import Calling, annotate
    from invatlas.tasks.counterfactual import counterfactual
    from invatlas.tasks.design import design
    from invatlas.tasks.differential import differential_expression
    from invatlas.tasks.donors import Donors, donors
    from invatlas.tasks.embed import embed
    from invatlas.tasks.explain import explain
    from invatlas.tasks.map import map_cells
    from invatlas.tasks.novel_states import novel_states
    from invatlas.tasks.novelty import novelty
    from invatlas.tasks.prediction_sets import prediction_sets
    from invatlas.tasks.selection import Sensitivity, selection
    from invatlas.tasks.states import states
    from invatlas.tasks.summary import summarise, summarise_query

_PLACES = {
    "Atlas": "atlas",
    "Calling": "tasks.annotate",
    "Donors": "tasks.donors",
    "InvatlasError": "errors",
    "Sensitivity": "tasks.selection",
    "Settings": "settings",
    "StudyWarning": "errors",
    "abundance": "tasks.abundance",
    "adapt": "tasks.adapt",
    "align": "tasks.align",
    "annotate": "tasks.annotate",
    "confounding": "data.confounding",
    "counterfactual": "tasks.counterfactual",
    "design": "tasks.design",
    "donors": "tasks.donors",
    "differential_expression": "tasks.differential",
    "embed": "tasks.embed",
    "explain": "tasks.explain",
    "fit": "atlas",
    "fit_seeds": "evaluate.consensus",
    "identifiability": "evaluate.identifiability",
    "load": "storage",
    "map_cells": "tasks.map",
    "novel_states": "tasks.novel_states",
    "novelty": "tasks.novelty",
    "prediction_sets": "tasks.prediction_sets",
    "save": "storage",
    "selection": "tasks.selection",
    "simulate": "data.simulate",
    "states": "tasks.states",
    "summarise": "tasks.summary",
    "summarise_query": "tasks.summary",
    "undo_adaptation": "tasks.adapt",
    "write_page": "report.answer",
    "write_query_report": "report.query",
    "write_report": "report.page",
}
_MODULES = {"evaluate": "evaluate", "grn": "grn", "pl": "report.figures"}

__all__ = [
    "Atlas",
    "Calling",
    "Donors",
    "InvatlasError",
    "Sensitivity",
    "Settings",
    "StudyWarning",
    "abundance",
    "adapt",
    "align",
    "annotate",
    "confounding",
    "counterfactual",
    "design",
    "differential_expression",
    "donors",
    "embed",
    "evaluate",
    "explain",
    "fit",
    "fit_seeds",
    "grn",
    "identifiability",
    "load",
    "map_cells",
    "novel_states",
    "novelty",
    "pl",
    "prediction_sets",
    "save",
    "selection",
    "simulate",
    "states",
    "summarise",
    "summarise_query",
    "undo_adaptation",
    "write_page",
    "write_query_report",
    "write_report",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the import itself is quick."""
    if name in _MODULES:
        return import_module(f"invatlas.{_MODULES[name]}")
    if name in _PLACES:
        return getattr(import_module(f"invatlas.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'invatlas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
