"""The published inVAE, as its README trains it, and what it makes of the labels it is told.

    h = MLP(log(1 + x), one-hot of every biological and technical label)     its encoder
    q(z | x, d, e) = Normal(g(h), v(h))

Its encoder reads the labels of the very cells it embeds. A label it was not trained with becomes
zeros (``OneHotEncoder(handle_unknown="ignore")``), an input it never met; the README does not
say what to do with a cell that has none. So it is trained once on all counts, hidden labels being
a category "Unknown" of their own, and embeds the cells three times:

``embed_told``        every label given at inference, as in the README: it is told the answers
``embed_permuted``    the same, labels dealt anew to the cells: what remains comes from the counts
``embed_unknown``     hidden cells told "Unknown", as every other method has it

Its calls do not pass the encoder: a new cell begins at the fitted latents, of a hundred drawn, that
explain its counts best, climbs their likelihood for a hundred steps, and is called by a small
network trained on fitted latents (``call_cells``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from datasets import UNKNOWN, Split, joint_label
from peers import scale_epochs, select_genes, silence

if TYPE_CHECKING:
    from inVAE import FinVAE

EPOCHS = 500
VALIDATION_SHARE = 0.1


def train_published(
    adata: anndata.AnnData,
    biological: list[str],
    technical: list[str],
    seed: int,
    epochs: int = EPOCHS,
    latents: tuple[int, int] = (9, 1),
) -> FinVAE:
    """Train the factorised model as its README does.

    Parameters
    ----------
    adata
        Counts as a dense array (cell, gene), every label given in obs.
    biological, technical
        obs columns.
    seed, epochs
        Seed of torch, and epochs: 500 in the README.
    latents
        Numbers of invariant and spurious latents; 9 and 1 are its defaults.
    """
    import torch
    from inVAE import FinVAE

    torch.manual_seed(seed)
    with silence():
        model = FinVAE(
            adata=adata,
            inv_covar_keys={"cont": [], "cat": biological},
            spur_covar_keys={"cont": [], "cat": technical},
            latent_dim_inv=latents[0],
            latent_dim_spur=latents[1],
        )
        model.train(n_epochs=epochs, lr_train=0.001, weight_decay=0.0001)
    return model


def embed_published(model: FinVAE, adata: anndata.AnnData) -> np.ndarray:
    """Embed cells with the labels their obs holds: invariant latents (cell, latent)."""
    with silence():
        return np.asarray(model.get_latent_representation(adata))


def call_cells(
    reference: anndata.AnnData,
    query: anndata.AnnData,
    biological: list[str],
    technical: list[str],
    seed: int,
    epochs: int = EPOCHS,
) -> pd.DataFrame:
    """Probability of each value of ``target`` for cells without labels, as its README calls them.

    A tenth of the reference is the validation set that its classifier asks for. Its ``predict``
    wants a label of every cell, of which it makes an accuracy alone: all are given the same one.
    The argument ``verbose`` of its learning-rate schedule, which torch no longer has, is dropped.

    Parameters
    ----------
    reference, query
        Counts of the same genes as dense arrays (cell, gene); ``target`` in the reference's obs.
    biological, technical
        obs columns; a technical value that the reference lacks becomes zeros.
    seed, epochs
        Of the model; the classifier has its defaults.
    """
    import torch

    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # its first latents are drawn from numpy's global generator
    validation = rng.random(reference.n_obs) < VALIDATION_SHARE
    query = query.copy()
    for column in [*biological, "target"]:
        query.obs[column] = str(reference.obs[column].iloc[0])
    model = train_published(reference[~validation].copy(), biological, technical, seed, epochs)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
    try:
        torch.optim.lr_scheduler.ReduceLROnPlateau = lambda optimiser, verbose, **given: schedule(
            optimiser, **given
        )
        with silence():
            known = reference[validation].copy()
            model.train_classifier(
                known,
                batch_key=technical[0],
                label_key="target",
                class_print_every_n_epochs=100,  # its own defaults are no whole numbers
                opt_val_print_every_n_epochs=20,
            )
            model.predict(query, dataset_type="test")
    finally:
        torch.optim.lr_scheduler.ReduceLROnPlateau = schedule
    latents = model.saved_latent["test"][:, : model.latent_dim_inv]
    with torch.no_grad():
        p = model.classifier(latents.float()).exp().cpu().numpy()
    return pd.DataFrame(p, columns=model.dict_encoders["label_target"].classes_)


@lru_cache(maxsize=1)
def _train(split: Split, seed: int, epochs: int) -> tuple[FinVAE, anndata.AnnData]:
    """Train on a split; three embeddings share the one network, so the first bears its seconds."""
    adata = split.adata.copy()
    adata.obs["technical"] = joint_label(adata.obs, split.study.technical)
    adata = select_genes(adata, "technical")
    adata.X = adata.X.toarray()
    adata.obs = _tell(split.adata.obs, split)
    study = split.study
    return train_published(adata, study.biological, study.technical, seed, epochs), adata


def _tell(obs: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Take the labels alone, as text, "Unknown" where one is missing."""
    columns = [*split.study.biological, *split.study.technical]
    return obs[columns].astype(object).fillna(UNKNOWN).astype(str)


def _embed(split: Split, obs: pd.DataFrame, seed: int, epochs_scale: float) -> np.ndarray:
    model, adata = _train(split, seed, scale_epochs(EPOCHS, epochs_scale))
    told = adata.copy()
    told.obs = obs
    return embed_published(model, told)


def embed_told(split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1) -> np.ndarray:
    """Give the encoder the true label of every cell, hidden ones too."""
    return _embed(split, _tell(split.study.adata.obs, split), seed, epochs_scale)


def embed_permuted(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Give the encoder the biological labels of other cells, drawn at random."""
    obs = _tell(split.study.adata.obs, split)
    columns = split.study.biological
    order = np.random.default_rng(seed).permutation(len(obs))
    obs[columns] = obs[columns].to_numpy()[order]
    return _embed(split, obs, seed, epochs_scale)


def embed_unknown(
    split: Split, seed: int, epochs_scale: float = 1.0, threads: int = 1
) -> np.ndarray:
    """Give the encoder what the split shows, and "Unknown" for the rest."""
    return _embed(split, _tell(split.adata.obs, split), seed, epochs_scale)
