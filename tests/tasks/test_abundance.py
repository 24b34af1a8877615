"""Densities of cells compared: planted shifts measured, nothing found where nothing is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from anndata import AnnData
from scipy import stats

import invatlas as ia
from invatlas.tasks.abundance import compare_density

A, B = np.array([0.5, 0.5]), np.array([0.8, 0.2])


def draw(
    shares: list[np.ndarray], cells: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two far clouds in which each sample has its shares: z, state, sample."""
    rng = np.random.default_rng(seed)
    state = np.concatenate([rng.choice(2, cells * (1 + i % 2), p=p) for i, p in enumerate(shares)])
    sample = np.concatenate([np.full(cells * (1 + i % 2), i) for i in range(len(shares))])
    return 20.0 * state[:, None] + rng.normal(size=(len(state), 3)), state, sample


def test_the_log_ratio_of_a_planted_shift() -> None:
    z, state, sample = draw([A] * 6 + [B] * 6, 150, 0)
    found = compare_density(z, sample, np.arange(12) >= 6, 300)
    for value in (0, 1):
        ratio = found.loc[state == value, "log_density_ratio"].mean()
        assert ratio == pytest.approx(np.log(B[value] / A[value]), abs=0.15)
        assert (found.loc[state == value, "false_discovery_rate"] < 0.05).mean() > 0.5


def test_one_cell_by_hand() -> None:
    z = np.array([0, 1, 2, 3, 100, 101, 102, 103], dtype=float)[:, None]
    sample = np.array([0, 1, 2, 3, 0, 0, 1, 2])
    found = compare_density(z, sample, np.array([False, False, True, True]), 3).iloc[0]
    f = (np.array([0, 1, 1, 1]) + 3 / 7) / (np.array([2, 2, 2, 1]) + 1)
    a, b = f[:2], f[2:]
    assert found["log_density_ratio"] == pytest.approx(np.log(b.mean() / a.mean()))
    error = [x.var(ddof=1) / 2 / x.mean() ** 2 for x in (a, b)]
    assert found["standard_error"] == pytest.approx(np.sqrt(sum(error)))
    expected = stats.ttest_ind(np.sqrt(b), np.sqrt(a), equal_var=False).pvalue
    assert found["p_value"] == pytest.approx(expected)


def test_nothing_differs_where_all_cells_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a cell being near itself, nor for samples being small."""
    rng = np.random.default_rng(0)
    sample = np.repeat(np.arange(12), [200] * 6 + [10] * 6)
    second = np.arange(12) >= 6
    z = rng.normal(size=(len(sample), 4))
    found = compare_density(z, sample, second, 120)["log_density_ratio"]
    assert abs(np.exp(found).mean() - 1) < 0.1
    sample = rng.integers(0, 12, len(sample))
    found = compare_density(z, sample, second, 20)["log_density_ratio"]
    assert abs(found[second[sample]].mean() - found[~second[sample]].mean()) < 0.05
    monkeypatch.setattr("invatlas.tasks.abundance.CHUNK", 97)
    in_chunks = compare_density(z, sample, second, 20)["log_density_ratio"]
    np.testing.assert_array_equal(in_chunks, found)


def test_copies_of_a_cell_are_its_neighbours() -> None:
    z, sample = np.zeros((9, 2)), np.arange(9) % 3
    found = compare_density(z, sample, np.array([False, False, True]), 2)
    assert np.isfinite(found["log_density_ratio"]).all()


def test_donors_are_the_replicates_not_cells() -> None:
    """Donors differ by themselves: tests over cells would find conditions to differ."""
    rejected = []
    for seed in range(20):
        own = np.random.default_rng(100 + seed).dirichlet([5, 5], 8)
        z, _, sample = draw(list(own), 60, seed)
        found = compare_density(z, sample, np.arange(8) % 4 >= 2, 40)
        rejected.append((found["p_value"] < 0.05).mean())
    assert np.mean(rejected) < 0.1


@pytest.mark.filterwarnings("ignore:.*kept from the fit")
def test_an_atlas_is_asked(atlas: ia.Atlas, study: AnnData) -> None:
    found = ia.abundance(atlas, study, between=("healthy", "disease_1"))
    assert list(found.index) == list(study.obs_names)
    assert (found["condition"] == study.obs["disease"].astype(str)).all()
    apart = ia.abundance(atlas, study, condition="cell_type", between=("type_1", "type_2"))
    assert set(apart["cell_type"]) == {"healthy", "disease_1"}, "the other biological column"
    turned = ia.abundance(atlas, study)
    np.testing.assert_allclose(turned["log_density_ratio"], -found["log_density_ratio"])
    assert found.attrs["between"] == turned.attrs["between"][::-1] == ["healthy", "disease_1"]
    two = study[study.obs["donor"].isin(["donor_01", "donor_02"])].copy()
    alone = ia.abundance(atlas, two)
    assert alone["log_density_ratio"].notna().all() and alone["p_value"].isna().all()


def test_cells_of_the_fit_are_doubted(atlas: ia.Atlas, study: AnnData) -> None:
    with pytest.warns(UserWarning, match="6 of 6 samples are of a donor the atlas was fitted to"):
        ia.abundance(atlas, study)
    study.obs["donor"] = study.obs["donor"].astype(str) + " anew"
    study.obs["arm"] = np.where(np.arange(study.n_obs) % 2, "left", "right")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ia.abundance(atlas, study)
        study.obs["donor"] = study.obs["donor"].str.removesuffix(" anew")
        ia.abundance(atlas, study, condition="arm")


def test_questions_without_an_answer_are_refused(atlas: ia.Atlas, study: AnnData) -> None:
    with pytest.raises(ia.InvatlasError, match="takes two of disease_1, healthy"):
        ia.abundance(atlas, study, between=("healthy", "flu"))
    with pytest.raises(ia.InvatlasError, match="of one condition, 'healthy'"):
        ia.abundance(atlas, study[study.obs["disease"] == "healthy"].copy())
    with pytest.raises(ia.InvatlasError, match="between is 'healthy'; it takes two of"):
        ia.abundance(atlas, study, between="healthy")
    for neighbours in (0, 600):
        with pytest.raises(ia.InvatlasError, match=r"neighbours is \d+; it takes 1 to 599"):
            ia.abundance(atlas, study, neighbours=neighbours)
