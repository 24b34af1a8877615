"""Calls, confidence, sets and novelty of cells an atlas never met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from sklearn.metrics import roc_auc_score

import invatlas as ia
from invatlas.errors import CountsError, CovariateError, GeneError, SettingsError
from invatlas.processor import kept_threads
from invatlas.tasks.annotate import describe

TYPES, DISEASES = 3, 2
Fit = Callable[..., ia.Atlas]


@pytest.fixture(scope="module")
def world() -> AnnData:
    """A study of easily told cell types, one of which no reference holds."""
    return ia.simulate(
        cells=1800,
        genes=150,
        cell_types=TYPES + 1,
        diseases=DISEASES,
        donors=8,
        batches=2,
        library_size=1500,
        truth=False,
        seed=4,
    )


def split(world: AnnData) -> tuple[AnnData, AnnData]:
    """Six donors without one cell type, and two donors with all of them."""
    people = world.obs.groupby("donor", observed=True)["disease"].first()
    chosen = [group.index[0] for _, group in people.groupby(people, observed=True)]
    new = world.obs["donor"].isin(chosen).to_numpy()
    strange = (world.obs["cell_type"] == world.obs["cell_type"].cat.categories[-1]).to_numpy()
    return world[~new & ~strange].copy(), world[new].copy()


@pytest.fixture(scope="module")
def atlas(world: AnnData) -> ia.Atlas:
    reference, _ = split(world)
    settings = ia.Settings(genes=0, hidden=64, epochs=60, spared_donors=0.0, held_out=0.2)
    return ia.fit(reference, ["cell_type", "disease"], ["donor", "batch"], settings=settings)


@pytest.fixture
def query(world: AnnData) -> AnnData:
    return split(world)[1]


@pytest.fixture
def bare(query: AnnData) -> AnnData:
    return AnnData(query.X, var=query.var[[]], obs=pd.DataFrame(index=query.obs_names))


def known(atlas: ia.Atlas, query: AnnData) -> np.ndarray:
    return query.obs["cell_type"].isin(atlas.schema.biological[0].categories).to_numpy()


def test_cell_types_of_new_donors_are_called_with_probabilities_that_add_up(
    atlas: ia.Atlas, query: AnnData, bare: AnnData
) -> None:
    calls = ia.annotate(atlas, bare)
    assert list(calls.index) == list(query.obs_names)
    here = known(atlas, query)
    right = calls["predicted_cell_type"].astype(str) == query.obs["cell_type"].astype(str)
    assert right[here].mean() > 0.95
    joint = calls["predicted_joint_probability"]
    for name in ("cell_type", "disease"):
        assert (calls[f"predicted_{name}_probability"] >= joint - 1e-5).all()
        assert calls[f"predicted_{name}_probability"].between(0, 1).all()


def test_a_cell_type_nobody_knew_is_newer_than_the_others(
    atlas: ia.Atlas, query: AnnData, bare: AnnData
) -> None:
    found = ia.novelty(atlas, bare)
    strange = ~known(atlas, query)
    assert roc_auc_score(strange, found["novelty_score"]) > 0.85
    assert found["novelty_flag"][~strange].mean() < 0.1
    columns = list(found.columns)
    pd.testing.assert_frame_equal(found, ia.annotate(atlas, bare)[columns])


@pytest.mark.parametrize("n_cells", [30, 315])
def test_pvalues_are_ranks_among_held_out_cells(
    atlas: ia.Atlas, bare: AnnData, n_cells: int
) -> None:
    """A few cells are judged each alone, many with their neighbours; so are the held-out ones."""
    known = atlas.calibration
    assert known is not None
    scores = (known.novelty_scores if n_cells < 50 else known.pooled_scores).numpy()
    found = ia.novelty(atlas, bare[:n_cells])
    expected = [(1 + (scores >= s).sum()) / (1 + len(scores)) for s in found["novelty_score"]]
    np.testing.assert_allclose(found["novelty_pvalue"], expected, rtol=1e-6)


def test_what_labels_a_query_has_changes_nothing(
    atlas: ia.Atlas, query: AnnData, bare: AnnData
) -> None:
    shuffled = query.copy()
    shuffled.obs["cell_type"] = query.obs["cell_type"].to_numpy()[::-1]
    strange = query.obs["cell_type"].cat.categories[-1]
    with pytest.warns(UserWarning, match=rf"'cell_type'.*1 value .*{strange}"):
        found = ia.annotate(atlas, shuffled)
    pd.testing.assert_frame_equal(found, ia.annotate(atlas, bare))


def test_what_is_given_is_kept_and_the_rest_is_called_with_it(
    atlas: ia.Atlas, bare: AnnData
) -> None:
    disease = atlas.schema.biological[1].categories[0]
    calls = ia.annotate(atlas, bare, given={"disease": disease})
    assert (calls["predicted_disease"] == disease).all()
    np.testing.assert_allclose(calls["predicted_disease_probability"], 1, rtol=1e-5)
    free = ia.annotate(atlas, bare)
    same = calls["predicted_cell_type"].astype(str) == free["predicted_cell_type"].astype(str)
    assert same.mean() > 0.9
    every = list(atlas.schema.biological[1].categories)
    either = ia.annotate(atlas, bare, given={"disease": every})
    np.testing.assert_allclose(
        either["predicted_joint_probability"], free["predicted_joint_probability"], rtol=1e-4
    )


def test_frequencies_of_the_query_lift_what_is_common_in_it(
    atlas: ia.Atlas, query: AnnData
) -> None:
    disease = query.obs["disease"].iloc[0]
    only = query[(query.obs["disease"] == disease).to_numpy()].copy()
    only.obs = only.obs[[]]
    shares = [
        (ia.annotate(atlas, only, label_prior=prior)["predicted_disease"] == disease).mean()
        for prior in ("uniform", "query")
    ]
    assert shares[1] >= shares[0] > 0.5


def test_weak_calls_are_not_made(atlas: ia.Atlas, bare: AnnData) -> None:
    calls = ia.annotate(atlas, bare, abstain_below=0.9)
    weak = calls["predicted_joint_probability"] < 0.9
    assert (calls["abstained"] == (weak | calls["novelty_flag"])).all()
    assert weak.any()


def test_sets_hold_the_truth_about_as_often_as_asked_and_grow_with_it(
    atlas: ia.Atlas, world: AnnData
) -> None:
    assert atlas.calibration is not None
    reference, _ = split(world)
    truth = reference.obs["cell_type"].astype(str) + " | " + reference.obs["disease"].astype(str)
    sizes = []
    for coverage in (0.5, 0.9, 0.99):
        sets = ia.prediction_sets(atlas, reference, coverage=coverage)
        inside = [sets.at[cell, name] for cell, name in truth.items()]
        assert np.mean(inside) > coverage - 0.05, "the model has met these cells"
        sizes.append(sets.to_numpy().sum())
    assert sizes == sorted(sizes)


def test_a_saved_atlas_calls_alike(atlas: ia.Atlas, bare: AnnData, tmp_path) -> None:
    ia.save(atlas, tmp_path / "atlas")
    loaded = ia.load(tmp_path / "atlas")
    pd.testing.assert_frame_equal(ia.annotate(loaded, bare), ia.annotate(atlas, bare))
    pd.testing.assert_frame_equal(ia.prediction_sets(loaded, bare), ia.prediction_sets(atlas, bare))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"given": {"disese": "x"}}, CovariateError, "no categorical biological covariate"),
        ({"given": {"disease": "plague"}}, CovariateError, "'plague'.*the atlas knows"),
        ({"given": {"disease": []}}, CovariateError, "leaves no combination"),
        ({"given": {"disease": None}}, CovariateError, "disease None; the atlas knows"),
        ({"given": {"disease": 0}}, CovariateError, "disease 0; the atlas knows"),
        ({"given": "healthy"}, SettingsError, "given is 'healthy'; it takes values by covariate"),
        ({"given": ["healthy"]}, SettingsError, "it takes values by covariate"),
        ({"label_prior": "mine"}, SettingsError, "reference, uniform, query"),
        ({"abstain_below": 2.0}, SettingsError, "takes 0 to 1"),
        ({"false_discovery_rate": 0.0}, SettingsError, "between 0 and 1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    atlas: ia.Atlas, bare: AnnData, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ia.annotate(atlas, bare, **changes)


def test_a_query_that_is_no_query_is_refused(atlas: ia.Atlas, bare: AnnData) -> None:
    normalised = bare.copy()
    normalised.X = normalised.X.astype(float).log1p()
    with pytest.raises(CountsError, match="fractional"):
        ia.annotate(atlas, normalised)
    foreign = bare.copy()
    foreign.var_names = [f"other_{j}" for j in range(bare.n_vars)]
    with pytest.raises(GeneError, match="0 of 150 genes"):
        ia.annotate(atlas, foreign)
    with pytest.raises(SettingsError, match="coverage"):
        ia.prediction_sets(atlas, bare, coverage=1.0)


def test_map_groups_what_is_flagged(
    atlas: ia.Atlas, query: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = ~known(atlas, query)
    monkeypatch.setattr(
        "invatlas.tasks.map.describe",
        lambda *given: describe(*given).assign(novelty_flag=strange),
    )
    mapped = ia.map_cells(atlas, query, calling=ia.Calling())
    assert mapped.states is not None and len(mapped.states.table)
    grouped = mapped.cells.obs["novelty_group"].notna().to_numpy()
    assert grouped.sum() == mapped.states.table["cells"].sum() > strange.sum() / 2
    assert strange[grouped].all()
    assert ia.map_cells(atlas, query).states is None


def test_novelty_is_not_judged_where_many_genes_are_missing(atlas: ia.Atlas, bare: AnnData) -> None:
    shares = pd.Series(atlas.gene_shares, list(atlas.genes)).sort_values()
    many = bare[:, bare.var_names.isin(shares.index[shares.cumsum() < 0.7])]
    for ask in (ia.novelty, ia.annotate):
        with pytest.warns(UserWarning, match="novelty is not judged"):
            found = ask(atlas, many)
        assert found["novelty_pvalue"].isna().all() and not found["novelty_flag"].any()
    few = bare[:, bare.var_names.isin(shares.index[shares.cumsum() > 0.1])]
    assert ia.novelty(atlas, few)["novelty_pvalue"].notna().all()


def test_frequencies_of_what_is_guessed_are_doubted(atlas: ia.Atlas, bare: AnnData) -> None:
    calibration = atlas.calibration
    assert calibration is not None
    guessed = replace(
        atlas, calibration=replace(calibration, exponents=torch.tensor([1.0, 1.0, 0.001]))
    )
    with pytest.warns(UserWarning, match="Calls of disease for new donors are hardly better"):
        ia.annotate(guessed, bare, label_prior="query")


def test_neither_order_nor_part_nor_chunk_changes_a_call(
    atlas: ia.Atlas, bare: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ia.annotate(atlas, bare)
    generator = np.random.default_rng(0)
    cells, genes = map(generator.permutation, bare.shape)
    found = ia.annotate(atlas, bare[cells, genes].copy()).loc[bare.obs_names]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-4)
    for module in ("data.counts", "training.posterior", "training.novelty"):
        monkeypatch.setattr(f"invatlas.{module}.CHUNK", 7)
    pd.testing.assert_frame_equal(ia.annotate(atlas, bare), expected, rtol=1e-4, atol=1e-4)


def test_threads_change_no_bit(atlas: ia.Atlas, study: AnnData) -> None:
    many = ad.concat([study] * 3, index_unique="-")  # more than a piece of 1,024 cells
    alone = ia.annotate(atlas, many)
    with kept_threads():
        torch.set_num_threads(3)
        pd.testing.assert_frame_equal(ia.annotate(atlas, many), alone, check_exact=True)


def test_a_coarse_value_that_is_given_stands_for_its_finer_ones(study: AnnData, fit: Fit) -> None:
    kinds = study.obs["cell_type"].astype(str)
    study.obs["cell_type"] = kinds.where(np.arange(len(kinds)) % 4 > 0, "cell")
    finer = sorted(kinds.unique())[:2]
    atlas = fit(study, hierarchy={"cell_type": {"cell": finer}})
    coarse = ia.annotate(atlas, study, given={"cell_type": "cell"})
    pd.testing.assert_frame_equal(coarse, ia.annotate(atlas, study, given={"cell_type": finer}))
    assert set(coarse["predicted_cell_type"]) <= set(finer)
    with pytest.raises(CovariateError, match=r"'odd'; the atlas knows .*, and coarse values cell"):
        ia.annotate(atlas, study, given={"cell_type": "odd"})


@pytest.mark.parametrize("stage", [0, np.int64(0), 0.0, "0", [0], (0.0,), np.array([0])])
def test_numbers_that_are_given_are_read_as_columns_are(
    study: AnnData, fit: Fit, stage: object
) -> None:
    study.obs["stage"] = (study.obs["disease"] == "healthy").astype(int)
    atlas = fit(study, biological=["cell_type", "stage"], epochs=1)
    assert set(ia.annotate(atlas, study, given={"stage": stage})["predicted_stage"]) == {"0"}


def test_columns_that_calls_replace_are_named(atlas: ia.Atlas, query: AnnData) -> None:
    first = ia.map_cells(atlas, query, calling=ia.Calling())
    assert not any("already" in note for note in first.notes)
    query.obs["predicted_disease"], query.obs["novelty_group"] = "mine", "mine"
    again = ia.map_cells(atlas, query, calling=ia.Calling())
    assert "obs of the query had predicted_disease, novelty_group already" in again.notes[-1]
    pd.testing.assert_frame_equal(again.cells.obs[first.cells.obs.columns], first.cells.obs)
    assert query.obs["predicted_disease"].eq("mine").all()
    assert not any("already" in note for note in ia.map_cells(atlas, query).notes)
