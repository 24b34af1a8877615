"""What a reader of calls should know before trusting them, a sentence each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from invatlas.atlas import Atlas
from invatlas.data.columns import NOTHING_SPELLINGS, text_values
from invatlas.data.covariates import Covariate
from invatlas.data.genes import GeneOverlap
from invatlas.data.knots import read_numbers
from invatlas.record import find_guessed
from invatlas.tasks.novelty import describe_doubt
from invatlas.wording import count_noun, list_first

NOT_CALIBRATED = (
    "Calls are not calibrated and novelty is not judged: something must be known of 20 held-out "
    "cells, and the fit must not have been interrupted. Probabilities may be far too sure."
)


def describe_doubts(
    atlas: Atlas, obs: pd.DataFrame, label_prior: str, overlap: GeneOverlap
) -> list[str]:
    """Say what a reader of some calls should know before trusting them."""
    messages = [*unknown_values(atlas, obs), *describe_doubt(overlap)]
    if atlas.calibration is None:
        messages.append(NOT_CALIBRATED)
    weak = find_guessed(atlas.calibration, atlas.schema) if label_prior == "query" else []
    if weak:
        messages.append(
            f"Calls of {', '.join(weak)} for new donors are hardly better than guesses, so "
            "frequencies estimated from the query mean little there. label_prior "
            "'reference' does not need them."
        )
    return messages


def unknown_values(atlas: Atlas, obs: pd.DataFrame) -> list[str]:
    """Say which values of a query's own labels and scales the atlas never met."""
    messages = []
    for covariate in atlas.schema.covariates:
        if covariate.name in obs.columns and covariate.knots:
            messages += _strange_numbers(covariate, obs, covariate in atlas.schema.biological)
    for covariate in atlas.schema.called:
        if covariate.name not in obs.columns:
            continue
        known = {*covariate.categories, *(group for group, _ in covariate.groups)}
        met = obs[[covariate.name]].drop_duplicates()
        strange = sorted(set(text_values(met, covariate.name).dropna()) - known)
        if strange:
            more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
            messages.append(
                f"obs column {covariate.name!r} of the query holds "
                f"{count_noun(len(strange), 'value')} the atlas does not know: "
                f"{', '.join(strange[:5])}{more}. Calls come from the counts alone and can only "
                "name what the atlas knows."
            )
    return messages


def _strange_numbers(covariate: Covariate, obs: pd.DataFrame, biological: bool) -> list[str]:
    """Say what a column holds that does not lie on the atlas's scale."""
    messages = []
    low, high = covariate.knots[0], covariate.knots[-1]
    values = text_values(obs, covariate.name, NOTHING_SPELLINGS)
    numbers = read_numbers(values)
    where = f"obs column {covariate.name!r} of the query holds"
    if beyond := int(((numbers < low) | (numbers > high)).sum()):
        meaning = "calls cannot leave that range"
        if not biological:
            meaning = "calls do not depend on it, what is said of the laboratory does"
        messages.append(
            f"{where} {count_noun(beyond, 'number')} beyond the atlas's, {low:g} to {high:g}; "
            f"{meaning}."
        )
    odd = values[values.notna() & np.isnan(numbers)]
    if len(odd):
        messages.append(
            f"{where} what is no finite number in {count_noun(len(odd), 'cell')} "
            f"({list_first(sorted(set(odd)))}); it counts as missing."
        )
    return messages
