"""A network on disk: numbers in safetensors, everything else in plain JSON and CSV.

    network.safetensors   dynamics and gates of all members, edges, starts, usual levels
    network.json          format, genes, regulators, settings, lineages, times, package versions
    edges.csv             one row an edge, as list_edges tells them
    history.csv           loss by member and step
    strengths.csv         what interventions left of their targets' production
    off_targets.csv       which other genes they moved

How they get there whole, and what a load checks, stands in folders.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from invatlas.errors import StorageError
from invatlas.folders import (
    Kind,
    check_finite,
    check_target,
    digest_file,
    package_versions,
    read_card,
    read_tensors,
    reading,
    staged,
)
from invatlas.grn.dynamics import Dynamics
from invatlas.grn.network import Member, Network, list_edges
from invatlas.grn.production import FAMILIES
from invatlas.grn.readout import Edges
from invatlas.grn.settings import NetworkSettings

NUMBERS, CARD, EDGES = "network.safetensors", "network.json", "edges.csv"
TABLES: dict[str, dict[str, str]] = {
    "history": {"member": "int64", "step": "int64", "loss": "float64"},
    "strengths": {"experiment": "str", "target": "str", "nominal": "float32", "left": "float32"},
    "off_targets": {
        "experiment": "str",
        "target": "str",
        "off_target": "str",
        "shift": "float32",
        "change": "float32",
        "gain": "float32",
    },
}
NETWORK = Kind(
    "a network", CARD, 1, frozenset({NUMBERS, CARD, EDGES, *(f"{name}.csv" for name in TABLES)})
)
SHARES = ("gates", "edges.probability", "edges.stability")


def save(network: Network, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a network into a folder, whole or not at all.

    Parameters
    ----------
    network
        A fitted network.
    path
        Folder to write.
    overwrite
        Whether to replace a network that is there.

    Raises
    ------
    StorageError
        If the folder holds a network that may not be overwritten, or anything that is no part of
        one, or cannot be written.
    """
    target = Path(path).resolve()
    check_target(target, NETWORK)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise StorageError(
            f"{path} holds a network; name another folder, or pass overwrite=True to replace it."
        )
    with staged(path, NETWORK) as folder:
        write_network(network, folder)


def write_network(network: Network, folder: Path) -> None:
    """Write the files of a network into a folder that exists."""
    save_file(_gather(network), folder / NUMBERS)
    dynamics = network.members[0].dynamics
    card = {
        "format": NETWORK.format,
        "format_version": NETWORK.version,
        "network_sha256": digest_file(folder / NUMBERS),
        "settings": asdict(network.settings),
        "production": next(k for k, v in FAMILIES.items() if type(dynamics.production) is v),
        "proteins": dynamics.proteins,
        "members": len(network.members),
        "lineages": list(network.lineages),
        "times": list(network.times),
        "scale": network.scale,
        "warnings": list(network.warnings),
        "rows": {name: len(getattr(network, name)) for name in TABLES},
        "versions": package_versions(),
        "regulators": list(network.genes[network.regulators]),
        "genes": list(network.genes),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1, allow_nan=False), encoding="utf-8")
    list_edges(network).to_csv(folder / EDGES, index=False)
    for name in TABLES:
        getattr(network, name).to_csv(folder / f"{name}.csv", index=False)


def load(path: str | Path) -> Network:
    """Read a network.

    Raises
    ------
    StorageError
        If there is none, it is foreign, truncated, of a newer format, or its parts disagree.
    """
    folder = Path(path)
    card = read_card(folder, NETWORK)
    with reading(folder / CARD):
        settings = NetworkSettings.from_dict(card["settings"])
        genes = pd.Index([str(gene) for gene in card["genes"]])
        regulators = genes.isin(card["regulators"])
        lineages = tuple(map(str, card["lineages"]))
        first, last = map(float, card["times"])
        warnings = tuple(map(str, card["warnings"]))
        scale = str(card["scale"])
        rows = {name: int(card["rows"][name]) for name in TABLES}
        if len(genes) < 2 or genes.has_duplicates:
            raise ValueError("genes are too few, or one is there twice")
        if not regulators.any() or regulators.sum() != len(card["regulators"]):
            raise ValueError("regulators are no genes")
        if len(set(lineages)) != len(card["lineages"]) or not lineages:
            raise ValueError("there is no lineage, or one is there twice")
        if not (math.isfinite(first) and math.isfinite(last) and first < last):
            raise ValueError("the times do not rise")
        promised = _promise(card, len(genes), len(lineages))
    tensors = read_tensors(folder / NUMBERS, promised, card.get("network_sha256"), NETWORK)
    _check_values(tensors, folder / NUMBERS)
    tables = {name: _read_table(folder / f"{name}.csv", TABLES[name], rows[name]) for name in rows}
    return Network(
        genes,
        regulators,
        tuple(_restore_member(card, tensors, k) for k in range(len(tensors["gates"]))),
        Edges(*(tensors[f"edges.{name}"].numpy() for name in Edges.__dataclass_fields__)),
        lineages,
        tensors["starts"].numpy(),
        tensors["usual"].numpy(),
        (first, last),
        settings,
        tables["strengths"],
        tables["off_targets"],
        tables["history"],
        scale,
        warnings,
    )


def _gather(network: Network) -> dict[str, Tensor]:
    """All numbers of a network by name; those of members stacked, (member, ...)."""
    states = [member.dynamics.state_dict() for member in network.members]
    gathered = {f"dynamics.{name}": torch.stack([s[name] for s in states]) for name in states[0]}
    gathered["gates"] = torch.stack([member.gates for member in network.members])
    arrays = {f"edges.{name}": array for name, array in vars(network.edges).items()}
    arrays |= {"starts": network.starts, "usual": network.usual}
    return gathered | {name: torch.tensor(array) for name, array in arrays.items()}


def _promise(card: Mapping[str, Any], n: int, lineages: int) -> dict[str, Tensor]:
    """Shapes and types of :func:`_gather`, without a value."""
    members = int(card["members"])
    if members < 1:
        raise ValueError("there is no member")
    with torch.device("meta"):
        state = _lay_out(card, n, lineages).state_dict()
        promised = {f"dynamics.{k}": torch.empty(members, *v.shape) for k, v in state.items()}
        promised["gates"] = torch.empty(members, n, n)
        promised |= {f"edges.{name}": torch.empty(n, n) for name in Edges.__dataclass_fields__}
        promised["starts"] = torch.empty(lineages, n, dtype=torch.float64)
        promised["usual"] = torch.empty(n, dtype=torch.float64)
    return promised


def _lay_out(card: Mapping[str, Any], n: int, lineages: int) -> Dynamics:
    """Dynamics without a value, on the meta device."""
    if not isinstance(card["proteins"], bool):
        raise TypeError("proteins are neither there nor absent")
    with torch.device("meta"):
        empty = torch.empty(n)
        production = FAMILIES[card["production"]](empty, empty, empty, torch.Generator())
        return Dynamics(production, lineages, 1.0, card["proteins"]).requires_grad_(False)


def _restore_member(card: Mapping[str, Any], tensors: Mapping[str, Tensor], k: int) -> Member:
    dynamics = _lay_out(card, len(tensors["usual"]), len(tensors["starts"]))
    state = {name: tensors[f"dynamics.{name}"][k].clone() for name in dynamics.state_dict()}
    dynamics.load_state_dict(state, assign=True)
    return Member(dynamics, tensors["gates"][k].clone())


def _check_values(tensors: Mapping[str, Tensor], file: Path) -> None:
    check_finite(tensors, file)
    shares = all(((tensors[name] >= 0) & (tensors[name] <= 1)).all() for name in SHARES)
    if not (shares and (tensors["dynamics.production.unit"] > 0).all()):
        raise StorageError(f"{file} is damaged: it holds impossible values.")


def _read_table(file: Path, columns: Mapping[str, str], rows: int) -> pd.DataFrame:
    try:  # a gene may be called NA
        table = pd.read_csv(
            file, dtype=dict(columns), keep_default_na=False, float_precision="round_trip"
        )
    except FileNotFoundError:
        raise StorageError(
            f"{file.parent} holds no whole network: {file.name} is missing."
        ) from None
    except (OSError, ValueError, OverflowError) as error:
        raise StorageError(f"{file} is damaged: it is no table ({error}).") from error
    numbers = table.select_dtypes("number").to_numpy()
    if list(table) != list(columns) or len(table) != rows or not np.isfinite(numbers).all():
        raise StorageError(
            f"{file} is damaged: it does not hold {rows} rows of {', '.join(columns)}."
        )
    return table
