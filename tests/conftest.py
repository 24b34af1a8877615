"""What every test shares: checked shapes, one thread, a small fitted atlas, the real data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import install_import_hook

# before anything imports the model: shapes are types, and tests check them
CHECKED = (
    "model",
    "data.minibatch",
    *(f"grn.{file}" for file in ("dynamics", "evidence", "production", "structure")),
)
install_import_hook([f"invatlas.{module}" for module in CHECKED], "beartype.beartype")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from anndata import AnnData  # noqa: E402

import invatlas as ia  # noqa: E402
import shell  # noqa: E402

torch.set_num_threads(1)

BIOLOGICAL = ["cell_type", "disease"]
TECHNICAL = ["donor", "batch"]
QUICK: dict[str, Any] = {
    "epochs": 3,
    "hidden": 16,
    "minibatch_size": 128,
    "invariant_latents": 5,
    "spurious_latents": 3,
    "genes": 0,
    "spared_donors": 0.0,
    "seed": 1,
}


def quick_settings(**changes: Any) -> ia.Settings:
    """Settings of a fit that takes a second; everything else has its default."""
    return ia.Settings(**{**QUICK, **changes})


def quick_fit(adata: AnnData, **changes: Any) -> ia.Atlas:
    """Fit for a second; names of ``fit`` go to it, all others are settings."""
    asked = {"biological": BIOLOGICAL, "technical": TECHNICAL}
    asked |= {
        name: changes.pop(name)
        for name in ("biological", "technical", "hierarchy", "layer", "gene_column", "genes")
        if name in changes and not (name == "genes" and isinstance(changes[name], int))
    }
    return ia.fit(adata, **asked, settings=quick_settings(**changes))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Libraries may raise the number of threads, and with it change the last bits of sums."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def settings() -> Callable[..., ia.Settings]:
    """Make the settings of a quick fit."""
    return quick_settings


@pytest.fixture(scope="session")
def fit() -> Callable[..., ia.Atlas]:
    """Fit for a second."""
    return quick_fit


@pytest.fixture(scope="session")
def frozen_study() -> AnnData:
    """A study that no test may change: counts are float32 CSR."""
    return ia.simulate(
        cells=600, genes=120, donors=6, batches=2, cell_types=3, diseases=2, truth=False, seed=5
    )


@pytest.fixture
def study(frozen_study: AnnData) -> AnnData:
    """A copy of the study, to be broken at will."""
    return frozen_study.copy()


@pytest.fixture(scope="session")
def atlas(frozen_study: AnnData) -> ia.Atlas:
    """An atlas of the study."""
    return quick_fit(frozen_study)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, atlas: ia.Atlas) -> Path:
    """The atlas in a folder that no test may change."""
    folder = tmp_path_factory.mktemp("saved") / "atlas"
    ia.save(atlas, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be broken at will."""
    return Path(shutil.copytree(saved, tmp_path / "atlas"))


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory, frozen_study: AnnData) -> Path:
    """A file of 300 cells of the study."""
    file = tmp_path_factory.mktemp("cells") / "study.h5ad"
    frozen_study[:300].copy().write_h5ad(file)
    return file


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, cells: Path) -> Path:
    """Folder of an atlas of the file, fitted on the command line."""
    folder = tmp_path_factory.mktemp("fitted") / "atlas"
    said = shell.call("fit", cells, *shell.COLUMNS, "--output", folder, *shell.QUICK)
    assert "Fitted 300 cells x 120 genes" in said and "2 epochs" in said
    return folder


@pytest.fixture(scope="session")
def frozen_expression() -> AnnData:
    """Five genes in a row that no test may change: two series, a wild type, interventions."""
    rng, n = np.random.default_rng(3), 5
    genes, level = list("ABCDE"), np.array([1.0, 0.8, 0.6, 0.9, 0.7])
    in_time = [level * (1 - np.exp(-t / 2) * factor) for factor in (0.9, 0.3) for t in range(8)]
    out = np.minimum.accumulate(1 - np.eye(n), axis=1) * level  # what follows a gene falls with it
    down = (out + level) / 2
    out[2, 0] = 0.2  # the knockout of C moves A, which it was not meant for
    y = np.vstack([*in_time, level, out, down])
    y = np.maximum(y + 0.01 * rng.normal(size=y.shape), 0)
    obs = pd.DataFrame(
        {
            "time": [*np.arange(8.0), *np.arange(8.0), *[np.nan] * (1 + 2 * n)],
            "series": [*["one"] * 8, *["two"] * 8, *["rest"] * (1 + 2 * n)],
            "target": [*["none"] * 17, *genes, *genes],
            "experiment": [
                *["timeseries"] * 16,
                "wildtype",
                *["knockout"] * n,
                *["knockdown"] * n,
            ],
        },
        index=[f"row_{i}" for i in range(len(y))],
    )
    return AnnData(y, obs=obs, var=pd.DataFrame(index=genes))


@pytest.fixture(scope="session")
def network(frozen_expression: AnnData) -> ia.grn.Network:
    """A network of the cascade, fitted for a second."""
    return ia.grn.fit(
        frozen_expression,
        time="time",
        lineage="series",
        interventions="target",
        experiment="experiment",
        settings=ia.grn.NetworkSettings(steps=20, members=2, refine_steps=2, off_target_cost=0.5),
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("INVATLAS_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"needs the real data: INVATLAS_DATA names no folder (looked at {folder})")
    return folder


@pytest.fixture
def generator() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
