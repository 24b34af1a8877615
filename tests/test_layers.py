"""The import-layer check: silent on the source, loud on every kind of breach."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def layers() -> ModuleType:
    spec = spec_from_file_location("layers", ROOT / "tests" / "layers.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in good order."""
    root = tmp_path / "invatlas"
    for folder in ("data", "model", "training"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").write_text("")
    (root / "__init__.py").write_text("from invatlas.atlas import fit\n")
    (root / "errors.py").write_text("import numpy\n")
    (root / "data" / "counts.py").write_text("import numpy\nfrom invatlas.errors import X\n")
    (root / "model" / "invae.py").write_text(
        "import torch\nfrom invatlas.data.counts import CountSource\n"
    )
    (root / "training" / "loop.py").write_text("from invatlas.model.invae import Model\n")
    (root / "atlas.py").write_text("import pandas\nfrom invatlas.training.loop import train\n")
    return root


def test_the_source_has_no_breach(layers: ModuleType) -> None:
    assert layers.find_breaches(ROOT / "src" / "invatlas") == []


def test_every_module_of_the_source_stands_on_a_floor(layers: ModuleType) -> None:
    source = ROOT / "src" / "invatlas"
    modules = {p.relative_to(source).with_suffix("").parts[0] for p in source.rglob("*.py")}
    assert modules - {"__init__"} <= set(layers.HEIGHT)


def test_a_package_in_order_has_no_breach(layers: ModuleType, package: Path) -> None:
    assert layers.find_breaches(package) == []


BREACHES = {
    "up": ("data/counts.py", "from invatlas.model.invae import Model", "data imports up"),
    "up, plain": ("data/counts.py", "import invatlas.atlas", "data imports up from atlas"),
    "up, in a function": (
        "data/counts.py",
        "def f():\n    from invatlas.training.loop import train",
        "data imports up from training",
    ),
    "up, for types": (
        "model/invae.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from invatlas.atlas import A",
        "model imports up from atlas",
    ),
    "root": ("atlas.py", "import invatlas", "imports the package root"),
    "root, renamed": ("atlas.py", "import invatlas as ia", "imports the package root"),
    "root, from": ("training/loop.py", "from invatlas import fit", "imports the package root"),
    "numpy in the model": ("model/invae.py", "import numpy as np", "not numpy"),
    "anndata in the model": ("model/invae.py", "from anndata import AnnData", "not anndata"),
    "pandas in a function": ("model/invae.py", "def f():\n    import pandas.api", "not pandas"),
    "no floor": ("utils.py", "from invatlas.errors import X", "stands on no floor"),
    "from no floor": ("atlas.py", "from invatlas.utils import f", "stands on no floor"),
    "relative, up": ("data/counts.py", "from ..model.invae import Model", "counts.py"),
    "relative, root": ("atlas.py", "from . import fit", "atlas.py"),
}


@pytest.mark.parametrize(("file", "line", "message"), BREACHES.values(), ids=BREACHES)
def test_a_planted_breach_is_found_where_it_is(
    layers: ModuleType, package: Path, file: str, line: str, message: str
) -> None:
    target = package / file
    before = target.read_text() if target.exists() else ""
    target.write_text(f"{before}{line}\n")
    found = layers.find_breaches(package)
    assert len(found) == 1
    assert message in found[0] and f"invatlas/{file}:" in found[0]


def test_as_a_program_it_passes_the_source() -> None:
    run = subprocess.run([sys.executable, ROOT / "tests" / "layers.py"], capture_output=True)
    assert (run.returncode, run.stderr) == (0, b"")
