"""The next experiment: which combinations would tell most of all of them, measured together.

    I(y_s; y_d) = -1/2 sum_k log(1 - v_ksd^2 / ((v_kss + r_s) (v_kdd + r_d)))      k: latents
    s           = argmax mean_d I(y_s; y_d)                          in nats, d: every candidate
    v_k        <- v_k - v_ks v_ks^T / (v_kss + r_s)                  once s is chosen

v_k is the covariance of the means of the candidates given what was measured (prior_effects.py),
r the noise of the mean of so many cells. I is what measuring s tells of a later measurement of d:
the expected rise of its log-likelihood (expected predictive information gain, Bickford Smith et al.
2023, AISTATS; after Lindley 1956, Annals of Mathematical Statistics 27). In a linear model it
depends on no outcome, so that a batch can be planned one by one.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.columns import text_values
from invatlas.data.covariates import Covariate
from invatlas.errors import CovariateError, SettingsError
from invatlas.tasks.combined import read_parts
from invatlas.tasks.embed import embed
from invatlas.tasks.explain import count_cells
from invatlas.tasks.prior_effects import Measured, Weights, fit_effects, predict
from invatlas.tasks.samples import name_donor
from invatlas.wording import list_first, suggest

MOST_CANDIDATES = 2000
MOST_CELLS = 1e9
LEAST_NOISE = 1e-6


def design(
    atlas: Atlas,
    candidates: pd.DataFrame | None = None,
    *,
    budget: int,
    cells: int = 100,
    reference: AnnData | None = None,
    donor: str | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
) -> pd.DataFrame:
    """Rank combinations of biological values by what measuring them would tell of all the others.

    Parameters
    ----------
    atlas
        A fitted atlas.
    candidates
        One row a combination, one column a biological covariate; a value may name several, as in
        ``"A+B"``, whose effects add up beside their interaction; measured pairs of that name tell
        of their parts likewise. Columns ``cells`` and ``donors``
        say what would be measured. Without it, every combination that no cell the atlas learnt from
        had, nor any of ``reference`` (cells held out to end training are in that alone), by one
        donor.
    budget
        How many to choose.
    cells
        Cells of each donor that would be measured, where ``candidates`` does not say.
    reference
        Raw counts of the cells the atlas was fitted to, with obs. With it donors are the
        replicates: means, donors and the variance between donors are taken from its cells.
        Without it the prior's means are taken as known from so many cells, of one donor each.
    donor
        Column of donors in the obs of ``reference``; by default the technical covariate with most
        values.
    layer, gene_column
        Of ``reference``, as in :func:`invatlas.embed`.

    Returns
    -------
    DataFrame
        The chosen combinations, in order: ``rank``, the covariates, ``cells``, ``donors``,
        ``uncertainty`` (of the mean before anything is added: root mean square over latents, in
        standard deviations within combinations), ``alone`` (what it tells of a later measurement of
        a candidate if it is measured alone, in nats, the mean over candidates), ``information``
        (given those chosen before it) and ``total`` (of the batch so far).

    Raises
    ------
    CovariateError
        If a column is absent, or a value is not one of the atlas.
    SettingsError
        If the budget is no number from 1 to the number of candidates, there is nothing left to
        measure, or there are more than 2,000 candidates.
    """
    check_atlas(atlas)
    covariates = atlas.schema.biological
    if candidates is None:
        candidates = list_unmeasured(atlas, None if reference is None else reference.obs)
        if not len(candidates):
            raise SettingsError(_say_none_left(atlas))
    _check(candidates, [c.name for c in covariates], budget, cells)
    weights = weigh(covariates, candidates)
    measured = (
        measure_prior(atlas)
        if reference is None
        else measure_cells(atlas, reference, donor, layer, gene_column)
    )
    table = candidates[[c.name for c in covariates]].astype(str).reset_index(drop=True)
    for name, default in (("cells", cells), ("donors", 1)):
        table[name] = _whole_numbers(candidates[name], name) if name in candidates else default
    noise = (measured.donor_variance + 1 / table["cells"].to_numpy()) / table["donors"].to_numpy()
    left = predict(fit_effects(measured), measured, weights)[1]
    chosen, gains = choose(left, noise, budget)
    variance = left.diagonal(axis1=1, axis2=2).clip(0)
    found = table.iloc[chosen].assign(
        uncertainty=np.sqrt(variance.mean(0))[chosen],
        alone=inform(left, noise)[chosen],
        information=gains,
        total=gains.cumsum(),
    )
    found.insert(0, "rank", np.arange(1, budget + 1))
    return found.reset_index(drop=True)


def choose(left: np.ndarray, noise: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose greedily: positions, and the information of each given those before it, in nats.

    ``left`` holds v (latent, candidate, candidate), ``noise`` r (candidate,).
    """
    left, chosen = left.copy(), np.zeros(budget, dtype=np.int64)
    gains, free = np.zeros(budget), np.ones(len(noise), dtype=bool)
    for step in range(budget):
        gain = np.where(free, inform(left, noise), -np.inf)
        s = int(gain.argmax())
        chosen[step], gains[step], free[s] = s, gain[s], False
        column = left[:, :, s]
        share = column / (column[:, s] + noise[s])[:, None]
        left -= column[:, :, None] * share[:, None, :]
    return chosen, gains


def inform(left: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What each candidate tells of a later measurement of any, in nats, (candidate,)."""
    told = np.zeros(len(noise))
    for v in left:
        spread = v.diagonal().clip(0) + noise
        told -= 0.5 * np.log1p(-(v**2) / (spread[:, None] * spread)).mean(0)
    return told


def list_unmeasured(atlas: Atlas, obs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Combinations of the prior's table that no cell it learnt from had, nor any of ``obs``."""
    codes = atlas.model.prior_invariant.combinations.cpu().numpy()[count_cells(atlas) == 0]
    if obs is not None:
        met = set(map(tuple, np.unique(atlas.schema.encode(obs)[0], axis=0).tolist()))
        codes = codes[[tuple(row) not in met for row in codes.tolist()]]
    return pd.DataFrame(
        {c.name: np.array(c.categories)[codes[:, k]] for k, c in enumerate(atlas.schema.biological)}
    )


def weigh(covariates: tuple[Covariate, ...], table: pd.DataFrame) -> Weights:
    """Weights of the values of each covariate, (combination, value)."""
    return [_weigh_scale(c, table) if c.knots else _weigh_values(c, table) for c in covariates]


@torch.inference_mode()
def measure_prior(atlas: Atlas) -> Measured:
    """What the prior says of the combinations it has seen cells of."""
    prior, counts = atlas.model.prior_invariant, count_cells(atlas)
    given, seen = prior(), counts > 0
    codes, counts = prior.combinations.cpu().numpy()[seen], counts[seen]
    mean = given.mean.double().cpu().numpy()[seen]
    variance = given.covariance().diagonal(dim1=1, dim2=2).double().cpu().numpy()[seen]
    within = np.average(variance, axis=0, weights=counts)
    weights = [_weigh_codes(c, codes[:, k]) for k, c in enumerate(atlas.schema.biological)]
    noise = (variance / within).mean(1) / counts
    return Measured(weights, mean / np.sqrt(within), noise, 0.0)


def measure_cells(
    atlas: Atlas,
    reference: AnnData,
    donor: str | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
) -> Measured:
    """What cells say of their combinations, with donors as replicates."""
    donor = donor or name_donor(atlas)
    columns = [c.name for c in atlas.schema.biological]
    labels = pd.DataFrame({name: text_values(reference.obs, name) for name in [*columns, donor]})
    codes, _ = atlas.schema.encode(reference.obs)
    known = labels.notna().all(axis=1).to_numpy() & (codes >= 0).all(1)
    if not known.any():
        raise CovariateError(f"No cell has a value of {donor} and of every biological covariate.")
    z = embed(atlas, reference[known], layer=layer, gene_column=gene_column).astype(float)
    labels = labels[known].reset_index(drop=True)
    of_donor = labels.groupby([*columns, donor], sort=True).ngroup().to_numpy()
    first = np.unique(of_donor, return_index=True)[1]
    of_combination = labels.iloc[first].groupby(columns, sort=True).ngroup().to_numpy()
    size = np.bincount(of_donor)
    mean = _average(z, of_donor)
    within = ((z - mean[of_donor]) ** 2).sum(0) / max(1, len(z) - len(size))
    mean = mean / np.sqrt(within + np.finfo(float).tiny)
    centre = _average(mean, of_combination)
    donors = np.bincount(of_combination)
    replicated = (donors > 1)[of_combination]
    spread = 0.0
    if replicated.any():
        unbiased = (donors / np.maximum(donors - 1, 1))[of_combination, None]
        between = unbiased * (mean - centre[of_combination]) ** 2 - 1 / size[:, None]
        spread = max(0.0, float(between[replicated].mean()))
    noise = (spread + _average(1 / size[:, None], of_combination)[:, 0]) / donors
    rows = labels.iloc[first].groupby(columns, sort=True).head(1).sort_values(columns)
    weights = weigh(atlas.schema.biological, rows)
    return Measured(weights, centre, np.maximum(noise, LEAST_NOISE), spread)


def _average(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of the rows of each group."""
    total = np.zeros((group.max() + 1, values.shape[1]))
    np.add.at(total, group, values)
    return total / np.bincount(group)[:, None]


def _weigh_codes(covariate: Covariate, codes: np.ndarray) -> np.ndarray:
    """Weights (combination, value) of categories or knots; a pair such as A+B is its parts."""
    if covariate.knots:
        return np.asarray(np.eye(len(covariate.knots))[codes])
    values = pd.DataFrame({covariate.name: covariate.categories})
    return np.asarray(_weigh_values(covariate, values)[codes])


def _split(text: str, known: Collection[str]) -> list[str]:
    """The parts of "A+B", of which a value of that name is made too where the parts are known."""
    parts = read_parts(text)
    return parts if text not in known or set(parts) <= set(known) else [text]


def _weigh_values(covariate: Covariate, table: pd.DataFrame) -> np.ndarray:
    weights = np.zeros((len(table), len(covariate.categories)))
    place = {value: k for k, value in enumerate(covariate.categories)}
    for row, text in enumerate(table[covariate.name].astype(str)):
        for value in _split(text, place):
            if value.strip() not in place:
                raise CovariateError(
                    f"Candidate {row} has {covariate.name} {value!r}, which the atlas does not "
                    f"know; it knows {list_first(covariate.categories)}."
                    f"{suggest(value.strip(), covariate.categories)}"
                )
            weights[row, place[value.strip()]] = 1
    return weights


def _weigh_scale(covariate: Covariate, table: pd.DataFrame) -> np.ndarray:
    position = covariate.positions(table)
    if np.isnan(position).any():
        row = int(np.isnan(position).argmax())
        raise CovariateError(
            f"Candidate {row} has {covariate.name} {table[covariate.name].iloc[row]!r}; it takes "
            "a number."
        )
    knots = np.arange(len(covariate.knots))
    return np.asarray(np.clip(1 - np.abs(position[:, None] - knots), 0, None))


def _say_none_left(atlas: Atlas) -> str:
    covariates = atlas.schema.biological
    every = int(np.prod([len(c.categories) for c in covariates]))
    met = len(atlas.model.prior_invariant.combinations)
    ask = f"name candidates, a table with the columns {', '.join(c.name for c in covariates)}."
    if met == every:
        return f"Every combination of values was measured; {ask}"
    return (
        f"The atlas lists only the {met:,} combinations it met of {every:,}, too many to rank; "
        f"{ask}"
    )


def _whole_numbers(column: pd.Series, name: str) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    whole = (numbers >= 1) & (numbers < MOST_CELLS) & (numbers == np.floor(numbers))
    if not whole.all():
        row = int((~whole).argmax())
        raise SettingsError(
            f"Candidate {row} has {name} {column.iloc[row]}; it takes a whole number from 1."
        )
    return np.asarray(numbers, dtype=np.int64)


def _check(candidates: pd.DataFrame, columns: list[str], budget: int, cells: int) -> None:
    if absent := [name for name in columns if name not in candidates]:
        raise CovariateError(
            f"The candidates have no column {', '.join(absent)}; they have "
            f"{', '.join(map(str, candidates.columns)) or 'none'}."
        )
    if len(candidates) > MOST_CANDIDATES:
        raise SettingsError(
            f"There are {len(candidates):,} candidates; at most {MOST_CANDIDATES:,} are ranked."
        )
    if not 1 <= budget <= len(candidates):
        raise SettingsError(f"budget is {budget}; it takes 1 to {len(candidates)}, the candidates.")
    if cells < 1:
        raise SettingsError(f"cells is {cells}; it takes 1 or more.")
