"""Recovery of known truth, on donors no fit has seen.

The invariant latents must tell cell type and disease, and of the batch nothing that the
biology does not; the spurious latents the reverse. Cells of a donor are not independent:
classifiers learn on some donors and are judged on others, and the null distribution of a
batch is made by dealing batches anew to whole donors of one disease.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import invatlas as ia

PERMUTATIONS = 39
HELD_PER_STRATUM = 2


@pytest.fixture(scope="module")
def study() -> AnnData:
    """Six donors for each of two diseases and two batches."""
    return ia.simulate(
        cells=3600,
        genes=200,
        donors=24,
        batches=2,
        diseases=2,
        cell_types=4,
        library_size=800,
        truth=False,
        seed=2,
    )


@pytest.fixture(scope="module")
def held_out(study: AnnData) -> np.ndarray:
    """Cells of two donors from each disease and batch."""
    people = study.obs.groupby("donor", observed=True)[["disease", "batch"]].first()
    chosen = people.groupby(["disease", "batch"], observed=True).head(HELD_PER_STRATUM).index
    assert len(chosen) == 4 * HELD_PER_STRATUM
    return study.obs["donor"].isin(chosen).to_numpy()


@pytest.fixture(scope="module")
def latents(study: AnnData, held_out: np.ndarray) -> dict[str, np.ndarray]:
    settings = ia.Settings(
        epochs=40, hidden=64, genes=0, invariant_latents=8, spurious_latents=4, seed=0
    )
    atlas = ia.fit(
        study[~held_out].copy(), ["cell_type", "disease"], ["donor", "batch"], settings=settings
    )
    bare = AnnData(study.X, var=study.var[[]])
    return {which: ia.embed(atlas, bare, which) for which in ("invariant", "spurious")}


def classifier() -> Callable:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))


def score(z: np.ndarray, label: np.ndarray, held_out: np.ndarray) -> float:
    """Balanced accuracy on held-out donors of what was learnt on the others."""
    model = classifier().fit(z[~held_out], label[~held_out])
    return float(balanced_accuracy_score(label[held_out], model.predict(z[held_out])))


def batch_given_biology(
    z: np.ndarray, study: AnnData, batch: np.ndarray, held_out: np.ndarray
) -> float:
    """Mean balanced accuracy of the batch within cell type x disease."""
    scores = []
    biology = study.obs["cell_type"].astype(str) + study.obs["disease"].astype(str)
    for stratum, n in biology.value_counts().items():
        if n >= 200:
            rows = (biology == stratum).to_numpy()
            scores.append(score(z[rows], batch[rows], held_out[rows]))
    assert len(scores) >= 4
    return float(np.mean(scores))


def deal_batches(
    study: AnnData, held_out: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Deal batches anew to donors, within disease, held-out donors among themselves."""
    people = study.obs.assign(held=held_out).groupby("donor", observed=True)
    people = people[["disease", "batch", "held"]].first().astype({"batch": str})
    for _, group in people.groupby(["disease", "held"], observed=True):
        people.loc[group.index, "batch"] = generator.permutation(group["batch"].to_numpy())
    return people["batch"].reindex(study.obs["donor"]).to_numpy()


@pytest.fixture(scope="module")
def batch_scores(
    study: AnnData, held_out: np.ndarray, latents: dict[str, np.ndarray]
) -> dict[str, tuple[float, np.ndarray]]:
    """Found score of the batch and its null distribution, for both sets of latents."""
    true = study.obs["batch"].astype(str).to_numpy()
    generator = np.random.default_rng(0)
    dealt = [deal_batches(study, held_out, generator) for _ in range(PERMUTATIONS)]
    return {
        which: (
            batch_given_biology(z, study, true, held_out),
            np.array([batch_given_biology(z, study, batch, held_out) for batch in dealt]),
        )
        for which, z in latents.items()
    }


def affected(study: AnnData) -> list[str]:
    table = study.uns["differential_genes"]
    return sorted(set(table["cell_type"]))


def disease_auc(z: np.ndarray, study: AnnData, held_out: np.ndarray, kind: str) -> float:
    rows = (study.obs["cell_type"] == kind).to_numpy()
    ill = (study.obs["disease"] != "healthy").to_numpy()
    model = classifier().fit(z[rows & ~held_out], ill[rows & ~held_out])
    called = model.predict_proba(z[rows & held_out])[:, 1]
    return float(roc_auc_score(ill[rows & held_out], called))


def test_invariant_latents_tell_cell_types(
    study: AnnData, held_out: np.ndarray, latents: dict[str, np.ndarray]
) -> None:
    kind = study.obs["cell_type"].astype(str).to_numpy()
    found = {which: score(z, kind, held_out) for which, z in latents.items()}
    assert found["invariant"] > 0.85
    assert found["spurious"] < found["invariant"] - 0.2


def test_invariant_latents_tell_disease_where_it_acts(
    study: AnnData, held_out: np.ndarray, latents: dict[str, np.ndarray]
) -> None:
    rare = study.obs["cell_type"].value_counts()
    kinds = [kind for kind in affected(study) if rare[kind] >= 200]
    assert kinds
    for kind in kinds:
        found = disease_auc(latents["invariant"], study, held_out, kind)
        assert found > 0.75, kind
        assert disease_auc(latents["spurious"], study, held_out, kind) < found, kind


def test_invariant_latents_tell_the_batch_no_better_than_chance_given_biology(
    batch_scores: dict[str, tuple[float, np.ndarray]],
) -> None:
    found, null = batch_scores["invariant"]
    p_value = (1 + (null >= found).sum()) / (1 + len(null))
    assert p_value > 0.05, f"balanced accuracy {found:.2f}, null up to {null.max():.2f}"


def test_spurious_latents_tell_the_batch(
    batch_scores: dict[str, tuple[float, np.ndarray]],
) -> None:
    found, null = batch_scores["spurious"]
    assert found > 0.85
    # dealing at random may by chance deal as it was: two thirds of the null suffice
    assert (null < found - 0.1).mean() > 0.8


def test_cells_with_coarse_labels_are_called_by_the_finer_ones(study: AnnData) -> None:
    """Half the donors of each disease come from a study that tells two lineages apart only."""
    kinds = sorted(study.obs["cell_type"].unique())
    lineages = {"lymphoid": kinds[:2], "myeloid": kinds[2:]}
    lineage = {kind: name for name, finer in lineages.items() for kind in finer}
    people = study.obs.groupby("disease", observed=True)["donor"].unique()
    coarse = study.obs["donor"].isin([d for ds in people for d in sorted(ds)[::2]]).to_numpy()
    truth = study.obs["cell_type"].astype(str).to_numpy()
    told = study.copy()
    told.obs["cell_type"] = np.where(coarse, [lineage[kind] for kind in truth], truth)
    settings = ia.Settings(epochs=15, hidden=64, genes=0, spared_donors=0.0)
    atlas = ia.fit(
        told,
        ["cell_type", "disease"],
        ["donor"],
        hierarchy={"cell_type": lineages},
        settings=settings,
    )
    assert atlas.schema.biological[0].categories == tuple(kinds)
    called = ia.annotate(atlas, AnnData(study.X, var=study.var[[]]))["predicted_cell_type"]
    called = called.astype(str).to_numpy()[coarse]
    kept = np.mean(
        [lineage[kind] == lineage[t] for kind, t in zip(called, truth[coarse], strict=True)]
    )
    assert kept > 0.98, "a coarse label is what the cell was taught"
    assert (called == truth[coarse]).mean() > 0.9, "the finer one comes from the other donors"
