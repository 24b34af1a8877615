"""Differential expression: technique taken out, donors as replicates, mistakes explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import invatlas as ia
from invatlas.data.counts import CountSource
from invatlas.tasks.differential import compare_profiles
from invatlas.tasks.expression import TECHNICAL_VALUES, Profiles, profile
from invatlas.tasks.groups import Samples, choose_cells, take_samples

ILL = {"cell_type": "type_1", "disease": "disease_1"}
WELL = {"cell_type": "type_1", "disease": "healthy"}


@pytest.fixture(scope="module")
def planted() -> AnnData:
    """Eight donors for each of two diseases, with clear shifts and little technique."""
    return ia.simulate(
        cells=2400, genes=100, donors=16, batches=2, cell_types=2, diseases=2, seed=11
    )


@pytest.fixture(scope="module")
def planted_atlases(planted: AnnData) -> list[ia.Atlas]:
    """Two fits, since how many genes one finds depends on its seed (4 to 8 of 9)."""
    settings = [
        ia.Settings(epochs=40, hidden=64, genes=0, spared_donors=0.0, seed=seed) for seed in (0, 1)
    ]
    return [
        ia.fit(planted, ["cell_type", "disease"], ["donor", "batch"], settings=s) for s in settings
    ]


def contrast(study: AnnData) -> tuple[dict, dict, set[str]]:
    """The commonest affected cell type, ill and healthy, and its differential genes."""
    table = study.uns["differential_genes"]
    kind = table["cell_type"].min()
    far = table[(table["cell_type"] == kind) & (table["log_fold_change"].abs() > 0.25)]
    groups = [{"cell_type": kind, "disease": disease} for disease in ("disease_1", "healthy")]
    return groups[0], groups[1], set(far["gene"])


def test_planted_genes_are_found_and_no_others(
    planted: AnnData, planted_atlases: list[ia.Atlas]
) -> None:
    ill, well, true = contrast(planted)
    table = planted.uns["differential_genes"].set_index(["cell_type", "disease", "gene"])
    truth = table["log_fold_change"].loc[ill["cell_type"], "disease_1"]
    found = [ia.differential_expression(a, planted, ill, well) for a in planted_atlases]
    listed = [set(f.index[f["false_discovery_rate"] <= 0.1]) for f in found]
    assert sum(len(some & true) for some in listed) >= 0.5 * len(found) * len(true)
    for some, answer in zip(listed, found, strict=True):
        assert len(some - true) <= max(1, 0.15 * len(some))
        assert np.corrcoef(truth, answer.loc[truth.index, "log2_fold_change"])[0, 1] > 0.9


def test_swapping_the_groups_turns_the_signs(study: AnnData, atlas: ia.Atlas) -> None:
    one = ia.differential_expression(atlas, study, ILL, WELL)
    two = ia.differential_expression(atlas, study, WELL, ILL).loc[one.index]
    np.testing.assert_allclose(one["log2_fold_change"], -two["log2_fold_change"], atol=1e-6)
    np.testing.assert_allclose(one["probability"], two["probability"], atol=1e-6)


def test_masks_and_values_gene_and_cell_order_give_one_answer(
    study: AnnData, atlas: ia.Atlas, generator: np.random.Generator
) -> None:
    one = ia.differential_expression(atlas, study, ILL, WELL)
    masks = [choose_cells(study.obs, group, "group") for group in (ILL, WELL)]
    cells, genes = generator.permutation(study.n_obs), generator.permutation(study.n_vars)
    shuffled = study[cells, genes].copy()
    two = ia.differential_expression(atlas, shuffled, masks[0][cells], masks[1][cells])
    pd.testing.assert_frame_equal(one, two.loc[one.index], rtol=1e-3, atol=1e-5)
    assert (one["false_discovery_rate"].diff().dropna() >= 0).all()


def test_technique_is_the_same_for_every_cell(study: AnnData, atlas: ia.Atlas) -> None:
    """Donors renamed at random change what is expected as measured, not what biology counts."""
    source = CountSource.from_anndata(study, atlas.genes)
    technical = atlas.schema.encode(study.obs)[1]
    sample = np.arange(study.n_obs) % 2
    one = profile(atlas, source, technical, sample, 2)
    two = profile(atlas, source, technical[::-1].copy(), sample, 2)
    np.testing.assert_array_equal(one.biological, two.biological)
    assert not np.allclose(one.expected, two.expected)
    for sums in (one.biological, one.expected, one.counted):
        np.testing.assert_allclose(sums.sum(1), one.library_size, rtol=1e-4)
    assert TECHNICAL_VALUES > 1


def test_what_the_model_missed_is_put_back(study: AnnData, atlas: ia.Atlas) -> None:
    source = CountSource.from_anndata(study, atlas.genes)
    technical = atlas.schema.encode(study.obs)[1]
    found = profile(atlas, source, technical, np.zeros(study.n_obs, dtype=int), 1)
    right = replace(found, counted=found.expected)
    np.testing.assert_allclose(
        right.log_expression(), np.log(found.biological / found.library_size[:, None])
    )
    twice = replace(found, counted=2 * found.expected)
    np.testing.assert_allclose(
        twice.log_expression(0.0) - right.log_expression(0.0), np.log(2), atol=1e-9
    )


@pytest.mark.parametrize(("depth", "found"), [(1, 0), (10_000, 10)])
def test_donors_alike_in_the_model_are_not_surer_than_their_counts(depth: int, found: int) -> None:
    """Ten genes twice as high in the model, without spread; a few counts cannot say so."""
    first = np.arange(8) < 4
    expected = np.full((8, 60), float(depth))
    expected[:4, :10] *= 2
    profiles = Profiles(expected, expected, expected, expected.sum(1))
    names = np.arange(8).astype(str).astype(object)
    samples = Samples(np.arange(8), first, names, paired=False)
    table = compare_profiles(
        profiles, samples, np.ones(60, dtype=bool), np.arange(60).astype(str), 0.25
    )
    assert (table["probability"] > 0.9).sum() == found


def test_donors_in_both_groups_are_compared_with_themselves(study: AnnData) -> None:
    generator = np.random.default_rng(0)
    first = generator.random(study.n_obs) < 0.5
    samples = take_samples(study.obs, first, ~first, "donor", 5)
    assert samples.paired
    donors = study.obs["donor"].cat.categories
    np.testing.assert_array_equal(samples.donor, [*donors, *donors])
    for s, donor in enumerate(samples.donor):
        rows = samples.cells == s
        assert set(study.obs["donor"][rows]) == {donor}
        assert (first[rows] == samples.first[s]).all()
    ill = (study.obs["disease"] == "disease_1").to_numpy()
    apart = take_samples(study.obs, ill, ~ill, "donor", 5)
    assert not apart.paired and apart.first.sum() == 3 and len(apart.donor) == 6


def test_a_donor_with_few_cells_is_left_out(study: AnnData) -> None:
    ill = (study.obs["disease"] == "disease_1").to_numpy()
    donor = study.obs["donor"][ill].iloc[0]
    rows = np.flatnonzero(study.obs["donor"] == donor)
    ill[rows[4:]] = False
    well = (study.obs["disease"] == "healthy").to_numpy()
    samples = take_samples(study.obs, ill, well, "donor", 5)
    assert donor not in samples.donor and samples.first.sum() == 2


def test_pseudobulk_agrees_on_what_is_clear(
    planted: AnnData, planted_atlases: list[ia.Atlas]
) -> None:
    pytest.importorskip("pydeseq2")
    ill, well, _ = contrast(planted)
    found = ia.differential_expression(
        planted_atlases[0], planted, ill, well, method="pseudobulk", threshold=0.0
    )
    ours = ia.differential_expression(planted_atlases[0], planted, ill, well)
    clear = ours.index[:8]
    changes = [table.loc[clear, "log2_fold_change"] for table in (found, ours)]
    assert (np.sign(changes[0]) == np.sign(changes[1])).all()
    assert found["p_value"].between(0, 1).all()


def test_genes_that_were_not_counted_are_left_out(study: AnnData, atlas: ia.Atlas) -> None:
    """They would differ wherever one group has more counts than the other."""
    absent = [atlas.genes[j] for j in np.argsort(-atlas.gene_shares)[:5]]
    some = study[:, ~study.var_names.isin(absent)].copy()
    for method in ("posterior", "pseudobulk"):
        if method == "pseudobulk":
            pytest.importorskip("pydeseq2")
        found = ia.differential_expression(atlas, some, ILL, WELL, method=method)
        assert set(found.index) == set(atlas.genes) - set(absent)


def test_values_need_not_be_text(study: AnnData, atlas: ia.Atlas) -> None:
    study.obs["group"] = np.where(study.obs["disease"] == "healthy", 1.0, 2.0)
    ill = {"cell_type": "type_1", "disease": sorted(set(study.obs["disease"]) - {"healthy"})}
    one = ia.differential_expression(atlas, study, ill, WELL)
    numbers = [{"cell_type": "type_1", "group": value} for value in (2, [1.0])]
    pd.testing.assert_frame_equal(one, ia.differential_expression(atlas, study, *numbers))


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ({"disease": "Healthy"}, WELL, "Did you mean 'healthy'"),
        ({"disease": "flu"}, WELL, "group1: no cell has disease 'flu'; the values are disease_1"),
        ({"diseas": "healthy"}, WELL, "Did you mean 'disease'"),
        (WELL, {"disease": "healthy"}, "share .* cells; they must share none"),
        (np.ones(3, dtype=bool), WELL, "one True or False for each of the 600 cells"),
        (pd.Series([True] * 600), WELL, "group1 is a Series of other cells than obs, or in"),
        ({"donor": "donor_01"}, {"donor": "donor_02"}, "Group 1 has 1 value of donor"),
    ],
    ids=["case", "value", "column", "overlap", "mask", "series", "one donor"],
)
def test_wrong_groups_are_refused(
    study: AnnData, atlas: ia.Atlas, one: object, two: object, message: str
) -> None:
    with pytest.raises(ia.InvatlasError, match=message):
        ia.differential_expression(atlas, study, one, two)


def test_wrong_choices_are_refused(study: AnnData, atlas: ia.Atlas, fit) -> None:
    with pytest.raises(ia.InvatlasError, match="posterior or pseudobulk"):
        ia.differential_expression(atlas, study, ILL, WELL, method="wilcoxon")
    for threshold in (-1, 0, "0.5"):
        with pytest.raises(ia.InvatlasError, match=r"posterior takes 0\.01 or more"):
            ia.differential_expression(atlas, study, ILL, WELL, threshold=threshold)
    gaussian = fit(study, likelihood="gaussian", epochs=1)
    with pytest.raises(ia.InvatlasError, match="gaussian likelihood"):
        ia.differential_expression(gaussian, study, ILL, WELL)
    told = ia.states(gaussian, study, cell_type="type_1", reference="healthy").table
    assert not told["markers"].any(), "states do not need expected counts"
