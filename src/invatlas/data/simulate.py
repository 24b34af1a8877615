"""Simulated studies with known truth: cell types, diseases, donors, batches.

The generative equation, in the symbols of the model it is meant to test::

    d = (cell type c, disease k, severity s of the donor)       biological
    e = (donor i, batch b)                                      technical

    z_I | d  ~ Normal(mu_c + s delta_ck, diag(sigma_c^2))       invariant latents
    z_S | e  ~ Normal(nu_b + omega_i,    diag(tau_b^2))         spurious latents
    log l    ~ Normal(log library_size + kappa_b, 0.35^2)       library size
    a | d    ~ Bernoulli(shared_state) in one cell type and two diseases, else 0
    rho      = softmax(beta + W_I z_I + w a + W_S z_S)          expression as measured
    x_g      ~ NB(l rho_g, theta_g)                             variance m + m^2 / theta_g

`W_I` is sparse: each invariant latent is one gene programme. The first half of them (rounded up)
are identity programmes and carry `mu_c`; the others are response programmes and carry
`delta_ck`, which is zero for healthy cells and in every cell type a disease spares. `W_S` is
dense. True expression without technical effect is `softmax(beta + W_I z_I + w a)`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np
from anndata import AnnData
from numpy.random import Generator
from numpy.typing import NDArray

from invatlas.data.simulated_biology import (
    SimulatedBiology,
    draw_apart,
    draw_biology,
    draw_shared_state,
)
from invatlas.data.simulated_cells import Donors, draw_cells
from invatlas.data.study_design import draw_design
from invatlas.errors import SettingsError

Array = NDArray[np.float32]
Codes = NDArray[np.intp]


def simulate(
    *,
    cells: int = 6000,
    genes: int = 1000,
    cell_types: int = 6,
    diseases: int = 3,
    donors: int = 12,
    batches: int = 4,
    correlation: float = 0.0,
    disease_effect: float = 1.0,
    technical_effect: float = 1.0,
    library_size: float = 1000.0,
    invariant_latents: int = 8,
    spurious_latents: int = 4,
    shared_state: float = 0.0,
    truth: bool = True,
    seed: int = 0,
) -> AnnData:
    """Draw a multi-disease single-cell study whose biology and technique are known.

    A change of `batches`, `correlation`, `technical_effect` or `library_size` keeps the genes,
    diseases, donors and cells with their z_I: it is the same study measured in another way. A
    change of `cells` keeps all but the cells.

    Parameters
    ----------
    cells, genes
        Size of the count matrix; at least one cell for each cell type and each donor.
    cell_types
        Number of cell types; their frequencies fall, and the last is rare (2 % at most).
    diseases
        Number of values of `disease`, the first of them ``"healthy"``. Each other one affects
        half of the cell types.
    donors
        Number of donors; each has one disease and one batch.
    batches
        Number of experimental batches.
    correlation
        Wanted association of disease and batch over donors, as Cramer's V; the nearest one that
        the donors allow is taken. 0 balances the batches over the diseases as evenly as the
        donors allow, 1 gives each disease its own batches (or each batch its own diseases).
    disease_effect
        Factor on every disease shift of z_I; 0 is a study in which disease does nothing.
    technical_effect
        Standard deviation of the log rates due to z_S, over that due to z_I.
    library_size
        Median counts of a cell in a batch of average depth.
    invariant_latents, spurious_latents
        Dimensions of z_I (at least 2) and of z_S (at least 1).
    shared_state
        Share of the cells of one cell type that are, in two of the diseases, in a state of their
        own, with a gene programme those two share; 0 for none. Which ones is drawn.
    truth
        Whether to keep the dense layer ``expression_true`` (4 bytes for each cell and gene).
    seed
        Two calls with equal arguments return identical data.

    Returns
    -------
    AnnData
        `X`: counts, CSR float32. `obs`: ``cell_type``, ``disease``, ``donor``, ``batch``
        (categorical), ``severity`` (0 to 1), ``library_size`` (l, counts).
        ``layers["expression_true"]``: softmax(beta + W_I z_I + w a), rows sum to 1.
        `obsm`: ``z_invariant_true``, ``z_spurious_true``.
        `var`: ``inverse_dispersion`` (theta), ``baseline`` (beta).
        `varm`: ``invariant_loadings_true`` (W_I), ``spurious_loadings_true`` (W_S).
        ``uns["differential_genes"]``: one row for each cell type, disease and gene of a programme
        that the disease shifts there; ``log_fold_change`` is natural, against healthy, at
        severity 1 and the prior means. ``uns["disease_shifts"]``: delta (cell type, disease,
        latent), rows in the order of the categories.
        With a shared state, ``obs["state"]`` is ``"shared"`` or ``"usual"``, and
        ``uns["shared_state"]`` names its ``cell_type``, ``diseases`` and ``genes``; the list of
        differential genes leaves it out.

    Raises
    ------
    SettingsError
        If a number is of the wrong kind, out of range, or at odds with another one.
    """
    sizes = {"cells": cells, "genes": genes, "cell_types": cell_types, "diseases": diseases}
    sizes |= {"donors": donors, "batches": batches, "invariant_latents": invariant_latents}
    _check_sizes(sizes | {"spurious_latents": spurious_latents, "seed": seed})
    _check_real("correlation", correlation, 0, 1)
    _check_real("disease_effect", disease_effect, 0, 5)
    _check_real("technical_effect", technical_effect, 0, 5)
    _check_real("library_size", library_size, 1, 1e6)
    _check_real("shared_state", shared_state, 0, 1)
    if shared_state and diseases < 3:
        raise SettingsError(
            f"diseases is {diseases}; a state shared by two takes at least 3, healthy among them."
        )

    streams = np.random.default_rng(seed).spawn(5)
    biology = draw_biology(
        streams[0], genes, cell_types, diseases, invariant_latents, disease_effect
    )
    disease, severity, batch = draw_design(streams[1], diseases, donors, batches, correlation)
    mean, tau, loadings = _draw_technique(streams[2], batch, genes, spurious_latents)
    invariant = _measure_variance(biology.loadings, *_mix(biology, disease, severity))
    spurious = _measure_variance(loadings, mean, tau, np.full(donors, 1 / donors))
    loadings *= np.float32(technical_effect * np.sqrt(invariant / spurious))
    kappa = streams[2].permutation(np.linspace(-0.35, 0.35, batches) if batches > 1 else [0.0])
    log_depth = (np.log(library_size) + kappa[batch]).astype(np.float32)
    people = Donors(disease, severity, batch, mean, tau, log_depth, loadings)
    shared = draw_shared_state(streams[4], biology, shared_state) if shared_state else None
    return draw_cells(streams[3:], cells, people, biology, shared, truth)


def split_off(study: AnnData) -> tuple[AnnData, AnnData]:
    """Take a quarter of the donors out of a study, as a query whose biology nobody was told.

    Parameters
    ----------
    study
        What :func:`simulate` returned.

    Returns
    -------
    The study without its last donors, and the counts of their cells with ``donor`` and ``batch``.

    Raises
    ------
    SettingsError
        If there is one donor only.
    """
    donors = study.obs["donor"].cat.categories
    if len(donors) < 2:
        raise SettingsError("donors is 1; a study that spares some for a query takes 2 or more.")
    spared = study.obs["donor"].isin(donors[-max(1, len(donors) // 4) :]).to_numpy()
    left = study[spared]
    query = AnnData(left.X, obs=left.obs[["donor", "batch"]].copy(), var=left.var[[]].copy())
    return study[~spared].copy(), query


def _check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse sizes that are no whole numbers or leave a cell type, donor or batch empty."""
    least = {"genes": 2, "invariant_latents": 2, "seed": 0}
    for name, value in sizes.items():
        low = least.get(name, 1)
        try:
            fits = not isinstance(value, bool) and operator.index(value) >= low
        except TypeError:
            fits = False
        if not fits:
            raise SettingsError(f"{name} is {value!r}; it takes a whole number, {low} or more.")
    pairs = ("cells", "cell_types"), ("cells", "donors"), ("donors", "diseases")
    for many, few in (*pairs, ("donors", "batches")):
        if sizes[many] < sizes[few]:
            raise SettingsError(
                f"{many} is {sizes[many]}, too few for the {few.replace('_', ' ')}; it takes at "
                f"least {sizes[few]}."
            )


def _check_real(name: str, value: float, low: float, high: float) -> None:
    """Refuse anything but a number within [low, high]; NaN is outside."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}; it takes {low:g} to {high:g}.")


def _draw_technique(
    rng: Generator, batch: Codes, genes: int, latents: int
) -> tuple[Array, Array, Array]:
    """Draw nu + omega, tau and an unscaled W_S."""
    batches = batch.max() + 1
    omega = rng.normal(0, 0.8, (batch.size, latents)).astype(np.float32)
    tau = rng.uniform(0.5, 1.0, (batches, latents)).astype(np.float32)
    loadings = rng.normal(0, 1, (genes, latents)).astype(np.float32)
    return draw_apart(rng, batches, latents, 2.0)[batch] + omega, tau[batch], loadings


def _mix(
    biology: SimulatedBiology, disease: Codes, severity: Array
) -> tuple[Array, Array, NDArray[np.float64]]:
    """Means, deviations and weights of p(z_I | d), one row for each cell type and donor."""
    mean = biology.mu[:, None] + severity[:, None] * biology.delta[:, disease]
    deviation = np.repeat(biology.sigma, disease.size, axis=0)
    weight = np.repeat(biology.frequency / disease.size, disease.size)
    return mean.reshape(deviation.shape), deviation, weight


def _measure_variance(
    loadings: Array, means: Array, deviations: Array, weights: NDArray[np.float64]
) -> float:
    """Trace of W Cov[z] W^T for a mixture of diagonal normals z: variance summed over genes."""
    centred = means - weights @ means
    covariance = (weights[:, None] * centred).T @ centred + np.diag(weights @ deviations**2)
    return float(((loadings @ covariance) * loadings).sum())
