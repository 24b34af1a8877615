"""The cells of a simulated study, drawn from what is true of its biology and its donors.

The equations, from z_I to x, stand in ``simulate.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import sparse

from invatlas.data.simulated_biology import SharedState, SimulatedBiology

Array = NDArray[np.float32]
Codes = NDArray[np.intp]

VALUES_AT_ONCE = 1_000_000  # cells x genes drawn in one go, bounds the memory


@dataclass(frozen=True)
class Donors:
    """What each donor is, and the parameters of p(z_S | e) and of l."""

    disease: Codes  # donor
    severity: Array  # donor: s
    batch: Codes  # donor
    mean: Array  # donor latent: nu + omega
    tau: Array  # donor latent
    log_depth: Array  # donor: log library_size + kappa
    loadings: Array  # gene latent: W_S


@dataclass(frozen=True)
class SimulatedCells:
    """What each cell is, before its counts are drawn."""

    codes: dict[str, Codes]  # cell_type, disease, donor, batch: cell
    severity: Array  # cell
    z_invariant: Array  # cell latent
    z_spurious: Array  # cell latent
    library_size: Array  # cell: l
    state: Array | None  # cell: a


def draw_cells(
    streams: Sequence[Generator],
    cells: int,
    people: Donors,
    biology: SimulatedBiology,
    shared: SharedState | None,
    truth: bool,
) -> AnnData:
    """Draw every cell: its covariates, latents, state, library size and counts."""
    rng, state_rng = streams
    drawn = _draw_latents(rng, state_rng, cells, people, biology, shared)
    counts, expression = _draw_expression(rng, drawn, people, biology, shared, truth)
    names = _name_values(biology, people)
    obs = {noun: pd.Categorical.from_codes(c, names[noun]) for noun, c in drawn.codes.items()}
    study = AnnData(
        counts,
        obs=pd.DataFrame(
            {**obs, "severity": drawn.severity, "library_size": drawn.library_size},
            index=_name("cell", cells, 5),
        ),
        var=pd.DataFrame(
            {"inverse_dispersion": biology.theta, "baseline": biology.beta}, index=names["gene"]
        ),
        obsm={"z_invariant_true": drawn.z_invariant, "z_spurious_true": drawn.z_spurious},
        varm={
            "invariant_loadings_true": biology.loadings,
            "spurious_loadings_true": people.loadings,
        },
        layers={} if expression is None else {"expression_true": expression},
        uns={
            "differential_genes": _list_differential_genes(biology, names),
            "disease_shifts": biology.delta,
        },
    )
    if shared and drawn.state is not None:
        study.obs["state"] = pd.Categorical(np.where(drawn.state, "shared", "usual"))
        study.uns["shared_state"] = {
            "cell_type": names["cell_type"][shared.cell_type],
            "diseases": np.array(names["disease"], object)[shared.diseases],
            "genes": np.array(names["gene"], object)[shared.programme != 0],
        }
    return study


def _draw_latents(
    rng: Generator,
    state_rng: Generator,
    cells: int,
    people: Donors,
    biology: SimulatedBiology,
    shared: SharedState | None,
) -> SimulatedCells:
    """Draw d, e, z_I, z_S, l and a of every cell; each donor and cell type has one at least."""
    donors, cell_types = people.disease.size, biology.frequency.size
    share = rng.dirichlet(np.full(donors, 20.0))
    donor = np.append(np.arange(donors), rng.choice(donors, cells - donors, p=share))
    donor = rng.permutation(donor)
    others = rng.choice(cell_types, cells - cell_types, p=biology.frequency)
    cell_type = rng.permutation(np.append(np.arange(cell_types), others))
    disease, severity = people.disease[donor], people.severity[donor]
    mean = biology.mu[cell_type] + severity[:, None] * biology.delta[cell_type, disease]
    return SimulatedCells(
        codes={
            "cell_type": cell_type,
            "disease": disease,
            "donor": donor,
            "batch": people.batch[donor],
        },
        severity=severity,
        z_invariant=rng.normal(mean, biology.sigma[cell_type]).astype(np.float32),
        z_spurious=rng.normal(people.mean[donor], people.tau[donor]).astype(np.float32),
        library_size=np.exp(rng.normal(people.log_depth[donor], 0.35)).astype(np.float32),
        state=shared.draw(state_rng, cell_type, disease) if shared else None,
    )


def _draw_expression(
    rng: Generator,
    drawn: SimulatedCells,
    people: Donors,
    biology: SimulatedBiology,
    shared: SharedState | None,
    truth: bool,
) -> tuple[sparse.csr_matrix, Array | None]:
    """Draw x, and keep the expression without technical effect where it is wanted."""
    cells, genes = len(drawn.severity), biology.beta.size
    expression = np.empty((cells, genes), np.float32) if truth else None
    blocks, at_once = [], max(1, VALUES_AT_ONCE // genes)
    for start in range(0, cells, at_once):
        rows = slice(start, start + at_once)
        log_rate = biology.beta + drawn.z_invariant[rows] @ biology.loadings.T
        if shared and drawn.state is not None:
            log_rate += drawn.state[rows, None] * shared.programme
        if expression is not None:
            expression[rows] = _softmax(log_rate)
        rate = _softmax(log_rate + drawn.z_spurious[rows] @ people.loadings.T)
        blocks.append(_draw_counts(rng, drawn.library_size[rows, None] * rate, biology.theta))
    return sparse.vstack(blocks, format="csr"), expression


def _draw_counts(rng: Generator, mean: Array, theta: Array) -> sparse.csr_matrix:
    """Draw x ~ NB(mean, theta) as a gamma mixture of Poissons."""
    rate = mean * (rng.standard_gamma(theta, mean.shape, np.float32) / theta)
    return sparse.csr_matrix(rng.poisson(rate).astype(np.float32))


def _softmax(log_rate: Array) -> Array:
    """Softmax over genes."""
    rate: Array = np.exp(log_rate - log_rate.max(axis=-1, keepdims=True))
    rate /= rate.sum(axis=-1, keepdims=True)
    return rate


def _list_differential_genes(
    biology: SimulatedBiology, names: Mapping[str, list[str]]
) -> pd.DataFrame:
    """List log softmax(beta + W_I (mu + delta)) / softmax(beta + W_I mu) of the shifted genes."""
    mean: Array = biology.mu[:, None] + biology.delta
    log_expression = np.log(_softmax(biology.beta + mean @ biology.loadings.T))
    change = log_expression - log_expression[:, :1]
    shifted = (biology.delta != 0).astype(np.float32) @ (biology.loadings != 0).T > 0
    codes = dict(zip(("cell_type", "disease", "gene"), np.nonzero(shifted), strict=True))
    table = {noun: np.array(names[noun], object)[rows] for noun, rows in codes.items()}
    return pd.DataFrame({**table, "log_fold_change": change[shifted]})


def _name_values(biology: SimulatedBiology, people: Donors) -> dict[str, list[str]]:
    """Name the genes and the values of every covariate."""
    cell_types, diseases, _ = biology.delta.shape
    return {
        "cell_type": _name("type", cell_types, 1),
        "disease": ["healthy", *_name("disease", diseases - 1, 1)],
        "donor": _name("donor", people.batch.size, 2),
        "batch": _name("batch", int(people.batch.max()) + 1, 1),
        "gene": _name("gene", biology.beta.size, 4),
    }


def _name(noun: str, count: int, digits: int) -> list[str]:
    """List noun_1 ... noun_count, padded with zeros so that they sort."""
    digits = max(digits, len(str(count)))
    return [f"{noun}_{number:0{digits}d}" for number in range(1, count + 1)]
