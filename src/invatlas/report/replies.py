"""The pages of the questions that commands ask: the figure and the tables of each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from invatlas.report import figures
from invatlas.report.answer import write_page
from invatlas.wording import count_noun

if TYPE_CHECKING:
    from anndata import AnnData

    from invatlas.tasks.donors import Donors
    from invatlas.tasks.explain import Explained
    from invatlas.tasks.states import States

MODEL = (
    "This is what the model says of causes: right only if nothing unmeasured goes with what is "
    "changed."
)
FOUND = "States were found in the same counts: their markers are a description, no test."
CAPPED = (
    " Rates too small to be told from 0 are drawn in a line at the top, at the smallest other rate."
)
MOST_SHIFTS = 12
FEW_CELLS = 30  # on a side of a shift


def show_counterfactual(path: Path, predicted: AnnData, change: Mapping[str, str]) -> None:
    """Show which genes change most."""
    changed = ", ".join(f"{name}={value}" for name, value in change.items())
    supported = predicted.obs["counterfactual_supported"]
    genes = predicted.var.sort_values("log2_fold_change", key=abs, ascending=False, kind="stable")
    already = _count_already(predicted.obs[supported], change)
    among = f", the {already:,} that have {changed} already among them" if already else ""
    held = "What the model holds to change"
    write_page(
        path,
        title=f"Counterfactual: {changed}",
        lead=f"{supported.sum():,} of {len(supported):,} cells are such as the atlas knows.",
        figures={
            "Genes": figures.counterfactual(predicted),
            held: figures.volcano(predicted.var, of="counterfactual over measured"),
        },
        tables={"All genes": genes.rename_axis("gene")},
        notes={
            "Genes": "Mean counts per 10,000 over the cells the atlas knows, the genes that change "
            f"most first. Measured is the mean of these same cells as they are{among}. Bars are 90 "
            "% intervals of the mean: of what the model holds, not of what it may have learnt "
            "wrongly.",
            held: "The rate says how sure the model is of a change, not whether it is right."
            + (CAPPED if (genes["false_discovery_rate"] == 0).any() else ""),
        },
        warnings=[MODEL],
    )


def _count_already(obs: pd.DataFrame, change: Mapping[str, str]) -> int:
    """Count the cells that have all values of a change."""
    if not set(change) <= set(obs):
        return 0
    has = [obs[name].astype(str) == value for name, value in change.items()]
    return int(np.logical_and.reduce(has).sum())


def show_differential(path: Path, table: pd.DataFrame, groups: str, lead: str) -> None:
    """Show which genes differ."""
    write_page(
        path,
        title=f"Genes that differ: {groups}",
        lead=lead,
        figures={"Genes": figures.volcano(table)},
        tables={"Genes": table},
        notes={"Genes": "Donors are the replicates; group 1 is the first one named."},
    )


def show_states(path: Path, found: States, cell_type: str) -> None:
    """Show the states of a cell type and the diseases that have more of each."""
    from invatlas.tasks.states import LEAST_DIFFERENCE

    named = (
        f"A disease is named beside a state if at least {100 * LEAST_DIFFERENCE:g} points more of "
        "the cells of its donors are there than of the reference's, significantly. Smaller "
        "differences can come from the fit alone."
    )
    write_page(
        path,
        title=f"States of {cell_type}",
        lead=f"{len(found.table)} states of {len(found.cells):,} cells.",
        figures={"Shares": figures.states(found)} if len(found.shares) else {},
        tables={
            "States": found.table,
            "Shares": found.shares,
            "Stability by number of states": found.stability.rename_axis("states").reset_index(),
        },
        notes={"States": FOUND, "Shares": named},
    )


def show_explained(path: Path, found: Explained) -> None:
    """Show the genes that each shift moves, and the sets that hold them."""
    fewest = found.cells.min(axis=1)
    behind = found.cells.assign(caution=np.where(fewest < FEW_CELLS, "few cells", ""))
    known = fewest.sort_values(ascending=False, kind="stable").index[:MOST_SHIFTS]
    drawn = [name for name in found.shifts if name in known]
    lead = f"{found.shifts.shape[1]} shifts and {found.latents.shape[1]} latents of z_I."
    if len(drawn) < found.shifts.shape[1]:
        lead += (
            f" The {len(drawn)} shifts with most cells on their smaller side are drawn; the others "
            "stand in the tables."
        )
    write_page(
        path,
        title="What moves which gene",
        lead=lead,
        figures={of: figures.explain(found, of) for of in drawn},
        tables={
            "Cells behind the shifts": behind,
            "Genes": found.shifts.join(found.latents),
            "Latents that carry the shifts": found.carriers.rename_axis("latent"),
            **({"Gene sets": found.gene_sets} if len(found.gene_sets) else {}),
        },
        notes={
            **{name: _tell_cells(*found.cells.loc[name]) for name in drawn},
            "Cells behind the shifts": "Cells the atlas was fitted to, of the value and of the one "
            f"it is held against. Fewer than {FEW_CELLS} on a side call for caution: little was "
            "learnt of them, and what was learnt of other cells stands in for it.",
            "Genes": "Change of the natural logarithm of expression: of a latent for one of its "
            "standard deviations, of a shift from one value to the other.",
        },
    )


def _tell_cells(cells: int, against: int) -> str:
    """Say how many cells stand behind a shift, and whether they are few."""
    told = f"Learnt from {count_noun(cells, 'cell')} against {against:,}."
    few = f" Fewer than {FEW_CELLS} on a side: take it with caution."
    return told + few if min(cells, against) < FEW_CELLS else told


def show_donors(path: Path, found: Donors, doubts: Sequence[str]) -> None:
    """Show where donors lie among each other."""
    outlying = found.table.loc[found.table["outlying"], "sample"].nunique()
    write_page(
        path,
        title="Donors",
        lead=f"{outlying} of {len(found.strata)} samples stand out.",
        figures={"Samples": figures.donors(found)},
        tables={"Samples": found.strata, "Samples by cell type": found.table},
        notes={"Samples": "Ringed samples stand out in a cell type, or over all; names stand where "
               "there is room."},
        warnings=doubts,
    )  # fmt: skip


def show_abundance(path: Path, table: pd.DataFrame, lead: str, doubts: Sequence[str]) -> None:
    """Show where cells are more frequent in one condition."""
    by_type = table.groupby("cell_type")["log_density_ratio"].describe()
    by_type = by_type.rename(columns={"count": "cells", "std": "deviation"})
    by_type = by_type.astype({"cells": int})
    first, second = table.attrs.get("between", ("the first condition", "the second condition"))
    write_page(
        path,
        title=f"Where cells are more frequent: {second} against {first}",
        lead=lead,
        figures={"Cells": figures.abundance(table)},
        tables={"Log density ratio by cell type": by_type},
        notes={
            "Cells": f"Each dot is a cell of {first} or {second}; to the right {second} has more, "
            f"to the left {first}: at 1 the density in {second} is 2.7 times that in {first}, the "
            "ratio being in natural logarithms. Donors are the replicates. More and less frequent "
            f"in {second} are cells at a false discovery rate of 5 %.",
            "Log density ratio by cell type": f"Natural logarithm of the density in {second} over "
            f"that in {first}, over the cells of both.",
        },
        warnings=doubts,
    )  # fmt: skip


def show_design(path: Path, table: pd.DataFrame) -> None:
    """Show what to measure next."""
    write_page(
        path,
        title="What to measure next",
        lead=f"{len(table)} combinations tell {table['total'].iloc[-1]:.2f} nats together.",
        figures={"Combinations": figures.design(table)},
        tables={"Combinations": table},
    )
