"""States within a cell type: found where they are, named by the diseases that share them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import invatlas as ia
from invatlas.tasks.states import _compare_shares, _contrast, _find, _overlap


def test_groups_are_counted_by_stability(generator: np.random.Generator) -> None:
    donors = np.repeat([f"donor {j}" for j in range(8)], 50)
    truth = generator.permutation(np.arange(400) % 3)
    r = generator.normal(size=(400, 3))
    r[:, 0] += 8 * (truth == 1)
    r[:, 1] += 8 * (truth == 2)
    code, stability, curve = _find(r, donors, 0)
    assert len(stability) == 3 and (stability > 0.9).all()
    assert pd.crosstab(code, truth).max().sum() > 0.98 * 400
    assert (np.diff(np.bincount(code)) <= 0).all(), "the largest comes first"
    assert curve[3] == curve[[2, 3, 4, 5, 6]].max()


def test_one_cloud_is_one_state(generator: np.random.Generator) -> None:
    donors = np.repeat([f"donor {j}" for j in range(8)], 50)
    code, stability, _ = _find(generator.normal(size=(400, 3)), donors, 0)
    assert not code.any() and list(stability) == [1.0]


def test_overlap_is_the_jaccard_index() -> None:
    a, b = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 0, 0])
    np.testing.assert_allclose(_overlap(a, b, 2), [2 / 3, 2 / 3])


def test_a_shift_of_all_cells_of_a_donor_is_no_state(generator: np.random.Generator) -> None:
    donors = np.repeat([f"donor {j}" for j in range(8)], 50)
    kinds = np.repeat(["healthy", "ill"], 200)
    z = generator.normal(size=(400, 4))
    shifted = z + generator.normal(0, 9, (8, 4)).repeat(50, axis=0)
    found = [np.abs(_contrast(some, kinds, donors, "healthy")) for some in (shifted, z)]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_directions_are_those_in_which_the_ill_vary_more(generator: np.random.Generator) -> None:
    """However the latents are scaled and mixed, and however much all cells vary elsewhere."""
    donors = np.repeat([f"donor {j}" for j in range(9)], 100)
    kinds = np.repeat(["healthy", "ill"], [300, 600])
    z = generator.normal(size=(900, 5)) * [9, 1, 1, 1, 1]
    inside = (kinds == "ill") & (generator.random(900) < 0.3)
    z[:, 1] += 6 * inside
    for mixed in (z, z @ generator.normal(size=(5, 5))):
        x = _contrast(mixed, kinds, donors, "healthy")[:, 0]
        apart = x[inside].mean() - x[~inside & (kinds == "ill")].mean()
        assert abs(apart) > 4
        assert x[kinds == "healthy"].std() == pytest.approx(1, abs=0.2)


def test_shares_are_compared_over_donors_not_cells(generator: np.random.Generator) -> None:
    donors = np.repeat([f"{kind} {j}" for kind in ("healthy", "ill") for j in range(4)], 500)
    kinds = np.array([name.split()[0] for name in donors])
    share = dict(zip(np.unique(donors), [0.1, 0.5, 0.3, 0.3, 0.2, 0.6, 0.3, 0.5], strict=True))
    state = np.where(generator.random(4000) < [share[d] for d in donors], "state_2", "state_1")
    found = _compare_shares(state, kinds, donors, "healthy").set_index("state")
    assert (found["p_value"] > 0.2).all(), "4,000 cells of 8 donors are 8 donors"
    mine = pd.Series(state == "state_2").groupby(donors).mean()
    y = np.arcsin(np.sqrt(mine.to_numpy()))
    assert found.loc["state_2", "p_value"] == pytest.approx(stats.ttest_ind(y[:4], y[4:]).pvalue)
    assert found.loc["state_2", "share"] == pytest.approx(mine.iloc[4:].mean())


@pytest.fixture(scope="module")
def shared() -> AnnData:
    return ia.simulate(
        cells=2400, genes=150, donors=16, diseases=4, cell_types=3, batches=2,
        shared_state=0.4, seed=3,
    )  # fmt: skip


def test_a_planted_state_is_found_with_its_diseases(shared: AnnData) -> None:
    planted = shared.uns["shared_state"]
    settings = ia.Settings(genes=0, epochs=60, hidden=128, spared_donors=0.0)
    atlas = ia.fit(shared, ["cell_type", "disease"], ["donor", "batch"], settings=settings)
    found = ia.states(
        atlas,
        shared,
        cell_type=planted["cell_type"],
        reference="healthy",
        gene_lists={"planted": planted["genes"]},
    )
    inside = (shared.obs.loc[found.cells.index, "state"] == "shared").to_numpy()
    table = found.table.set_index("state")
    named = table.index[table["diseases"] == ", ".join(planted["diseases"])]
    assert len(named) == 1
    mine = (found.cells == named[0]).to_numpy()
    assert (mine & inside).sum() / (mine | inside).sum() > 0.5
    assert set(table.loc[named[0], "markers"].split(", ")[:3]) <= set(planted["genes"])
    assert list(found.cells.index) == list(
        shared.obs_names[shared.obs["cell_type"] == planted["cell_type"]]
    )


def test_markers_are_told_of_data_that_lack_genes(study: AnnData, atlas: ia.Atlas) -> None:
    """As many as one lets them lack: markers may not ask for more."""
    rare = [atlas.genes[j] for j in np.argsort(atlas.gene_shares)]
    held = np.cumsum(np.sort(atlas.gene_shares))
    some = study[:, [gene for gene, share in zip(rare, held, strict=True) if share < 0.4]].copy()
    lists = {"some": list(some.var_names[:9])}
    found = ia.states(
        atlas, some, cell_type="type_1", reference="healthy", minimum_overlap=0.1, gene_lists=lists
    )
    assert found.table["score_some"].notna().any()


def test_columns_are_those_of_the_atlas_unless_named(study: AnnData, atlas: ia.Atlas) -> None:
    study.obs["kind"], study.obs["illness"] = study.obs["cell_type"], study.obs["disease"]
    asked = {"cell_type": "type_1", "reference": "healthy"}
    named = ia.states(atlas, study, cell_type_column="kind", disease="illness", **asked)
    pd.testing.assert_frame_equal(ia.states(atlas, study, **asked).shares, named.shares)


def test_too_few_donors_are_refused_before_any_work(study: AnnData, atlas: ia.Atlas) -> None:
    names = np.where(np.arange(study.n_obs) < 5, [f"p{j}" for j in range(study.n_obs)], "one")
    study.obs["donor"] = names
    with pytest.raises(ia.InvatlasError, match="2 donors have 5 or more of the cells, 1 of them"):
        ia.states(atlas, study, cell_type="type_1", reference="healthy")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cell_type": "fibroblast"}, "no cell has cell_type 'fibroblast'"),
        ({"cell_type": "type_1", "reference": "flu"}, "0 of .* type_1 have disease 'flu'"),
        ({"cell_type": "type_1", "donor": "dono"}, "Did you mean 'donor'"),
        ({"cell_type": "type_1", "gene_lists": {"mine": ["none"]}}, "'mine' has none of the"),
        ({"cell_type": "type_3"}, "states take at least 50"),
    ],
    ids=["type", "reference", "donor", "genes", "few"],
)
def test_wrong_questions_are_refused(
    study: AnnData, atlas: ia.Atlas, asked: dict, message: str
) -> None:
    with pytest.raises(ia.InvatlasError, match=message):
        ia.states(atlas, study, **{"reference": "healthy", **asked})
