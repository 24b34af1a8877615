"""Unmixing against sources whose mixing is known."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData

import invatlas as ia
from invatlas.errors import CovariateError, DataError
from invatlas.evaluate.identifiability import match
from invatlas.evaluate.unmixing import covary, diagonalise
from invatlas.tasks.embed import encode_counts


def rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def test_matrices_with_common_directions_are_made_diagonal_exactly() -> None:
    rng = np.random.default_rng(0)
    turn = rotation(rng, 5)
    matrices = np.stack([turn @ np.diag(rng.uniform(0.2, 3, 5)) @ turn.T for _ in range(4)])
    v = diagonalise(matrices)
    np.testing.assert_allclose(v.T @ v, np.eye(5), atol=1e-9)
    found = v.T @ matrices @ v
    assert np.abs(found - found * np.eye(5)).max() < 1e-6
    np.testing.assert_allclose(np.abs(v.T @ turn).max(0), 1, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_sources_are_found_behind_any_mixing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, (6, 2), (6000, 2))
    deviation = rng.uniform(0.4, 2, (6, 3))[codes[:, 0]]
    mean = 2 * rng.normal(size=(6, 2, 3))[codes[:, 0], codes[:, 1]]
    sources = mean + deviation * rng.normal(size=(6000, 3))
    z = sources @ rng.normal(size=(3, 3))
    covariances, cells = covary(z, np.zeros_like(z), codes)
    assert cells.sum() == 12_000
    size, directions = np.linalg.eigh(np.einsum("g,gij->ij", cells / cells.sum(), covariances))
    whiten = directions / np.sqrt(size)
    white = np.einsum("ai,gab,bj->gij", whiten, covariances, whiten)
    assert match(z @ whiten @ diagonalise(white), sources) > 0.98


@pytest.fixture(scope="module")
def study() -> AnnData:
    return ia.simulate(
        cells=1500, genes=120, cell_types=5, diseases=2, donors=6, batches=2, truth=False, seed=0
    )


@pytest.fixture(scope="module")
def atlas(study: AnnData) -> ia.Atlas:
    settings = ia.Settings(genes=0, hidden=16, epochs=5, invariant_latents=4, spared_donors=0.0)
    return ia.fit(study, ["cell_type", "disease"], ["donor"], settings=settings)


def test_latents_of_an_atlas_vary_more_independently_within_biology_afterwards(
    atlas: ia.Atlas, study: AnnData
) -> None:
    w = ia.evaluate.unmix(atlas, study)
    q, _ = encode_counts(atlas, study, ["invariant"], None, 0.5)
    codes, _ = atlas.schema.encode(study.obs)
    moments = q["invariant"].mean.double().numpy(), q["invariant"].variance.double().numpy()
    covariances, cells = covary(*moments, codes)

    def dependence(tables: np.ndarray) -> float:
        """Mean squared correlation of two latents within a value."""
        scale = np.sqrt(np.einsum("gii->gi", tables))
        tables = tables / scale[:, :, None] / scale[:, None, :]
        return float((tables**2).mean() - 1 / 4)

    found = w.T @ covariances @ w
    assert dependence(found) < 0.6 * dependence(covariances)
    np.testing.assert_allclose(np.tensordot(cells / cells.sum(), found, 1), np.eye(4), atol=1e-5)


def test_cells_without_a_label_are_passed_over(atlas: ia.Atlas, study: AnnData) -> None:
    some = study.copy()
    lost = np.random.default_rng(0).random(study.n_obs) < 0.3
    some.obs["cell_type"] = some.obs["cell_type"].astype(object).mask(lost)
    found = ia.evaluate.unmix(atlas, some)
    np.testing.assert_allclose(found, ia.evaluate.unmix(atlas, study[~lost].copy()), atol=1e-4)


def test_what_cannot_be_unmixed_is_refused(atlas: ia.Atlas, study: AnnData) -> None:
    with pytest.raises(DataError, match=r"0 of the values .* two are needed"):
        ia.evaluate.unmix(atlas, study[:19].copy())
    alike = (study.obs["cell_type"] == "type_1") & (study.obs["disease"] == "healthy")
    with pytest.raises(DataError, match=r"0 of the values"):
        ia.evaluate.unmix(atlas, study[alike.to_numpy()].copy())
    unknown = study.copy()
    unknown.obs["cell_type"] = "other"
    with pytest.raises(DataError, match="No cell has values the atlas knows in all of cell_type"):
        ia.evaluate.unmix(atlas, unknown)
    bare = AnnData(study.X, var=study.var[[]])
    with pytest.raises(CovariateError, match="obs has no column 'cell_type'"):
        ia.evaluate.unmix(atlas, bare)
