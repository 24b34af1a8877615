"""Unmixing against programmes whose mixing is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import stats

import invatlas as ia
from invatlas.errors import DataError
from invatlas.evaluate.identifiability import match
from invatlas.evaluate.unmixing import GAUSSIAN, separate
from invatlas.tasks.explain import average_slopes, express_latents


@pytest.mark.parametrize("seed", range(3))
def test_programmes_are_found_behind_any_mixing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    programmes = rng.normal(size=(500, 4)) * (rng.random((500, 4)) < [0.3, 0.15, 0.1, 0.05])
    mixing = rng.normal(size=(4, 4))
    m_t = separate(programmes @ np.linalg.inv(mixing))
    assert match((programmes @ np.linalg.inv(mixing)) @ m_t.T, programmes) > 0.95
    latents = rng.normal(size=(1000, 4))  # s, and z = M s
    assert match((latents @ mixing.T) @ np.linalg.inv(m_t), latents) > 0.95


def how_far_from_gaussian(sources: np.ndarray) -> float:
    return float(np.abs(np.log(np.cosh(sources)).mean(0) - GAUSSIAN).sum())


@pytest.fixture(scope="module")
def study() -> AnnData:
    return ia.simulate(
        cells=1500, genes=120, cell_types=5, diseases=2, donors=6, batches=2, truth=False, seed=0
    )


@pytest.fixture
def atlas(study: AnnData) -> ia.Atlas:
    settings = ia.Settings(genes=0, hidden=16, epochs=5, invariant_latents=4, spared_donors=0.0)
    return ia.fit(study, ["cell_type", "disease"], ["donor"], settings=settings)


def test_mapped_latents_move_fewer_genes_each_by_one_deviation(atlas: ia.Atlas) -> None:
    w = ia.evaluate.unmix(atlas)
    j = average_slopes(atlas, express_latents(atlas))[0].double().numpy()
    mapped = j @ np.linalg.inv(w).T  # z = s w^-1, so da / ds = J w^-T
    np.testing.assert_allclose(mapped.std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(np.corrcoef(mapped.T), np.eye(4), atol=1e-4)
    assert (stats.skew(mapped) >= 0).all()
    white = np.linalg.svd(j - j.mean(0), full_matrices=False)[0] * np.sqrt(len(j))
    assert how_far_from_gaussian(mapped - mapped.mean(0)) > how_far_from_gaussian(white)


def test_the_map_does_not_depend_on_how_latents_were_turned(atlas: ia.Atlas) -> None:
    rng = np.random.default_rng(0)
    j = average_slopes(atlas, express_latents(atlas))[0].double().numpy()
    found = (j - j.mean(0)) @ separate(j).T
    turned = j @ rng.normal(size=(4, 4))
    assert match((turned - turned.mean(0)) @ separate(turned).T, found) > 0.99


def test_a_latent_that_moves_no_gene_is_refused(atlas: ia.Atlas) -> None:
    decoder, hidden = atlas.model.decode, atlas.settings.hidden
    with torch.no_grad():
        decoder.first.weight[:, 1] = 0
        decoder.logits.weight[:, hidden + 1] = 0
    with pytest.raises(DataError, match="1 of 4 directions of z_I move no gene"):
        ia.evaluate.unmix(atlas)
