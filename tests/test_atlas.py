"""`fit` at its border: what it takes, what it refuses, and what it leaves alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData

import invatlas as ia
import invatlas.training.job
from invatlas.errors import (
    ConfoundingError,
    CountsError,
    CovariateError,
    DataError,
    GeneError,
    SettingsError,
    StudyWarning,
    TrainingError,
)

Fit = Callable[..., ia.Atlas]


def fingerprint(adata: AnnData) -> dict[str, Any]:
    x = adata.X
    arrays = [x.data, x.indices, x.indptr] if sp.issparse(x) else [np.asarray(x)]
    return {
        "x": [(a.dtype, a.tobytes()) for a in arrays],
        "obs": adata.obs.to_csv(),
        "dtypes": list(map(str, adata.obs.dtypes)),
        "var": adata.var.to_csv(),
        "keys": [sorted(m) for m in (adata.obsm, adata.varm, adata.uns, adata.layers)],
    }


def with_x(study: AnnData, change: Callable[[np.ndarray], None]) -> AnnData:
    x = study.X.toarray().astype(np.float64)
    change(x)
    study.X = sp.csr_matrix(x)
    return study


def put(value: float) -> Callable[[np.ndarray], None]:
    def change(x: np.ndarray) -> None:
        x[4, 7] = value

    return change


def log_normalise(x: np.ndarray) -> None:
    x[:] = np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1))


def blank(x: np.ndarray) -> None:
    x[:] = 0


WRONG_COUNTS: dict[str, tuple[Callable[[np.ndarray], None], str]] = {
    "negative": (put(-3), r"negative value, -3 \(cell 'cell_00005', gene 'gene_0008'\)"),
    "fractional": (put(1.5), r"fractional value, 1.5 \(cell 'cell_00005', gene 'gene_0008'\)"),
    "log-normalised": (log_normalise, r"fractional value.*layer"),
    "NaN": (put(np.nan), r"nan \(cell 'cell_00005', gene 'gene_0008'\)"),
    "infinite": (put(np.inf), r"inf \(cell 'cell_00005', gene 'gene_0008'\)"),
    "all zero": (blank, r"None of 120 genes is counted in any"),
    "beyond counting": (put(1e20), r"1e\+20 \(cell 'cell_00005', gene 'gene_0008'\)"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_wrong_counts_are_refused(
    study: AnnData, fit: Fit, change: Callable[[np.ndarray], None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit(with_x(study, change))


def test_all_zero_counts_of_named_genes_are_refused_too(study: AnnData, fit: Fit) -> None:
    def change(x: np.ndarray) -> None:
        x[:, :3] = 0

    with pytest.raises(DataError, match="None of the 3 genes is counted in any of 600 cells"):
        fit(with_x(study, change), genes=list(study.var_names[:3]))


WRONG_COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "absent": ({"biological": ["cell_typ"]}, "no column 'cell_typ'.*Did you mean 'cell_type'"),
    "absent technical": ({"technical": ["donors"]}, "no column 'donors'"),
    "constant": ({"biological": ["constant"]}, "'constant' has one value, 'only'"),
    "one category": ({"technical": ["one"]}, "'one' has one value, 'only'"),
    "one a cell": ({"technical": ["barcode"]}, "'barcode' has another value in each of 600"),
    "numbers": ({"biological": ["score"]}, "'score' has another value in each of 600"),
    "all missing": ({"biological": ["empty"]}, "'empty' has no value in any of 600 cells"),
    "named twice": ({"biological": ["cell_type", "cell_type"]}, "'cell_type' is named more than"),
    "in both roles": ({"technical": ["disease"]}, "'disease' is named more than once"),
    "text": ({"biological": "cell_type"}, "'cell_type'.* list"),
    "no biology": ({"biological": []}, "No biological covariate"),
    "a number": ({"biological": [3]}, "biological .*3"),
    "none": ({"technical": None}, "technical .*None"),
}


@pytest.mark.parametrize(("columns", "message"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_wrong_columns_are_refused(
    study: AnnData, fit: Fit, columns: dict[str, Any], message: str
) -> None:
    study.obs["constant"] = "only"
    study.obs["one"] = pd.Categorical(["only"] * 600, categories=["only", "unused"])
    study.obs["barcode"] = [f"barcode{i}" for i in range(600)]
    study.obs["score"] = np.linspace(0.1, 0.9, 600)
    study.obs["empty"] = None
    with pytest.raises(CovariateError, match=message):
        fit(study, **columns)


@pytest.mark.parametrize("cells", [0, 1, 2, 9])
def test_too_few_cells_are_refused_by_their_number(study: AnnData, fit: Fit, cells: int) -> None:
    with pytest.raises(
        DataError, match=rf"have {cells} cell{'' if cells == 1 else 's'};.*at least 10"
    ):
        fit(study[:cells].copy())


def test_an_unknown_layer_is_refused(study: AnnData, fit: Fit) -> None:
    study.layers["raw"] = study.X
    with pytest.raises(CountsError, match=r"no layer 'counts'.*raw"):
        fit(study, layer="counts")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["gene_0001", "TP53", "BRCA1"], "2 of 3 genes.*BRCA1, TP53"),
        ([], "empty"),
        ("gene_0001", "'gene_0001'.* list"),
        (["gene_0001", 7], r"names 7 \(int\); a gene is named by text"),
    ],
)
def test_wrong_genes_are_refused(study: AnnData, fit: Fit, wanted: Any, message: str) -> None:
    with pytest.raises(GeneError, match=message):
        fit(study, genes=wanted)


def test_named_genes_are_the_genes_of_the_atlas(study: AnnData, fit: Fit) -> None:
    wanted = ["gene_0050", "gene_0003", "gene_0003", "gene_0111"]
    atlas = fit(study, genes=np.array(wanted))
    assert all(type(gene) is str for gene in atlas.genes)
    assert atlas.genes == ("gene_0050", "gene_0003", "gene_0111")
    expected = study[:, list(atlas.genes)].X.sum(0).A1
    np.testing.assert_allclose(atlas.gene_shares, expected / expected.sum())


def test_the_number_of_genes_is_a_setting(study: AnnData) -> None:
    settings = ia.Settings(genes=30, epochs=1, hidden=8)
    atlas = ia.fit(study, ["cell_type"], ["donor"], settings=settings)
    assert len(atlas.genes) == 30
    assert all(type(gene) is str for gene in atlas.genes)
    assert set(atlas.genes) < set(study.var_names)


def test_duplicate_cell_names_are_said_and_do_no_harm(study: AnnData, fit: Fit) -> None:
    expected = ia.embed(fit(study), study)
    study.obs_names = ["twin"] * 600
    atlas = fit(study)
    assert any("'twin'" in warning for warning in atlas.record["warnings"])
    assert np.array_equal(ia.embed(atlas, study), expected)


def test_technical_covariates_may_be_left_out(study: AnnData, fit: Fit) -> None:
    settings = ia.Settings(epochs=2, hidden=8, genes=0)
    atlas = ia.fit(study, ["cell_type"], settings=settings)
    assert any("No technical column" in warning for warning in atlas.record["warnings"])
    for which in ("invariant", "spurious"):
        assert np.isfinite(ia.embed(atlas, study, which)).all()


def test_spurious_latents_may_be_left_out(study: AnnData, fit: Fit) -> None:
    atlas = fit(study, spurious_latents=0)
    assert ia.embed(atlas, study, "spurious").shape == (600, 0)
    assert ia.embed(atlas, study).shape == (600, 5)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "gaussian"])
@pytest.mark.parametrize("technical_in_decoder", [False, True])
def test_every_likelihood_fits(
    study: AnnData, fit: Fit, likelihood: str, technical_in_decoder: bool
) -> None:
    atlas = fit(study, likelihood=likelihood, technical_in_decoder=technical_in_decoder, epochs=2)
    assert np.isfinite(atlas.history.to_numpy(float)).all()
    assert np.isfinite(ia.embed(atlas, study)).all()


def test_partly_and_wholly_missing_labels_are_fitted(study: AnnData, fit: Fit) -> None:
    obs = study.obs
    for column in ("cell_type", "disease", "donor", "batch"):
        obs[column] = obs[column].astype(object)
    obs.iloc[:100, obs.columns.get_loc("cell_type")] = np.nan
    obs.iloc[50:150, obs.columns.get_loc("disease")] = "Unknown"
    obs.iloc[70:120, obs.columns.get_loc("donor")] = ""
    obs.iloc[80:90] = None  # nothing at all is known of these
    atlas = fit(study)
    names = {c.name: c.categories for c in atlas.schema.covariates}
    assert names["disease"] == ("disease_1", "healthy") and len(names["cell_type"]) == 3
    assert np.isfinite(atlas.history.to_numpy(float)).all()
    assert np.isfinite(ia.embed(atlas, study)).all()


def test_unlabelled_cells_of_more_combinations_than_a_table_holds_are_fitted(fit: Fit) -> None:
    """66 batches x 70 donors: held-out donors leave their batch behind, too."""
    many = ia.simulate(
        cells=700, genes=40, donors=70, batches=66, cell_types=3, diseases=2, truth=False
    )
    atlas = fit(many)
    assert np.isfinite(atlas.history.to_numpy(float)).all()
    assert atlas.record["training"]["best_epoch"] >= 1
    many.obs["donor"] = many.obs["donor"].astype(object)
    many.obs.loc[many.obs["batch"] == many.obs["batch"].iloc[0], "donor"] = np.nan
    assert np.isfinite(fit(many, held_out=0.0).history.to_numpy(float)).all()


def test_fit_never_changes_the_data(study: AnnData, fit: Fit) -> None:
    x = study.X.astype(np.float64)
    x.data[::7] = 0  # stored zeros, and rows that are not in order
    for start, end in zip(x.indptr[:50], x.indptr[1:51], strict=True):
        x.data[start:end] = x.data[start:end][::-1]
        x.indices[start:end] = x.indices[start:end][::-1]
    x.has_sorted_indices = False
    study.X = x
    study.obs["cell_type"] = study.obs["cell_type"].astype(object).where(study.obs.index != "a")
    before = fingerprint(study)
    fit(study)
    assert fingerprint(study) == before


def test_a_fit_leaves_the_number_of_threads_alone(
    study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first parallel loop of numba sets the threads of OpenMP, and so those of torch."""
    original = sc.experimental.pp.highly_variable_genes

    def meddle(*args: Any, **kwargs: Any) -> Any:
        torch.set_num_threads(2)
        return original(*args, **kwargs)

    monkeypatch.setattr(sc.experimental.pp, "highly_variable_genes", meddle)
    seen = []
    train = invatlas.training.job.train
    monkeypatch.setattr(
        "invatlas.training.job.train",
        lambda *args: (seen.append(torch.get_num_threads()), train(*args))[1],
    )
    fit(study, genes=30)
    assert (seen, torch.get_num_threads()) == ([1], 1)


def test_forms_of_one_study_give_one_atlas(
    study: AnnData, fit: Fit, atlas: ia.Atlas, generator: np.random.Generator
) -> None:
    expected = ia.embed(atlas, study)
    shuffled = study[:, generator.permutation(study.n_vars)].copy()
    shuffled.layers["raw"] = shuffled.X.tocsc().astype(np.int32)
    shuffled.X = np.full(shuffled.shape, 0.25)
    shuffled.obs["disease"] = shuffled.obs["disease"].cat.add_categories(["unused"])
    shuffled.obs["donor"] = shuffled.obs["donor"].astype(str)
    same = fit(shuffled, layer="raw")
    assert same.genes == atlas.genes
    assert [c.categories for c in same.schema.covariates] == [
        c.categories for c in atlas.schema.covariates
    ]
    assert np.array_equal(ia.embed(same, study), expected)
    assert same.record["layer"] == "raw"


def test_a_view_fits_like_its_copy(study: AnnData, fit: Fit) -> None:
    rows = np.arange(0, 600, 2)
    view, copy = study[rows], study[rows].copy()
    assert view.is_view
    assert np.array_equal(ia.embed(fit(view), study), ia.embed(fit(copy), study))
    assert view.is_view


def test_duplicated_gene_names_are_added_and_said(study: AnnData, fit: Fit) -> None:
    half = study.X.copy()
    half.data = np.floor(half.data / 2)
    doubled = AnnData(
        sp.hstack([half, study.X - half], format="csr"),
        obs=study.obs,
        var=pd.DataFrame(index=[*study.var_names, *study.var_names]),
    )
    atlas = fit(doubled)
    assert len(atlas.genes) == 120
    told = "120 names of genes come more than once (gene_0001, gene_0002, gene_0003, "
    assert any(warning.startswith(told) for warning in atlas.record["warnings"])
    assert np.array_equal(ia.embed(atlas, doubled), ia.embed(fit(study), study))


def test_spaces_around_gene_names_are_no_part_of_them(study: AnnData, fit: Fit) -> None:
    expected = fit(study)
    spaced = study.copy()
    spaced.var_names = [f" {name} " for name in study.var_names]
    for atlas, cells in ((expected, spaced), (fit(spaced), study), (fit(spaced), spaced)):
        assert atlas.genes == expected.genes
        assert np.array_equal(ia.embed(atlas, cells), ia.embed(expected, study))
    some = [" gene_0001", "gene_0002 "]
    assert fit(spaced, genes=some).genes == ("gene_0001", "gene_0002")


def test_cells_without_counts_are_said(study: AnnData, fit: Fit) -> None:
    def change(x: np.ndarray) -> None:
        x[[2, 30]] = 0

    atlas = fit(with_x(study, change))
    assert any(warning.startswith("2 cells have no counts") for warning in atlas.record["warnings"])


def test_one_value_of_few_cells_is_told_in_the_singular(study: AnnData, fit: Fit) -> None:
    cells = study.copy()
    cells.obs["batch"] = cells.obs["batch"].astype(object)
    cells.obs.iloc[:3, cells.obs.columns.get_loc("batch")] = "rare"
    told = fit(cells).record["warnings"]
    assert any("batch: 1 value with fewer than 5 cells (rare)" in text for text in told)


def test_texts_that_are_taken_as_missing_are_named(study: AnnData, fit: Fit) -> None:
    cells = study.copy()
    cells.obs["disease"] = cells.obs["disease"].astype(object)
    cells.obs.iloc[:3, cells.obs.columns.get_loc("disease")] = "Unknown"
    atlas = fit(cells)
    assert any("disease: 3 cells say 'Unknown'" in text for text in atlas.record["warnings"])


def test_an_unknown_setting_is_refused_before_anything_else() -> None:
    with pytest.raises(SettingsError, match=re.escape("Unknown setting hiden")):
        ia.Settings().changed({"hiden": 3})


def test_the_record_says_what_was_used(atlas: ia.Atlas) -> None:
    assert atlas.record["cells"] == 600
    assert {"python", "invatlas", "torch", "anndata", "scanpy"} <= set(atlas.record["versions"])
    assert atlas.settings.seed == 1
    assert [c.name for c in atlas.schema.biological] == ["cell_type", "disease"]
    assert [c.name for c in atlas.schema.technical] == ["donor", "batch"]
    assert atlas.gene_shares.sum() == pytest.approx(1.0)
    planned = atlas.record["training"]["planned"]
    assert planned == {"epochs": 3, "minibatch_size": 128}


def test_strict_refuses_before_training_and_alarms_are_kept(study: AnnData, fit: Fit) -> None:
    study.obs["run"] = study.obs["disease"].astype(str) + " run"
    columns = {"biological": ["cell_type", "disease"], "technical": ["donor", "run"]}
    with pytest.raises(ConfoundingError, match="What disease=disease_1 does cannot be told from"):
        ia.fit(study, **columns, strict=True, settings=ia.Settings(epochs=10**6))
    atlas = fit(study, **columns, epochs=1)
    assert [row["kind"] for row in atlas.record["confounding"]] == ["full", "nested"]
    assert atlas.record["warnings"][0] == atlas.record["confounding"][0]["sentence"]
    rows = ia.summarise(atlas, study.obs)["confounding"]
    assert [row["alarm"] for row in rows] == [True, False]
    ia.fit(study, ["disease"], ["donor"], strict=True, settings=atlas.settings)


def test_what_calls_for_caution_is_warned_of_before_training(
    study: AnnData, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.obs["run"] = study.obs["disease"].astype(str) + " run"

    def train(*_: object) -> None:
        raise TrainingError("not now")

    monkeypatch.setattr("invatlas.training.job.Job.run", train)
    with pytest.raises(TrainingError), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(study, biological=["disease"], technical=["run"])
    sentence = "What disease=disease_1 does cannot be told from"
    (warning,) = (w for w in caught if str(w.message).startswith(sentence))
    assert issubclass(warning.category, StudyWarning) and warning.filename.endswith("conftest.py")
    with pytest.raises(TrainingError), pytest.warns(StudyWarning, match="No technical column"):
        fit(study, technical=[])
