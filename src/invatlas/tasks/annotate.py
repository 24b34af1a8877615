"""Which cell is this: joint calls of all biological covariates, with honest probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from anndata import AnnData

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.columns import text_values
from invatlas.data.covariates import JOINT, Covariate
from invatlas.data.genes import GeneOverlap
from invatlas.errors import CovariateError, SettingsError
from invatlas.model.calls import collapse, estimate_frequencies, reweigh, sharpen
from invatlas.model.priors import DiagonalGaussian
from invatlas.tasks.doubts import describe_doubts
from invatlas.tasks.embed import MINIMUM_OVERLAP, encode_counts
from invatlas.tasks.novelty import FALSE_DISCOVERY_RATE, check_rate, judge
from invatlas.training.posterior import CHUNK, Calls, call_cells, call_values
from invatlas.wording import suggest

LABEL_PRIORS = ("reference", "uniform", "query")
ABSTAIN_BELOW = 0.5
SEPARATOR = " | "

Value = str | float
Given = Mapping[str, Value | Sequence[Value]]


@dataclass(frozen=True)
class Calling:
    """How cells are to be called; see :func:`annotate`."""

    given: Given = field(default_factory=dict)
    label_prior: str = "reference"
    abstain_below: float = ABSTAIN_BELOW
    false_discovery_rate: float = FALSE_DISCOVERY_RATE

    def __post_init__(self) -> None:
        """Refuse what no call can be made with."""
        if not isinstance(self.given, Mapping):
            raise SettingsError(
                f"given is {self.given!r}; it takes values by covariate, such as "
                "{'disease': 'healthy'}."
            )
        if self.label_prior not in LABEL_PRIORS:
            raise SettingsError(
                f"label_prior is {self.label_prior!r}; it takes {', '.join(LABEL_PRIORS)}."
            )
        if not 0 <= self.abstain_below <= 1:
            raise SettingsError(f"abstain_below is {self.abstain_below!r}; it takes 0 to 1.")
        check_rate(self.false_discovery_rate)


def annotate(
    atlas: Atlas,
    adata: AnnData,
    *,
    given: Given | None = None,
    label_prior: str = "reference",
    abstain_below: float = ABSTAIN_BELOW,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    layer: str | None = None,
    gene_column: str | None = None,
    minimum_overlap: float = MINIMUM_OVERLAP,
) -> pd.DataFrame:
    """Call the biology of cells the atlas may never have met, from their counts alone.

    p(d | x) is proportional to p(d) E_q[p(z_I | d)] over every combination d of biological
    values (Aliee et al. 2023, arXiv 2307.00558), flattened by an exponent for each covariate
    that held-out cells chose (after Guo et al. 2017, ICML; see ``invatlas.model.calls``). A
    covariate's probability is the sum over the others.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts (cell, gene); genes are matched by name. obs is not used.
    given
        What is known of all cells, by covariate: its value, or the values it may have. Coarse
        values of the atlas's hierarchy stand for the finer ones.
    label_prior
        Frequencies of the combinations: ``reference`` as in the atlas, ``uniform``, or
        ``query`` as the cells themselves make likeliest (Saerens et al. 2002). Probabilities are
        flattened after that, so they need not average to these frequencies.
    abstain_below
        Joint probability under which no call is made.
    false_discovery_rate
        Nominal share of known cells among those flagged as new; see :func:`invatlas.novelty`.
    layer, gene_column, minimum_overlap
        As in :func:`invatlas.embed`.

    Returns
    -------
    DataFrame, one row a cell: ``predicted_C`` and ``predicted_C_probability`` for each biological
    covariate C with categories and for ``joint``, ``predicted_C`` and ``predicted_C_deviation``
    (mean and standard deviation under the posterior, in the units of the reference, with the
    label frequencies of the reference) for each
    continuous one, ``novelty_score``, ``novelty_pvalue``, ``novelty_flag``, and
    ``abstained`` where the call is too weak or the cell is flagged. The p-values are missing and
    nothing is flagged where the atlas had too few held-out cells to calibrate with.

    Raises
    ------
    CovariateError
        If ``given`` names no covariate of the atlas, or none of its values.
    SettingsError
        If ``given`` is no mapping, or ``label_prior`` or a threshold is not allowed.
    GeneError, CountsError
        As :func:`invatlas.embed`.
    """
    calling = Calling(
        {} if given is None else given, label_prior, abstain_below, false_discovery_rate
    )
    check_atlas(atlas)
    allowed_by(atlas, calling.given)
    q, overlap = encode_counts(atlas, adata, ["invariant"], layer, minimum_overlap, gene_column)
    for message in describe_doubts(atlas, adata.obs, calling.label_prior, overlap):
        warnings.warn(message, stacklevel=2)
    return describe(atlas, q["invariant"], calling, overlap).set_axis(pd.Index(adata.obs_names))


@torch.inference_mode()
def log_probabilities(
    atlas: Atlas, calls: Calls, allowed: torch.Tensor, label_prior: str, overlap: GeneOverlap
) -> torch.Tensor:
    """Calibrated log-posterior (cell, joint) under the wanted label frequencies."""
    prior, known = atlas.model.prior_invariant, atlas.calibration
    combinations, place = prior.joint()
    log_share = collapse(prior.weights.log()[None], place)[0]
    if label_prior == "query":
        counted = calls.log_p[overlap.find_counted(len(calls.log_p))]
        log_weight = estimate_frequencies(counted, log_share, allowed)
    elif label_prior == "uniform":
        log_weight = torch.zeros_like(log_share)
    else:
        log_weight = log_share
    log_weight = log_weight.masked_fill(~allowed, -torch.inf)
    pieces = []
    for some in calls.log_p.split(CHUNK):
        log_p = reweigh(some, log_share, log_weight)
        pieces.append(sharpen(log_p, combinations, known.exponents) if known else log_p)
    return torch.cat(pieces)


def describe(
    atlas: Atlas, q: DiagonalGaussian, calling: Calling, overlap: GeneOverlap
) -> pd.DataFrame:
    """Tabulate calls and novelty of cells whose posterior is known."""
    allowed = allowed_by(atlas, calling.given)
    prior = atlas.model.prior_invariant
    calls = call_cells(q, prior)
    p = log_probabilities(atlas, calls, allowed, calling.label_prior, overlap).exp()
    combinations, _ = prior.joint()
    table: dict[str, object] = {}
    for covariate, codes in zip(atlas.schema.called, combinations.T, strict=True):
        marginal = p.new_zeros(len(p), len(covariate.categories)).index_add_(1, codes, p)
        _add_call(table, covariate.name, list(covariate.categories), marginal)
    for c, covariate in enumerate(atlas.schema.biological):
        if covariate.knots:
            log_p = call_values(q, prior, c, len(covariate.knots), allowed)
            _add_number(table, covariate, log_p.exp())
    _add_call(table, JOINT, joint_names(atlas), p)
    told = pd.DataFrame(table)
    judged = judge(atlas, q.mean, calls, calling.false_discovery_rate, overlap)
    weak = told["predicted_joint_probability"] < calling.abstain_below
    weak.iloc[list(overlap.empty)] = True
    return pd.concat([told, judged], axis=1).assign(abstained=weak | judged["novelty_flag"])


def joint_names(atlas: Atlas) -> list[str]:
    """Names of the combinations of categories, values in the order of the covariates."""
    values = [covariate.categories for covariate in atlas.schema.called]
    return [
        SEPARATOR.join(values[c][code] for c, code in enumerate(row))
        for row in atlas.model.prior_invariant.joint()[0].tolist()
    ]


def allowed_by(atlas: Atlas, given: Given) -> torch.Tensor:
    """Which combinations of categories (joint,) agree with what is known of all cells."""
    known = {covariate.name: c for c, covariate in enumerate(atlas.schema.called)}
    combinations, _ = atlas.model.prior_invariant.joint()
    allowed = torch.ones(len(combinations), dtype=torch.bool)
    for name, wanted in given.items():
        if name not in known:
            raise CovariateError(
                f"given names {name!r}, which is no categorical biological covariate of the atlas; "
                f"they are {', '.join(known)}."
                f"{suggest(str(name), known)}"
            )
        covariate = atlas.schema.called[known[name]]
        values: list[object] = [wanted]
        if isinstance(wanted, Iterable) and not isinstance(wanted, str):
            values = list(wanted)
        codes = [code for value in values for code in _codes_of(covariate, value)]
        allowed &= torch.isin(combinations[:, known[name]], torch.tensor(codes))
    if not allowed.any():
        raise CovariateError("given leaves no combination of values that the atlas knows.")
    return allowed


def _codes_of(covariate: Covariate, value: object) -> list[int]:
    """Codes of a value, or of the finer values that a coarse one stands for."""
    groups = dict(covariate.groups)
    text = text_values(pd.DataFrame({"value": [value]}, dtype=object), "value").iloc[0]
    finer = groups.get(text, (text,))
    if not set(finer) <= set(covariate.categories):
        coarse = f", and coarse values {', '.join(list(groups)[:20])}" if groups else ""
        raise CovariateError(
            f"given wants {covariate.name} {value!r}; the atlas knows "
            f"{', '.join(covariate.categories[:20])}{coarse}."
            f"{suggest(str(value), [*covariate.categories, *groups])}"
        )
    return [covariate.categories.index(name) for name in finer]


def _add_call(table: dict[str, object], name: str, values: list[str], p: torch.Tensor) -> None:
    probability, code = p.max(1)
    table[f"predicted_{name}"] = pd.Categorical.from_codes(code.numpy(), categories=values)
    table[f"predicted_{name}_probability"] = probability.clamp_max(1.0).numpy()


def _add_number(table: dict[str, object], covariate: Covariate, p: torch.Tensor) -> None:
    """Mean and spread of a number under the posterior over its knots."""
    knots = torch.tensor(covariate.knots, dtype=torch.float64)
    middle, p = knots.mean(), p.double() / p.double().sum(1, keepdim=True)
    mean = p @ (knots - middle)
    variance = (p @ (knots - middle).square() - mean.square()).clamp_min(0)
    table[f"predicted_{covariate.name}"] = (mean + middle).numpy()
    table[f"predicted_{covariate.name}_deviation"] = variance.sqrt().numpy()
