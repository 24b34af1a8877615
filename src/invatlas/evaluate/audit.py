"""The leakage audit: what each set of latents tells of each covariate, against chance.

    share = max(0, (score - c) / (1 - c)), c = max(mean null, chance)      0 nothing, 1 all of it
    p     = (1 + #{max(null, chance) >= score}) / (1 + permutations)       Phipson & Smyth 2010
    importance of a set = score - score with that set shuffled between cells, all else learnt

The score is a balanced accuracy (:mod:`invatlas.evaluate.question`). Where donors differ in size or
composition a left-out donor is called less often right than by guessing, more so once values are
exchanged; so no score at or below guessing counts as evidence. The importance is the
permutation importance of Breiman 2001 with the whole set as one variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.random import Generator

from invatlas.atlas import Atlas, check_atlas
from invatlas.errors import SettingsError
from invatlas.evaluate.labels import draw_cells, read_labels
from invatlas.evaluate.probes import PROBES, Boosted, Predictor, Probe
from invatlas.evaluate.question import Question, ask
from invatlas.evaluate.witnesses import UnanswerableError
from invatlas.tasks.embed import LATENTS
from invatlas.tasks.map import map_cells

BOTH = "both"
SHUFFLES = 3
FEW_ARRANGEMENTS = 40
SIGNIFICANT = 0.05
LEAST_FOR_NOTE = 18  # permutations that a score must lie below to be remarked on
BELOW = (
    "below every permutation: values lie more evenly than chance would lay them, as they do in "
    "cells a fit has evened out; cells it has not seen tell more"
)


@dataclass(frozen=True)
class Effort:
    """How much an audit may cost.

    Attributes
    ----------
    cells
        Most cells to look at, drawn so that every combination of values keeps its share.
    folds
        Parts that donors, or cells, are dealt to.
    permutations
        Exchanges behind each null distribution.
    boosted_permutations
        The same for gradient-boosted probes, whose fits are slow; with 9, no p-value is below 0.1.
    seed
        Decides everything that is drawn.
    """

    cells: int = 2500
    folds: int = 4
    permutations: int = 39
    boosted_permutations: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("cells", 1), ("folds", 2), ("permutations", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is {getattr(self, name)}; it is at least {least}.")
        if self.boosted_permutations < 1 or self.seed < 0:
            raise SettingsError("boosted_permutations is at least 1, and seed at least 0.")


def leakage(
    atlas: Atlas,
    adata: AnnData,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    cells: int = 2500,
    folds: int = 4,
    permutations: int = 39,
    boosted_permutations: int = 9,
    seed: int = 0,
) -> pd.DataFrame:
    """Audit what the latents of an atlas tell of its covariates.

    Linear, nearest-neighbour and gradient-boosted probes learn each covariate from z_I, from z_S
    and from both. A technical covariate is asked for within each combination of the biological
    ones, so that what batches tell because their biology differs is no leak; a biological one is
    asked of z_S within combinations of the technical covariates other than the donor, and of the
    other sets without anything given. Donors are the values of the technical covariate that has
    most; probes are judged on donors they did not learn from. Where donors are not among the
    technical covariates, cells are taken as independent within the values of the one that has
    most, and p-values are too small. A continuous covariate is cut into at most four groups of
    equal size, by quantiles of its numbers in these cells: groups are its values, asked for and,
    where it is biological, given.

    **Audit cells that were kept from the fit.** The objective makes donors alike in the very cells
    it sees, so these hide what z_I keeps: with the atlas fitted to half of the Kang cells, donors
    were told from z_I worse than by guessing on that half, and well above it on the other.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts, with the covariates in obs; a coarse value counts as missing.
    layer, gene_column
        As in :func:`invatlas.embed`.
    cells, folds, permutations, boosted_permutations, seed
        See :class:`Effort`.

    Returns
    -------
    DataFrame
        As of :func:`probe_latents`.

    Raises
    ------
    GeneError, CountsError
        As :func:`invatlas.embed` does.
    SettingsError
        If the effort is out of range.
    """
    effort = Effort(cells, folds, permutations, boosted_permutations, seed)
    check_atlas(atlas)
    schema, labels = atlas.schema, read_labels(atlas.schema, adata.obs)
    rows = draw_cells(labels, effort.cells, np.random.default_rng(effort.seed))
    mapped = map_cells(atlas, adata[rows], layer=layer, gene_column=gene_column)
    latents = {which: mapped.cells.obsm[f"X_{which}"] for which in LATENTS}
    return probe_latents(
        latents,
        labels.iloc[rows],
        [covariate.name for covariate in schema.biological],
        [covariate.name for covariate in schema.technical],
        effort,
        [covariate.name for covariate in schema.covariates if covariate.knots],
    )


def probe_latents(
    latents: Mapping[str, np.ndarray],
    labels: pd.DataFrame,
    biological: Sequence[str],
    technical: Sequence[str],
    effort: Effort | None = None,
    scales: Sequence[str] = (),
) -> pd.DataFrame:
    """Audit any two sets of latents.

    Parameters
    ----------
    latents
        ``invariant`` and ``spurious``, each (cell, latent); a set without dimensions is skipped.
    labels
        Values of the covariates (cell, covariate); missing ones as None or NaN.
    biological, technical
        Columns of it; one that is absent is reported as unanswered.
    effort
        How much it may cost.
    scales
        Those whose values are groups of numbers; technical ones are no donors and never given.

    Returns
    -------
    DataFrame
        One row a covariate, set of latents (``invariant``, ``spurious``, ``both``) and probe:
        ``covariate``, ``role``, ``latents``, ``given`` (columns that were held fixed), ``probe``,
        ``score``, ``null_mean``, ``null_05``, ``null_95`` (quantiles of the null distribution),
        ``p_value``, ``judged`` (whether exchanges of these values could give a p-value of 0.05 at
        all; where not, a score within the band is no all-clear), ``chance``, ``share`` (all
        balanced accuracies, 0 to 1), ``importance_invariant``, ``importance_spurious`` (of
        ``both``), ``cells``, ``strata``, ``exchanged`` (what values were exchanged between),
        ``permutations`` and ``note``: why numbers are missing, or what to know of them.
    """
    effort = effort or Effort()
    rows = draw_cells(labels, effort.cells, np.random.default_rng(effort.seed))
    labels = labels.iloc[rows]
    sets = {name: np.asarray(z)[rows] for name, z in latents.items() if np.shape(z)[1]}
    if len(sets) > 1:
        sets[BOTH] = np.concatenate(list(sets.values()), axis=1)
    known = [name for name in labels if labels[name].notna().any()]
    held = [name for name in technical if name in known and name not in scales]
    donor = max(held, key=lambda name: labels[name].nunique(), default=None)
    told = []
    for number, covariate in enumerate([*biological, *technical]):
        for name in sets:
            others = [c for c in held if c != donor] if name == "spurious" else []
            given = [c for c in biological if c in known] if covariate in technical else others
            head = {
                "covariate": covariate,
                "role": "biological" if covariate in biological else "technical",
                "latents": name,
                "given": " and ".join(given),
            }
            generator = np.random.default_rng([effort.seed, number])
            try:
                if covariate not in labels:
                    raise UnanswerableError(f"there is no column {covariate}")
                question = ask(labels, covariate, given, donor, effort.folds, generator)
            except UnanswerableError as error:
                told += [
                    head | {"probe": probe.name, "judged": False, "note": str(error)}
                    for probe in PROBES
                ]
                continue
            told += [head | row for row in _answer(question, sets, name, effort, generator)]
    return pd.DataFrame(told, columns=COLUMNS)


COLUMNS = [
    *("covariate", "role", "latents", "given", "probe"),
    *("score", "null_mean", "null_05", "null_95", "p_value", "judged", "chance", "share"),
    *("importance_invariant", "importance_spurious"),
    *("cells", "strata", "exchanged", "permutations", "note"),
]


def _answer(
    question: Question,
    sets: Mapping[str, np.ndarray],
    name: str,
    effort: Effort,
    generator: Generator,
) -> list[dict[str, Any]]:
    """One row for each probe of one set of latents."""
    ways = question.arrangements
    exchanges = [question.exchange(generator) for _ in range(effort.permutations)]
    few = f"values can be dealt in {ways:.0f} ways only" if ways < FEW_ARRANGEMENTS else ""
    if question.least_p > SIGNIFICANT:
        few = (
            f"cannot be judged: values can be dealt in {ways:.0f} ways only, so that even of "
            f"values told in full p is {question.least_p:.2g} at least"
        )
    rows = []
    for kind in PROBES:
        probe = kind(sets[name], question)
        predictor = probe.learn(question.t, question.fold)
        score = question.score(question.t, predictor(probe.z))
        most = effort.boosted_permutations if kind is Boosted else effort.permutations
        null = np.array(
            [question.score(t, probe.learn(t, fold)(probe.z), fold) for t, fold in exchanges[:most]]
            if ways > 1.5
            else []
        )
        notes = [question.note, few]
        if len(null) > LEAST_FOR_NOTE and score < np.nanmin(null):
            notes.append(BELOW)
        chance = float(np.mean(1 / question.scored))
        rows.append(
            {
                "probe": probe.name,
                "score": score,
                **_compare(score, null[np.isfinite(null)], chance),
                "judged": question.least_p <= SIGNIFICANT,
                "chance": chance,
                **(_weigh(probe, predictor, score, sets, generator) if name == BOTH else {}),
                "cells": len(question.t),
                "strata": len(question.scored),
                "exchanged": question.carriers,
                "note": "; ".join(filter(None, notes)),
            }
        )
    return rows


def _compare(score: float, null: np.ndarray, chance: float) -> dict[str, float | int]:
    """Hold a score against its null distribution (permutation,) and against guessing."""
    if not len(null):
        return {"permutations": 0}
    low, high = np.quantile(null, [0.05, 0.95])
    floor = max(float(null.mean()), chance)
    reached = np.maximum(null, chance) >= score - 1e-9
    return {
        "null_mean": float(null.mean()),
        "null_05": float(low),
        "null_95": float(high),
        "p_value": float((1 + reached.sum()) / (1 + len(null))),
        "share": max(0.0, (score - floor) / max(1.0 - floor, 1e-9)),
        "permutations": len(null),
    }


def _weigh(
    probe: Probe,
    predictor: Predictor,
    score: float,
    sets: Mapping[str, np.ndarray],
    generator: Generator,
) -> dict[str, float]:
    """Drop of the score where one set of latents is shuffled between cells of a stratum."""
    drops, start = {}, 0
    for name, z in sets.items():
        if name == BOTH:
            continue
        block = slice(start, start + z.shape[1])
        start += z.shape[1]
        scores = []
        for _ in range(SHUFFLES):
            shuffled = probe.z.copy()
            shuffled[:, block] = shuffled[probe.question.shuffle(generator), block]
            scores.append(probe.question.score(probe.question.t, predictor(shuffled)))
        drops[f"importance_{name}"] = score - float(np.mean(scores))
    return drops
