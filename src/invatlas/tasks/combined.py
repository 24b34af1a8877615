"""Combined values such as "A+B", which nobody measured: the effects of the parts, added.

    a_AB = a + s [(a_A - a) + (a_B - a)]            a the logits the decoder makes of a cell
    s    = (sum_P U_P . V_P + w) / (sum_P U_P . U_P + w)
    V_P  = a(m + v_P) - a(m)                        v_P the effect of P = "C+D" on the mean of z_I
    U_P  = sum_{C in P} a(m + v_C) - a(m)

over the values P that were measured beside their parts; m is what the cells are now. Effects are
added as log fold changes, the additive model that networks seldom beat (Ahlmann-Eltze et al. 2025,
Nature Methods 22), and not in z_I: there the sum lies where the decoder has never been. s says how
much of the sum measured combinations have, mostly less (Norman et al. 2019, Science 365). The
product weighs genes by their share of the counts. w, the mean of U_P . U_P, is the weight of one
combination that is the sum of its parts; s is 1 where none was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from invatlas.atlas import Atlas
from invatlas.data.covariates import Covariate
from invatlas.errors import CovariateError
from invatlas.model.measured import Additive
from invatlas.tasks.change import Change, Values
from invatlas.tasks.explain import express_latents

TOGETHER = "+"


def read_parts(text: str) -> list[str]:
    """What "A+B" is written of, whether or not these are values."""
    return [part.strip() for part in text.split(TOGETHER)]


def find_parts(covariate: Covariate, text: str) -> list[str]:
    """The values that "A+B" is made of; none where it is one value, or no combination of values."""
    parts = read_parts(text)
    if covariate.knots or len(parts) < 2 or not set(parts) <= set(covariate.categories):
        return []
    return parts


def split_change(
    covariates: Sequence[Covariate], change: Change
) -> tuple[dict[str, str | float], dict[str, list[str]]]:
    """Part a change into what single values do and the parts of what combined ones do.

    A combination that is a value of its own, in whatever order, was measured, and stays one.
    """
    single, combined = dict(change), {}
    for covariate in covariates:
        text = str(change.get(covariate.name, "")).strip()
        parts = find_parts(covariate, text)
        if not parts or text in covariate.categories:
            continue
        same = [
            v for v in covariate.categories if sorted(find_parts(covariate, v)) == sorted(parts)
        ]
        if same:
            single[covariate.name] = same[0]
        else:
            del single[covariate.name]
            combined[covariate.name] = parts
    return single, combined


def check_parts(covariate: Covariate, parts: Sequence[str], now: np.ndarray) -> None:
    """Refuse parts named twice, and cells (kind, value) that have one of them already.

    Raises
    ------
    CovariateError
        If there are any.
    """
    if len(set(parts)) < len(parts):
        raise CovariateError(
            f"{covariate.name} is to become {TOGETHER.join(parts)!r}, which names a value twice; "
            "name each value once."
        )
    if (now[:, [covariate.categories.index(part) for part in parts]] > 0).any():
        raise CovariateError(
            f"{covariate.name} is to become {TOGETHER.join(parts)!r}, and some cells have one of "
            "these already; effects are added to what a cell is, so hand over control cells alone."
        )


@torch.inference_mode()
def share_of_sum(atlas: Atlas, added: Additive, values: Values, column: int) -> np.ndarray:
    """Measure s for what cells are now, shape (kind,).

    Parameters
    ----------
    atlas
        A fitted atlas.
    added
        What its values add (see :func:`~invatlas.tasks.change.split_moments`).
    values
        What the cells are now, biological covariates.
    column
        The one whose values are combined, by number.
    """
    covariate = atlas.schema.biological[column]
    combined = {
        k: [covariate.categories.index(part) for part in parts]
        for k, name in enumerate(covariate.categories)
        if (parts := find_parts(covariate, name))
    }
    if not combined:
        return np.ones(len(values.weights[0]))
    effects = added.values @ atlas.model.measured.mean
    own = effects.split([part.shape[1] for part in values.weights])[column]
    express = express_latents(atlas)
    kinds = torch.from_numpy(np.concatenate(values.weights, 1)).float()
    now = torch.from_numpy(values.weights[column]).float()
    found = []
    for m, at in zip(kinds @ effects, now @ own, strict=True):
        here = express(m[None])
        change = express(m + own - at) - here
        if atlas.settings.likelihood != "gaussian":
            change = change * (0.5 * here).exp()
        u = torch.stack([change[codes].sum(0) for codes in combined.values()])
        v = change[list(combined)]
        w = u.square().sum(1).mean().clamp_min(1e-12)
        found.append(((u * v).sum() + w) / (u.square().sum() + w))
    return torch.stack(found).double().numpy()
