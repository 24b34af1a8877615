"""Methods of integration: each takes what a split shows and returns a latent of every cell.

Every peer runs as its own documentation tells a user to run it. No function here sees a hidden
label: ``split.adata`` has them removed. Heavy packages are imported inside the function that
needs them, so one absent package costs one method.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import anndata
import numpy as np
from datasets import UNKNOWN, Split, joint_label

GENES = 2000
COMPONENTS = 50


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep a peer's progress bars, prints and warnings off the screen."""
    quiet = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def select_genes(adata: anndata.AnnData, batch: str, genes: int = GENES) -> anndata.AnnData:
    """Keep the counts of the highly variable genes, chosen within batches where scanpy can.

    scanpy's batch-aware ``seurat_v3`` ends in a singular matrix where a batch has few cells;
    there the genes are chosen over all cells together.
    """
    import scanpy as sc

    settings = {
        "n_top_genes": min(genes, adata.n_vars),
        "flavor": "seurat_v3",
        "inplace": False,
    }
    with silence():
        try:
            table = sc.pp.highly_variable_genes(adata, batch_key=batch, **settings)
        except ValueError:
            table = sc.pp.highly_variable_genes(adata, **settings)
    return adata[:, table["highly_variable"].to_numpy()].copy()


def scale_epochs(epochs: int, factor: float) -> int:
    """Round the epochs of a quick trial; the documented number at a factor of 1."""
    return max(1, round(epochs * factor))


def _prepare(split: Split) -> tuple[anndata.AnnData, str]:
    """Select highly variable counts with one technical and one biological column, and its name."""
    technical = split.study.technical
    adata = split.adata.copy()
    adata.obs["technical"] = joint_label(adata.obs, technical)
    adata.obs["biological"] = joint_label(adata.obs, split.study.biological)
    return select_genes(adata, "technical"), "technical"


def embed_pca(split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1) -> np.ndarray:
    """Run scanpy: normalise, log1p, 2,000 highly variable genes, 50 principal components."""
    import scanpy as sc

    adata, _ = _prepare(split)
    with silence():
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    return _find_components(adata, seed)


def _find_components(adata: anndata.AnnData, seed: int) -> np.ndarray:
    import scanpy as sc

    components = min(COMPONENTS, *(n - 1 for n in adata.shape))
    with silence():
        sc.pp.pca(adata, n_comps=components, random_state=seed)
    return np.asarray(adata.obsm["X_pca"])


def embed_combat(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Run ComBat (``scanpy.pp.combat``, its defaults) on the log counts, then the components."""
    import scanpy as sc

    adata, batch = _prepare(split)
    with silence():
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        adata.X = adata.X.toarray()
        adata.obs[batch] = adata.obs[batch].astype("category")
        sc.pp.combat(adata, key=batch)
    return _find_components(adata, seed)


def embed_harmony(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Run harmonypy with its defaults on the same principal components.

    Called directly: the wrapper in scanpy.external transposes ``Z_corr``, which harmonypy 2
    already returns as (cell, component).
    """
    import harmonypy

    components = embed_pca(split, seed)
    obs = split.adata.obs.assign(technical=joint_label(split.adata.obs, split.study.technical))
    with silence():
        result = harmonypy.run_harmony(
            components.astype(np.float64),
            obs,
            "technical",
            verbose=False,
            random_state=seed,
            ncores=threads,
        )
    corrected = np.asarray(result.Z_corr)
    return corrected if len(corrected) == len(components) else corrected.T


def _train_scvi(adata: anndata.AnnData, batch: str, seed: int, factor: float, tutorial: bool):
    """Train scVI with its defaults, or as the integration tutorial of scvi-tools sets it."""
    import scvi

    scvi.settings.seed = seed
    scvi.settings.verbosity = logging.ERROR
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch)
    architecture = {"n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"} if tutorial else {}
    model = scvi.model.SCVI(adata, **architecture)
    default = min(round(20_000 / adata.n_obs * 400), 400)
    model.train(
        max_epochs=scale_epochs(default, factor),
        accelerator="cpu",
        enable_progress_bar=False,
    )
    return model


def _embed_scvi(split: Split, seed: int, factor: float, tutorial: bool) -> np.ndarray:
    adata, batch = _prepare(split)
    with silence():
        model = _train_scvi(adata, batch, seed, factor, tutorial)
        return np.asarray(model.get_latent_representation())


def _embed_scanvi(split: Split, seed: int, factor: float, tutorial: bool) -> np.ndarray:
    import scvi

    adata, batch = _prepare(split)
    with silence():
        model = scvi.model.SCANVI.from_scvi_model(
            _train_scvi(adata, batch, seed, factor, tutorial),
            adata=adata,
            labels_key="biological",
            unlabeled_category=UNKNOWN,
        )
        model.train(  # 10 epochs is the default of scvi-tools after a trained scVI
            max_epochs=scale_epochs(20 if tutorial else 10, factor),
            n_samples_per_label=100 if tutorial else None,
            accelerator="cpu",
            enable_progress_bar=False,
        )
        return np.asarray(model.get_latent_representation())


def embed_scvi(split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1) -> np.ndarray:
    """Run scVI with the defaults of scvi-tools: 10 latents, one layer, at most 400 epochs."""
    return _embed_scvi(split, seed, epochs_scale, tutorial=False)


def embed_scvi_tutorial(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Run scVI as the integration tutorial of scvi-tools sets it: 30 latents, two layers, NB."""
    return _embed_scvi(split, seed, epochs_scale, tutorial=True)


def embed_scanvi(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Run scANVI from the default scVI; the joint labels, "Unknown" where hidden."""
    return _embed_scanvi(split, seed, epochs_scale, tutorial=False)


def embed_scanvi_tutorial(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Run scANVI from the tutorial's scVI, 20 epochs, 100 cells a label and epoch."""
    return _embed_scanvi(split, seed, epochs_scale, tutorial=True)


def embed_sysvi(split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1) -> np.ndarray:
    """Run sysVI as its tutorial does: log counts, VampPrior, 200 epochs, cycle weight 5."""
    import scanpy as sc
    import scvi

    adata, batch = _prepare(split)
    with silence():
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        adata.X = adata.X.toarray()
        scvi.settings.seed = seed
        scvi.settings.verbosity = logging.ERROR
        scvi.external.SysVI.setup_anndata(adata, batch_key=batch)
        model = scvi.external.SysVI(adata)
        model.train(
            max_epochs=scale_epochs(200, epochs_scale),
            check_val_every_n_epoch=1,
            plan_kwargs={"z_distance_cycle_weight": 5},
            accelerator="cpu",
            enable_progress_bar=False,
        )
        return np.asarray(model.get_latent_representation(adata))


def embed_ours(split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1) -> np.ndarray:
    """Run ``invatlas`` through its public API, every setting at its default."""
    import invatlas as ia

    study = split.study
    atlas = ia.fit(
        split.adata,
        biological=study.biological,
        technical=study.technical,
        settings=ia.Settings(seed=seed),
    )
    return np.asarray(ia.embed(atlas, split.adata))


def embed_truth(split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1) -> np.ndarray:
    """Take the true invariant latents of a simulated study: what nobody can surpass."""
    if split.study.truth is None:
        raise SystemExit(f"{split.study.name} is no simulation: nobody knows its true latents")
    return split.study.truth


THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
PACKAGES = ("invatlas", "torch", "scanpy", "scvi-tools", "harmonypy", "inVAE", "scib-metrics")


def limit_threads(threads: int) -> None:
    """Bound the threads of every library a method may use; call it before the heavy imports."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    os.environ["XLA_FLAGS"] = (
        f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'} "
        f"intra_op_parallelism_threads={threads}"
    )
    import numba
    import threadpoolctl
    import torch

    threadpoolctl.threadpool_limits(threads)
    numba.config.reload_config()  # it may have been imported before
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)


def describe_environment() -> dict:
    """Name the versions and the machine a result belongs to."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    return {"python": platform.python_version(), **machine, "versions": versions}


def say(text: str, end: str = "\n") -> None:
    """Tell what is being done, at once."""
    print(text, end=end, flush=True)


def write_json(path: Path, content: dict) -> None:
    """Write JSON through a partial file; NaN becomes null, which JSON has."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_blank_nan(content), indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _blank_nan(content):
    if isinstance(content, dict):
        return {key: _blank_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_blank_nan(value) for value in content]
    return None if isinstance(content, float) and np.isnan(content) else content
