"""Label transfer: calls for donors and technologies no method was trained on, ours and the peers.

Three tasks. ``transfer``: units (donors, batches, technologies) are left out in folds, and their
cells are called. ``unseen``: cell types are called in a condition the reference lacks. ``novelty``:
one cell type at a time is taken from the reference, and its cells are to look new among those of
the left-out units. Run ``python benchmarks/label_transfer.py --help``.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from datasets import STUDIES, UNKNOWN, Study, joint_label, load_study
from peers import (
    describe_environment,
    limit_threads,
    say,
    scale_epochs,
    select_genes,
    silence,
    write_json,
)

# by which column cells are left out, and in how many folds
FOLDS = {
    "kang": ("donor", 4),
    "kang14k": ("donor", 4),
    "cellbench": ("technology", 2),
    "pancreas": ("technology", 5),
}
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Fold:
    """A reference with labels, a query without, and the truth about the query.

    Attributes
    ----------
    name
        What is left out.
    study
        The study, for its covariates.
    reference
        Raw counts; obs holds the covariates and the column ``target``, which is to be called.
    query
        Raw counts; obs holds the technical covariates alone.
    truth
        Targets of the query, shape (cell,); ``UNKNOWN`` is never scored.
    """

    name: str
    study: Study
    reference: anndata.AnnData
    query: anndata.AnnData
    truth: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What a method says of a query.

    Attributes
    ----------
    probabilities
        One column a target, shape (cell, target).
    novelty
        The larger, the newer, shape (cell,).
    sets
        Targets a cell may be, asked to hold the truth of 90 % of cells, shape (cell, target).
    flag
        Cells said to be new, at a false discovery rate of 5 %, shape (cell,).
    """

    probabilities: pd.DataFrame
    novelty: np.ndarray
    sets: pd.DataFrame | None = None
    flag: np.ndarray | None = None


def make_fold(study: Study, name: str, out: np.ndarray, targets: list[str]) -> Fold:
    """Split a study by a mask of query cells; unlabelled cells stay out of the reference."""
    target = joint_label(study.adata.obs, targets)
    reference = study.adata[~out & (target != UNKNOWN)].copy()
    reference.obs["target"] = target[~out & (target != UNKNOWN)]
    query = study.adata[out].copy()
    query.obs = query.obs[study.technical].copy()
    return Fold(name, replace(study, biological=targets), reference, query, target[out])


def leave_units_out(study: Study) -> Iterator[Fold]:
    """Leave out every n-th unit, sorted by name, n being the number of folds."""
    column, n = FOLDS[study.name]
    units = study.adata.obs[column].astype(str)
    names = sorted(units.unique())
    for k in range(n):
        out = units.isin(names[k::n]).to_numpy()
        yield make_fold(study, ", ".join(names[k::n]), out, study.biological)


def leave_condition_out(study: Study) -> Iterator[Fold]:
    """Train on control cells, call cell types of stimulated ones."""
    if "condition" not in study.adata.obs:
        raise SystemExit(f"{study.name} has no condition to leave out; choose kang")
    out = (study.adata.obs["condition"].astype(str) == "stim").to_numpy()
    yield make_fold(study, "stim", out, ["cell_type"])


def leave_types_out(study: Study) -> Iterator[Fold]:
    """Take one cell type at a time from the reference of the first fold of units."""
    fold = next(leave_units_out(study))
    types = fold.reference.obs["cell_type"].astype(str)
    for kind in sorted(types.unique()):
        reference = fold.reference[(types != kind).to_numpy()].copy()
        yield replace(fold, name=kind, reference=reference)


TASKS: dict[str, Callable[[Study], Iterator[Fold]]] = {
    "transfer": leave_units_out,
    "unseen": leave_condition_out,
    "novelty": leave_types_out,
}


def call_ours(fold: Fold, seed: int, factor: float) -> Answer:
    """Fit ``invatlas`` with its defaults; probabilities and novelty from its public API."""
    return _ask(_fit_ours(fold, seed), fold)


def call_ours_aligned(fold: Fold, seed: int, factor: float) -> Answer:
    """Move the same atlas to the counts of each query with ``invatlas.align`` before it is asked.

    Where ours was run before it the atlas is that one, and the seconds leave its fit out.
    """
    import invatlas as ia

    return _ask(ia.align(_fit_ours(fold, seed), fold.query), fold)


_latest: dict = {}


def _fit_ours(fold: Fold, seed: int):
    """Fit an atlas, or find the latest; a technical column with one value is left out: refused."""
    import invatlas as ia

    if _latest.get("of") is not fold:
        study = fold.study
        technical = [c for c in study.technical if fold.reference.obs[c].nunique() > 1]
        settings = ia.Settings(seed=seed)
        atlas = ia.fit(fold.reference, study.biological, technical, settings=settings)
        _latest.update(of=fold, atlas=atlas)
    return _latest["atlas"]


def _ask(atlas, fold: Fold) -> Answer:
    import invatlas as ia
    from invatlas.tasks.annotate import allowed_by, joint_names, log_probabilities
    from invatlas.tasks.embed import encode_counts
    from invatlas.training.posterior import call_cells

    q, overlap = encode_counts(atlas, fold.query, ["invariant"], None, 0.5)
    calls = call_cells(q["invariant"], atlas.model.prior_invariant)
    log_p = log_probabilities(atlas, calls, allowed_by(atlas, {}), "reference", overlap)
    table = pd.DataFrame(log_p.exp().numpy(), columns=joint_names(atlas))
    sets = ia.prediction_sets(atlas, fold.query) if atlas.calibration else None
    novelty = ia.novelty(atlas, fold.query)
    flag = novelty["novelty_flag"].to_numpy(dtype=bool)
    return Answer(table, novelty["novelty_score"].to_numpy(), sets, flag)


def call_logistic(fold: Fold, seed: int, factor: float) -> Answer:
    """Standardised log-normalised highly variable genes, multinomial, scikit-learn's defaults."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = _choose(fold)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with silence():
        model.fit(_log_normalise(fold.reference, chosen), fold.reference.obs["target"])
        p = model.predict_proba(_log_normalise(fold.query, chosen))
    return _unsure(pd.DataFrame(p, columns=model.classes_))


def call_celltypist(fold: Fold, seed: int, factor: float) -> Answer:
    """Train CellTypist on the reference with its defaults; no majority voting.

    It hands scikit-learn the argument ``multi_class``, which version 1.8 no longer has; it is
    dropped on the way, which makes its one-against-rest regressions a multinomial one.
    """
    import celltypist
    import scanpy as sc
    from sklearn.linear_model import LogisticRegression

    trainer = importlib.import_module("celltypist.train")
    trainer.LogisticRegression = lambda multi_class=None, **given: LogisticRegression(**given)
    reference, query = fold.reference.copy(), fold.query.copy()
    with silence():
        for adata in (reference, query):
            sc.pp.normalize_total(adata, target_sum=1e4)
            sc.pp.log1p(adata)
        model = celltypist.train(reference, labels="target", n_jobs=1)
        found = celltypist.annotate(query, model=model)
    return _unsure(found.probability_matrix.reset_index(drop=True))  # need not sum to one


def call_scanvi(fold: Fold, seed: int, factor: float) -> Answer:
    """Map the query by scArches surgery on a default scANVI, then its soft predictions."""
    import scvi

    with silence():
        model, query = _train_scvi(fold, seed, factor)
        labelled = scvi.model.SCANVI.from_scvi_model(
            model, labels_key="target", unlabeled_category=UNKNOWN
        )
        _train(labelled, 10, factor)
        query.obs["target"] = UNKNOWN
        mapped = scvi.model.SCANVI.load_query_data(query, labelled)
        _train(mapped, 100, factor, plan_kwargs={"weight_decay": 0.0})
        p = mapped.predict(soft=True)
    return _unsure(p.reset_index(drop=True))


def call_scvi_knn(fold: Fold, seed: int, factor: float) -> Answer:
    """Map the query by scArches surgery on a default scVI, then 15 nearest neighbours."""
    import scvi
    from sklearn.neighbors import KNeighborsClassifier

    with silence():
        model, query = _train_scvi(fold, seed, factor)
        mapped = scvi.model.SCVI.load_query_data(query, model)
        _train(mapped, 200, factor, plan_kwargs={"weight_decay": 0.0})
        z, z_query = model.get_latent_representation(), mapped.get_latent_representation()
    neighbours = KNeighborsClassifier(15).fit(z, fold.reference.obs["target"])
    p = pd.DataFrame(neighbours.predict_proba(z_query), columns=neighbours.classes_)
    return Answer(p, neighbours.kneighbors(z_query)[0].mean(1))


def call_invae(fold: Fold, seed: int, factor: float) -> Answer:
    """Fit latents to each new cell and classify them, as the published inVAE's README does."""
    from published_invae import EPOCHS, call_cells

    chosen = _choose(fold)
    reference, query = (part[:, chosen].copy() for part in (fold.reference, fold.query))
    for part in (reference, query):
        part.X = part.X.toarray()
        part.obs = part.obs.astype(str)
    study, epochs = fold.study, scale_epochs(EPOCHS, factor)
    p = call_cells(reference, query, study.biological, study.technical, seed, epochs)
    return _unsure(p)


METHODS: dict[str, Callable[[Fold, int, float], Answer]] = {
    "ours": call_ours,
    "ours_aligned": call_ours_aligned,
    "logistic": call_logistic,
    "celltypist": call_celltypist,
    "scanvi": call_scanvi,
    "scvi_knn": call_scvi_knn,
    "invae": call_invae,
}


def _choose(fold: Fold) -> list[str]:
    reference = fold.reference.copy()
    reference.obs["technical"] = joint_label(reference.obs, fold.study.technical)
    return list(select_genes(reference, "technical").var_names)


def _log_normalise(adata: anndata.AnnData, genes: list[str]) -> np.ndarray:
    import scanpy as sc

    adata = adata[:, genes].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata.X.toarray()


def _train_scvi(fold: Fold, seed: int, factor: float) -> tuple:
    import scvi

    scvi.settings.seed = seed
    genes = _choose(fold)
    reference, query = fold.reference[:, genes].copy(), fold.query[:, genes].copy()
    for adata in (reference, query):
        adata.obs["technical"] = joint_label(adata.obs, fold.study.technical)
    scvi.model.SCVI.setup_anndata(reference, batch_key="technical")
    # what the scArches tutorial of scvi-tools sets so that surgery works
    model = scvi.model.SCVI(
        reference,
        use_layer_norm="both",
        use_batch_norm="none",
        encode_covariates=True,
        dropout_rate=0.2,
        n_layers=2,
    )
    _train(model, min(round(20_000 / reference.n_obs * 400), 400), factor)
    return model, query


def _train(model, epochs: int, factor: float, **settings) -> None:
    model.train(
        max_epochs=scale_epochs(epochs, factor),
        accelerator="cpu",
        enable_progress_bar=False,
        **settings,
    )


def _unsure(p: pd.DataFrame) -> Answer:
    """An answer whose novelty is the lack of confidence, the baseline of Hendrycks 2017."""
    return Answer(p, 1 - p.to_numpy().max(axis=1))


def score(fold: Fold, answer: Answer, task: str) -> dict[str, float]:
    """Score an answer on the cells whose truth is known."""
    from sklearn.metrics import roc_auc_score

    known = fold.truth != UNKNOWN
    if task == "novelty":
        kind = pd.Series(fold.truth[known]).str.split(" | ", regex=False).str[0]
        strange = (kind == fold.name).to_numpy()
        if not strange.any() or strange.all():
            return {"cells": int(strange.sum()), "auroc": float("nan")}
        auroc = float(roc_auc_score(strange, answer.novelty[known]))
        scores = {"cells": int(strange.sum()), "auroc": auroc}
        if answer.flag is not None:
            flag = answer.flag[known]
            scores |= {
                "flagged_new": float(flag[strange].mean()),
                "flagged_known": float(flag[~strange].mean()),
                "false_discoveries": float((flag & ~strange).sum() / max(1, flag.sum())),
            }
        return scores
    p = answer.probabilities.to_numpy()[known]
    truth, called = fold.truth[known], answer.probabilities.columns.to_numpy()[p.argmax(1)]
    right, confidence = called == truth, p.max(1)
    place = np.minimum((confidence * 15).astype(int), 14)
    gaps = [(confidence[place == b] - right[place == b]).sum() for b in range(15)]
    scores = {"cells": len(truth), "accuracy": float(right.mean()), "macro_f1": _f1(truth, called)}
    for c, column in enumerate(fold.study.biological):
        parts = [pd.Series(v).str.split(" | ", regex=False).str[c] for v in (truth, called)]
        scores[f"macro_f1_{column}"] = _f1(*(part.to_numpy() for part in parts))
    scores["calibration_error"] = float(np.abs(gaps).sum() / len(truth))
    if answer.sets is not None:
        columns = {name: j for j, name in enumerate(answer.sets.columns)}
        inside = answer.sets.to_numpy()[known]
        held = [inside[i, columns[t]] if t in columns else False for i, t in enumerate(truth)]
        scores |= {"coverage": float(np.mean(held)), "set_size": float(inside.sum(1).mean())}
    return scores


def _f1(truth: np.ndarray, called: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, called, average="macro", labels=np.unique(truth)))


def bootstrap(cells: pd.DataFrame, seed: int = 0) -> tuple[float, float]:
    """Draw donors with replacement: 95 % interval of the macro-F1 over the cells of all folds."""
    generator = np.random.default_rng(seed)
    units = [unit for _, unit in cells.groupby("unit")]
    found = []
    for _ in range(BOOTSTRAPS):
        drawn = pd.concat([units[i] for i in generator.integers(len(units), size=len(units))])
        found.append(_f1(drawn["truth"].to_numpy(), drawn["called"].to_numpy()))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Run every method on every fold, print the means and write every record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="kang", choices=list(STUDIES))
    parser.add_argument("--task", default="transfer", choices=list(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="never for a result")
    parser.add_argument("--json", type=Path, metavar="FILE")
    plan = parser.parse_args()
    if unknown := sorted(set(plan.methods.split(",")) - set(METHODS)):
        parser.error(f"unknown method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    limit_threads(plan.threads)
    study = load_study(plan.data)
    records: list[dict] = []
    called: dict[str, list[pd.DataFrame]] = {}
    for fold in TASKS[plan.task](study):
        for method in plan.methods.split(","):
            start = time.perf_counter()
            answer = METHODS[method](fold, plan.seed, plan.epochs_scale)
            record = {"fold": fold.name, "method": method, **score(fold, answer, plan.task)}
            record["seconds"] = time.perf_counter() - start
            say(", ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in record.values()))
            records.append(record)
            names = answer.probabilities.columns.to_numpy()
            best = names[answer.probabilities.to_numpy().argmax(1)]
            cells = {"truth": fold.truth, "called": best}
            cells["unit"] = joint_label(fold.query.obs, [study.unit])
            called.setdefault(method, []).append(pd.DataFrame(cells))
            if plan.json:
                write_json(plan.json, {"environment": describe_environment(), "records": records})
    table = pd.DataFrame(records).drop(columns=["fold", "cells"]).groupby("method", sort=False)
    means = table.mean()
    if plan.task == "transfer":
        for method, frames in called.items():
            cells = pd.concat(frames)
            interval = bootstrap(cells[cells["truth"] != UNKNOWN], plan.seed)
            means.loc[method, ["f1_low", "f1_high"]] = interval
    print(means.to_string(float_format=lambda value: f"{value:.3f}"))
    if plan.json:
        content = {"environment": describe_environment(), "records": records}
        write_json(plan.json, content | {"means": means.reset_index().to_dict(orient="records")})


if __name__ == "__main__":
    main()
