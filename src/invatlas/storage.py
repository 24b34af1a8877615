"""An atlas on disk: weights in safetensors, everything else in plain JSON and CSV.

    model.safetensors         weights and the priors' tables
    calibration.safetensors   scores of held-out cells, where there were enough of them
    atlas.json                format, run, schema, genes, training record, versions, digests
    history.csv               one row an epoch

How it gets there whole, and what a load checks, stands in folders.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.covariates import Schema
from invatlas.data.findings import Finding
from invatlas.errors import StorageError
from invatlas.folders import (
    Kind,
    check_finite,
    check_target,
    digest_file,
    read_card,
    read_tensors,
    reading,
    staged,
    write_card,
)
from invatlas.model.invae import Model
from invatlas.model.priors import CovariateTable
from invatlas.settings import Settings
from invatlas.training.calibration import Calibration
from invatlas.training.combinations import tabulate_values

MODEL, CARD, HISTORY = "model.safetensors", "atlas.json", "history.csv"
CALIBRATION = "calibration.safetensors"
RECORD = (
    "created",
    "layer",
    "genes_given",
    "cells",
    "held_out",
    "training",
    "warnings",
    "adapted",
    "aligned",
    "versions",
)
FILES = frozenset({MODEL, CALIBRATION, CARD, HISTORY, "latents.h5ad", "report.html"})
ATLAS = Kind("an atlas", CARD, 8, FILES)


def save(atlas: Atlas, path: str | Path, *, overwrite: bool = False) -> None:
    """Write an atlas into a folder, whole or not at all.

    Parameters
    ----------
    atlas
        A fitted atlas.
    path
        Folder to write.
    overwrite
        Whether to replace an atlas that is there, with the ``report.html`` and ``latents.h5ad``
        that belong to it.

    Raises
    ------
    StorageError
        If the folder holds an atlas that may not be overwritten, or anything that is no part of
        one, or cannot be written.
    """
    check_atlas(atlas)
    target = Path(path).resolve()
    check_target(target, ATLAS)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise StorageError(
            f"{path} holds an atlas, which would go together with its report.html and "
            "latents.h5ad; name another folder, or pass overwrite=True."
        )
    with staged(path, ATLAS) as folder:
        write_atlas(atlas, folder)


def load(path: str | Path) -> Atlas:
    """Read an atlas.

    Raises
    ------
    StorageError
        If there is none, it is foreign, truncated, of a newer format, or its parts disagree.
    """
    folder = Path(path)
    card = read_card(folder, ATLAS)
    with reading(folder / CARD):
        settings = Settings().changed(card["run"]["settings"])
        schema = Schema.from_json(card["schema"])
        genes = tuple(str(gene).strip() for gene in card["genes"])
        shares = np.asarray(card["gene_shares"], dtype=np.float64)
        sizes = {role: int(n) for role, n in card["combinations"].items()}
        median = float(card["median_library_size"])
        record = {name: card["record"][name] for name in RECORD}
        int(record["training"]["epochs"])
        _check_adaptations(record["adapted"], schema)
        _check_alignment(record["aligned"])
        record["gene_column"] = card["record"].get("gene_column")  # absent in older atlases
        record["seeds"] = [dict(pair) for pair in card["record"].get("seeds", [])]
        findings = card["record"].get("confounding", [])  # absent before it was looked for
        record["confounding"] = [Finding.from_json(finding).to_json() for finding in findings]
        record["labelled"] = {
            which: int(card["record"]["labelled"][which]) for which in ("invariant", "spurious")
        }
        if not schema.called:
            raise ValueError("no biological covariate has categories")
        if shares.shape != (len(genes),) or not genes or not math.isfinite(median):
            raise ValueError("genes and their shares differ in length")
        if len(set(genes)) < len(genes):
            raise ValueError("a gene is there twice")
        if not (shares >= 0).all() or not math.isclose(shares.sum(), 1, rel_tol=1e-6):
            raise ValueError("the genes' shares of the counts are no shares, which sum to 1")
        with torch.device("meta"):
            model = Model(
                len(genes),
                _promised_table(schema, "biological", sizes),
                _promised_table(schema, "technical", sizes),
                median,
                settings,
            )
    weights = read_tensors(folder / MODEL, model.state_dict(), card.get("model_sha256"), ATLAS)
    model.load_state_dict(weights, assign=True)
    _check_tables(model, schema, folder / MODEL)
    model.eval()
    history = _read_history(
        folder / HISTORY, record["training"]["epochs"], card.get("history_sha256")
    )
    calibration = _read_calibration(folder, card.get("calibration"), model, settings)
    return Atlas(model, schema, genes, shares, settings, history, record, calibration)


def write_atlas(atlas: Atlas, folder: Path) -> None:
    """Write the files of an atlas into a folder that :func:`staged` gives."""
    weights = {name: value.contiguous() for name, value in atlas.model.state_dict().items()}
    save_file(weights, folder / MODEL)
    atlas.history.to_csv(folder / HISTORY, index=False)
    said = {
        "model_sha256": digest_file(folder / MODEL),
        "history_sha256": digest_file(folder / HISTORY),
        "calibration": _write_calibration(atlas.calibration, folder / CALIBRATION),
        "run": {
            "biological": [c.column for c in atlas.schema.biological],
            "technical": [c.column for c in atlas.schema.technical],
            "hierarchy": {
                c.name: {group: list(finer) for group, finer in c.groups}
                for c in atlas.schema.biological
                if c.groups
            },
            "layer": atlas.record["layer"],
            "gene_column": atlas.record["gene_column"],
            "genes_given": atlas.record["genes_given"],
            "settings": asdict(atlas.settings),
        },
        "schema": atlas.schema.to_json(),
        "combinations": {
            "biological": len(atlas.model.prior_invariant.combinations),
            "technical": len(atlas.model.prior_spurious.combinations),
        },
        "median_library_size": atlas.model.encode.median_library_size.item(),
        "record": atlas.record,
        "genes": list(atlas.genes),
        "gene_shares": atlas.gene_shares.tolist(),
    }
    write_card(said, folder, ATLAS)


def _promised_table(schema: Schema, role: str, sizes: dict[str, int]) -> CovariateTable:
    covariates = getattr(schema, role)
    n = sizes[role]
    codes = torch.empty(n, len(covariates), dtype=torch.int64)
    table = tabulate_values(covariates, codes, torch.empty(n))
    return replace(table, cells=torch.empty(sum(table.sizes))) if role == "technical" else table


def _check_adaptations(steps: Any, schema: Schema) -> None:
    """Each step must name values the schema ends with, the latest last."""
    left = {c.name: list(c.categories) for c in schema.technical}
    for step in reversed([dict(step) for step in steps]):
        for name, values in dict(step["values"]).items():
            if not values or left[name][-len(values) :] != list(values):
                raise ValueError(f"adaptation names values of {name!r} that are not its last")
            del left[name][-len(values) :]
        if int(step["combinations"]) < 0:
            raise ValueError("an adaptation took combinations away")


def _check_alignment(told: dict[str, Any]) -> None:
    """Nothing, or to how many cells, and how far."""
    if told == {}:
        return
    cells, missing, shift = told["cells"], told["missing_genes"], told["shift"]
    if type(cells) is not int or type(missing) is not int or not 0 <= shift < math.inf:
        raise ValueError("an alignment is described by other things than it should be")


def _write_calibration(calibration: Calibration | None, file: Path) -> dict[str, Any] | None:
    if calibration is None:
        return None
    values = {field.name: getattr(calibration, field.name) for field in fields(calibration)}
    tensors = {k: v.contiguous() for k, v in values.items() if isinstance(v, torch.Tensor)}
    save_file(tensors, file)
    plain = {name: value for name, value in values.items() if name not in tensors}
    cells, landmarks = len(calibration.call_scores), len(calibration.landmarks)
    return {**plain, "cells": cells, "landmarks": landmarks, "sha256": digest_file(file)}


def _read_calibration(
    folder: Path, card: Any, model: Model, settings: Settings
) -> Calibration | None:
    if card is None:
        return None
    table, _ = model.prior_invariant.joint()
    with reading(folder / CARD):
        cells, landmarks = int(card["cells"]), int(card["landmarks"])
        judged = [card[name] for name in ("expected_calibration_error", "brier")]
        gap, brier = (None if value is None else float(value) for value in judged)
        shift = float(card["usual_shift"])
        whole_donors = bool(card["whole_donors"])
        with torch.device("meta"):
            promised = {
                "exponents": torch.empty(1 + table.shape[1]),
                "call_scores": torch.empty(cells),
                "novelty_scores": torch.empty(cells),
                "pooled_scores": torch.empty(cells),
                "called": torch.empty(cells, dtype=torch.int64),
                "landmarks": torch.empty(landmarks, settings.invariant_latents),
                "standard": torch.empty(2, 2),
            }
    tensors = read_tensors(folder / CALIBRATION, promised, card.get("sha256"), ATLAS)
    called = tensors["called"]
    positive = torch.cat([tensors["exponents"], tensors["standard"][1]])
    possible = landmarks > 0 and bool(
        shift >= 0 and (positive > 0).all() and (called >= 0).all() and (called < len(table)).all()
    )
    told = tensors | {"call_scores": tensors["call_scores"].nan_to_num(posinf=torch.inf)}
    if not (possible and all(torch.isfinite(t).all() for t in told.values())):
        raise StorageError(f"{folder / CALIBRATION} is damaged: it holds impossible values.")
    return Calibration(
        expected_calibration_error=gap,
        brier=brier,
        whole_donors=whole_donors,
        usual_shift=shift,
        **tensors,
    )


def _check_tables(model: Model, schema: Schema, file: Path) -> None:
    for prior, covariates in (
        (model.prior_invariant, schema.biological),
        (model.prior_spurious, schema.technical),
    ):
        sizes = torch.tensor([len(covariate.categories) for covariate in covariates])
        codes, weights = prior.combinations, prior.weights
        if ((codes < 0) | (codes >= sizes)).any() or not (weights > 0).all():
            raise StorageError(
                f"{file} is damaged: a prior's table names values that do not exist."
            )
        if (prior.random_effects.cells < 0).any():
            raise StorageError(f"{file} is damaged: a value has fewer than no cells.")
        table = tabulate_values(covariates, codes, weights)
        derived = type(prior)(table, 0, 0).state_dict()
        for name, tensor in prior.state_dict().items():
            if name.startswith(("admits_", "has_value")) and not torch.equal(tensor, derived[name]):
                raise StorageError(f"{file} is damaged: {name} does not follow from its {CARD}.")
    check_finite(model.state_dict(), file)


def _read_history(file: Path, epochs: int, digest: object) -> pd.DataFrame:
    try:
        if digest_file(file) != digest:
            raise StorageError(f"{file} is damaged: it was changed after the fit.")
        history = pd.read_csv(file, float_precision="round_trip")
    except FileNotFoundError:
        raise StorageError(f"{file.parent} holds no whole atlas: {HISTORY} is missing.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{file} is damaged: it is no table ({error}).") from error
    if len(history) != epochs or "train_objective" not in history:
        raise StorageError(f"{file} is damaged: it does not hold the {epochs} epochs of the fit.")
    return history
