"""Several fits of one study, and the one that the others agree with most."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from invatlas.atlas import Atlas, fit
from invatlas.data.covariates import Schema
from invatlas.errors import DataError, SettingsError, StudyWarning
from invatlas.evaluate.identifiability import AGREEMENTS, agreement
from invatlas.settings import Settings, check_settings
from invatlas.tasks.embed import embed
from invatlas.training.split import draw_split


def fit_seeds(
    adata: AnnData,
    biological: Sequence[str],
    technical: Sequence[str] = (),
    *,
    seeds: int = 5,
    settings: Settings | None = None,
    **choices: Any,
) -> tuple[Atlas, pd.DataFrame]:
    """Fit with several seeds and keep the fit that the others agree with most.

    All hold out the same cells, on which their invariant latents are compared. The fit that is
    kept is made once more, with its calibration, which the comparison does not need.

    Parameters
    ----------
    adata, biological, technical, settings
        As in :func:`invatlas.fit`; the seeds follow ``settings.seed``.
    seeds
        How many fits, at least 2.
    **choices
        Anything else :func:`invatlas.fit` takes.

    Returns
    -------
    Atlas, DataFrame
        The atlas with the highest mean ``linear`` agreement, and every pair as of
        :func:`invatlas.evaluate.agreement`, with seeds for ``first`` and ``second``. The atlas
        remembers the table in ``record["seeds"]``. Ctrl-C keeps the fit it came in, and no table.

    Raises
    ------
    SettingsError
        If there are fewer than two seeds.
    DataError
        If no cells are held out to compare on, or as :func:`invatlas.fit`.
    """
    if seeds < 2:
        raise SettingsError(f"seeds is {seeds}; agreement takes at least 2 fits.")
    settings = check_settings(settings)
    if settings.split_seed is None:
        settings = replace(settings, split_seed=settings.seed)
    schema = Schema.learn(adata.obs, biological, technical, choices.get("hierarchy"))
    biological_codes, technical_codes = schema.keep_categories(*schema.encode(adata.obs))
    held_out = draw_split(biological_codes, technical_codes, settings).held_out
    if not len(held_out):
        raise DataError(
            f"No cells are held out of {adata.n_obs} to compare fits on; held_out is "
            f"{settings.held_out:g}."
        )
    cells = adata[held_out].copy()
    tried = [settings.seed + k for k in range(seeds)]
    quick = [replace(settings, seed=seed, spared_donors=0.0) for seed in tried]
    read: dict[str, Any] = {name: choices.get(name) for name in ("layer", "gene_column")}
    embeddings = []
    for number, chosen in enumerate(quick):
        with _once(number):
            atlas = fit(adata, biological, technical, settings=chosen, **choices)
        if atlas.record["training"]["stopped"] == "interrupted":
            return atlas, pd.DataFrame(columns=["first", "second", *AGREEMENTS])
        embeddings.append(embed(atlas, cells, **read))
    table = agreement(embeddings, _find_strata(schema, biological_codes[held_out]))
    table[["first", "second"]] += settings.seed
    pairs = table.melt("linear", ["first", "second"], value_name="seed")
    means = pairs.groupby("seed")["linear"].mean()
    nearest = replace(settings, seed=int(means.idxmax()))
    with _once(seeds):
        atlas = fit(adata, biological, technical, settings=nearest, **choices)
    plain = table.astype(object).where(table.notna(), None).to_dict("records")
    return replace(atlas, record={**atlas.record, "seeds": plain}), table


@contextmanager
def _once(number: int) -> Iterator[None]:
    """Let only the first fit, whose number is 0, warn of the study that all have in common."""
    with warnings.catch_warnings():
        if number:
            warnings.simplefilter("ignore", StudyWarning)
        yield


def _find_strata(schema: Schema, codes: np.ndarray) -> np.ndarray:
    """Number of each cell's combination of categories; NaN where one is missing or coarse."""
    called = codes[:, [not covariate.knots for covariate in schema.biological]]
    _, number = np.unique(called, axis=0, return_inverse=True)
    return np.where((called >= 0).all(1), number.ravel(), np.nan)
