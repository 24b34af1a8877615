"""What moves which gene: derivatives against differences, sums kept, gene sets against scipy."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import stats

import invatlas as ia
from invatlas.tasks.explain import (
    differentiate,
    express_latents,
    integrate,
    read_gene_sets,
    score_gene_sets,
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of the study's genes, one of strangers."""
    file = tmp_path_factory.mktemp("sets") / "tiny.gmt"
    lines = ["FIRST\tfrom 1 on\t" + "\t".join(f"GENE_{j:04d}" for j in range(1, 11))]
    lines += ["LAST\t\t" + "\t".join(f"gene_{j:04d}" for j in range(100, 121))]
    lines += ["STRANGE\tnone\tXIST\tTSIX", ""]
    file.write_text("\n".join(lines))
    return file


def test_packed_gene_sets_are_the_same(sets: Path, tmp_path: Path) -> None:
    packed = tmp_path / "tiny.gmt.gz"
    packed.write_bytes(gzip.compress(sets.read_bytes()))
    assert read_gene_sets(packed) == read_gene_sets(sets)


def test_the_jacobian_is_that_of_finite_differences(atlas: ia.Atlas) -> None:
    """In double precision: a step of 1e-6 seldom crosses a kink of a rectifier."""
    express = express_latents(replace(atlas, model=copy.deepcopy(atlas.model).double()))
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slopes, step = differentiate(express, z), 1e-6
    for k in range(5):
        ahead, behind = z.clone(), z.clone()
        ahead[:, k] += step
        behind[:, k] -= step
        with torch.no_grad():
            expected = (express(ahead) - express(behind)) / (2 * step)
        torch.testing.assert_close(slopes[:, :, k], expected, atol=1e-6, rtol=1e-5)


def test_integrated_gradients_sum_to_the_change(atlas: ia.Atlas) -> None:
    express = express_latents(atlas)
    start, end = torch.zeros(2, 5), torch.tensor([[1.0, -2.0, 0.5, 0, 3], [0, 0, 0, 0, 1.0]])
    with torch.no_grad():
        change = express(end) - express(start)
    found = integrate(express, start, end)
    torch.testing.assert_close(found.sum(2), change, atol=0.02, rtol=0.02)
    assert not found[1, :, :4].any(), "latents that do not move carry nothing"


def test_the_cells_behind_each_shift_are_counted(atlas: ia.Atlas) -> None:
    found = ia.explain(atlas)
    assert list(found.cells.index) == list(found.shifts) and found.cells.index.name == "shift"
    of_types = found.cells[found.cells.index.str.contains(" in ")]
    whole = found.cells[~found.cells.index.str.contains(" in ")]
    np.testing.assert_array_equal(of_types.sum(), whole.sum())
    ends = whole["cells"].sum() + whole["cells_against"].iloc[0]
    assert ends == atlas.record["labelled"]["invariant"], "every fitted cell is on a side"


def test_no_fewer_cells_than_none_stand_behind_a_shift(
    study: AnnData, fit: Callable[..., ia.Atlas]
) -> None:
    study.obs["cell_type"] = study.obs["cell_type"].where(np.arange(600) % 2 == 0)
    study.obs["disease"] = study.obs["disease"].where(study.obs["cell_type"].isna())
    assert (ia.explain(fit(study, epochs=1)).cells >= 0).all(axis=None), "none has both labels"


def test_gene_sets_are_scored_as_by_a_regression_on_membership() -> None:
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.normal(size=(60, 2)), [f"G{j}" for j in range(60)], ["p", "q"])
    values.loc[values.index[:8], "q"] += 2
    sets = {"eight": [f"g{j}" for j in range(8)], "ten": [f"G{j}" for j in range(20, 30)]}
    found = score_gene_sets(values, sets).set_index(["of", "gene_set"])
    for name, genes in sets.items():
        member = np.isin(values.index.str.upper(), [g.upper() for g in genes]).astype(float)
        for column in values:
            line = stats.linregress(member, values[column])
            row = found.loc[(column, name)]
            assert row["t"] == pytest.approx(line.slope / line.stderr)
            assert row["p_value"] == pytest.approx(line.pvalue)
            assert row["genes"] == len(genes)
    assert found.loc["q"].index[0] == "eight"


def test_an_atlas_is_explained(atlas: ia.Atlas, sets: Path) -> None:
    found = ia.explain(atlas, gene_sets=str(sets))
    assert list(found.latents.columns) == [f"z_I {k}" for k in range(1, 6)]
    assert list(found.latents.index) == list(atlas.genes)
    title = "disease: disease_1 against healthy"
    assert list(found.shifts.columns) == [title, *[f"{title} in type_{k}" for k in (1, 2, 3)]]
    np.testing.assert_allclose(found.carriers.sum(), 1, rtol=1e-6)
    assert set(found.gene_sets["gene_set"]) == {"FIRST", "LAST"}
    turned = ia.explain(atlas, against="disease_1")
    one = "disease: healthy against disease_1"
    np.testing.assert_allclose(turned.shifts[one], -found.shifts[title], atol=1e-5)
    assert turned.gene_sets.empty and "t" in turned.gene_sets


def test_the_shift_of_a_cell_type_is_the_difference_of_two_decoded_means(atlas: ia.Atlas) -> None:
    prior = atlas.model.prior_invariant
    codes = prior.combinations.tolist()  # type_k in alphabetical order, disease_1 before healthy
    with torch.no_grad():
        ends = express_latents(atlas)(prior().mean[[codes.index([1, 0]), codes.index([1, 1])]])
    found = ia.explain(atlas).shifts["disease: disease_1 against healthy in type_2"]
    np.testing.assert_allclose(found, (ends[0] - ends[1]).numpy(), atol=1e-6)


def test_questions_without_an_answer_are_refused(atlas: ia.Atlas, tmp_path: Path) -> None:
    with pytest.raises(ia.InvatlasError, match="takes one of cell_type, disease"):
        ia.explain(atlas, covariate="donor")
    with pytest.raises(ia.InvatlasError, match="against is 'flu'; it takes one of disease_1"):
        ia.explain(atlas, against="flu")
    with pytest.raises(ia.InvatlasError, match=r"None of 1 gene sets has 5 of the atlas's 120"):
        ia.explain(atlas, gene_sets={"mouse": ["Actb", "Gapdh"]})
    with pytest.raises(ia.InvatlasError, match=r"There is no file .*none\.gmt"):
        ia.explain(atlas, gene_sets=tmp_path / "none.gmt")
    (tmp_path / "odd.gmt.gz").write_text("A\tB\tC\n")
    with pytest.raises(ia.InvatlasError, match="cannot be read: Not a gzipped file"):
        ia.explain(atlas, gene_sets=tmp_path / "odd.gmt.gz")
    for text, message in (
        ("A\tB\tC\n\nno tabs here\n", "no gmt file: line 3 has no genes"),
        ("\n", "it is empty"),
        ("A\t\tC\nA\t\tD\n", "names the set 'A' twice"),
    ):
        (tmp_path / "odd.gmt").write_text(text)
        with pytest.raises(ia.InvatlasError, match=message):
            read_gene_sets(tmp_path / "odd.gmt")


def test_a_latent_varies_with_what_it_shares(study: AnnData, fit: Callable[..., ia.Atlas]) -> None:
    """Of a low-rank prior, too: its loadings are a part of every latent's deviation."""
    atlas = fit(study, prior="low_rank", epochs=1)
    before = ia.explain(atlas).latents
    with torch.no_grad():
        atlas.model.prior_invariant.base_loadings += 3.0
    moved = ia.explain(atlas).latents.abs().sum() / before.abs().sum()
    assert (moved > 1.5).all()
