"""A network on disk: numbers in safetensors, everything else in plain JSON and CSV.

    network.safetensors   dynamics and gates of all members, edges, starts, usual levels
    network.json          format, genes, regulators, settings, lineages, times, package versions
    edges.csv             one row an edge, as list_edges tells them
    history.csv           loss by member and step
    strengths.csv         what interventions left of their targets' production
    off_targets.csv       which other genes they moved

The card holds a digest of itself and of every other file that is read; edges.csv is for readers
alone. How they get there whole, and what a load checks, stands in folders.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from invatlas.errors import SettingsError, StorageError
from invatlas.folders import (
    Kind,
    check_finite,
    check_target,
    digest_file,
    package_versions,
    read_card,
    read_names,
    read_tensors,
    reading,
    staged,
    write_card,
)
from invatlas.grn.dynamics import Dynamics
from invatlas.grn.experiments import GIVEN, NORMALISED
from invatlas.grn.network import Member, Network, list_edges
from invatlas.grn.production import FAMILIES
from invatlas.grn.readout import Edges
from invatlas.grn.settings import NetworkSettings

NUMBERS, CARD, EDGES = "network.safetensors", "network.json", "edges.csv"
TABLES = ("history", "strengths", "off_targets")
EDGE_ARRAYS = tuple(field.name for field in fields(Edges))
NETWORK = Kind(
    "a network", CARD, 2, frozenset({NUMBERS, CARD, EDGES, *(f"{name}.csv" for name in TABLES)})
)


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
    SettingsError
        If it is no network.
    StorageError
        If the folder holds a network that may not be overwritten, or anything that is no part of
        one, or cannot be written.
    """
    if not isinstance(network, Network):
        raise SettingsError(f"{network!r} is no network, which is what ia.grn.fit returns.")
    target = Path(path).resolve()
    check_target(target, NETWORK)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise StorageError(
            f"{path} holds a network; name another folder, or pass overwrite=True to replace it."
        )
    with staged(path, NETWORK) as folder:
        write_network(network, folder)


def write_network(network: Network, folder: Path) -> None:
    """Write the files of a network into a folder that :func:`staged` gives."""
    save_file(_gather(network), folder / NUMBERS)
    list_edges(network).to_csv(folder / EDGES, index=False)
    said = {
        "network_sha256": digest_file(folder / NUMBERS),
        "settings": asdict(network.settings),
        "members": [_describe_member(member) for member in network.members],
        "lineages": list(network.lineages),
        "times": [list(ends) for ends in network.times],
        "scale": network.scale,
        "warnings": list(network.warnings),
        "tables": {
            name: _write_table(getattr(network, name), folder / f"{name}.csv") for name in TABLES
        },
        "versions": package_versions(),
        "regulators": list(network.genes[network.regulators]),
        "genes": list(network.genes),
    }
    write_card(said, folder, NETWORK)


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
        times = tuple((float(first), float(last)) for first, last in card["times"])
        warnings = tuple(map(str, card["warnings"]))
        scale = card["scale"]
        tables = {
            name: _read_table(folder / f"{name}.csv", card["tables"][name]) for name in TABLES
        }
        if scale not in (GIVEN, NORMALISED):
            raise ValueError(f"the scale is neither {GIVEN} nor {NORMALISED}")
        if len(genes) < 2 or genes.has_duplicates:
            raise ValueError("genes are too few, or one is there twice")
        if not regulators.any() or regulators.sum() != len(card["regulators"]):
            raise ValueError("regulators are no genes")
        if len(set(lineages)) != len(card["lineages"]) or not lineages:
            raise ValueError("there is no lineage, or one is there twice")
        if len(times) not in (0, len(lineages)):
            raise ValueError("some lineages have times and some have none")
        if not all(-math.inf < first < last < math.inf for first, last in times):
            raise ValueError("the times do not rise")
        _check_members(card["members"], folder / NUMBERS)
        shape = (len(genes), len(lineages), scale == NORMALISED)
        members = [_lay_out(told, *shape) for told in card["members"]]
        promised = _promise(members, len(genes), len(lineages))
    tensors = read_tensors(folder / NUMBERS, promised, card.get("network_sha256"), NETWORK)
    _check_values(tensors, folder / NUMBERS)
    return Network(
        genes,
        regulators,
        tuple(_restore_member(dynamics, tensors, k) for k, dynamics in enumerate(members)),
        Edges(*(tensors[name].numpy() for name in EDGE_ARRAYS)),
        lineages,
        tensors["starts"].numpy(),
        tensors["usual"].numpy(),
        times,
        settings,
        tables["strengths"],
        tables["off_targets"],
        tables["history"],
        scale,
        warnings,
    )


def _gather(network: Network) -> dict[str, Tensor]:
    """All numbers of a network by name."""
    gathered: dict[str, Tensor] = {}
    for k, member in enumerate(network.members):
        state = {"gates": member.gates, **member.dynamics.state_dict()}
        gathered |= {
            f"{k}.{name}": tensor.clone() for name, tensor in state.items()
        }  # scales are shared
    arrays = {**vars(network.edges), "starts": network.starts, "usual": network.usual}
    return gathered | {name: torch.tensor(array) for name, array in arrays.items()}


def _promise(members: Sequence[Dynamics], n: int, lineages: int) -> dict[str, Tensor]:
    """Shapes and types of :func:`_gather`, without a value."""
    promised: dict[str, Tensor] = {}
    with torch.device("meta"):
        for k, dynamics in enumerate(members):
            state = {"gates": torch.empty(n, n), **dynamics.state_dict()}
            promised |= {f"{k}.{name}": tensor for name, tensor in state.items()}
        promised |= {name: torch.empty(n, n) for name in EDGE_ARRAYS}
        promised["starts"] = torch.empty(lineages, n, dtype=torch.float64)
        promised["usual"] = torch.empty(n, dtype=torch.float64)
    return promised


def _describe_member(member: Member) -> dict[str, object]:
    family = type(member.dynamics.production)
    name = next(name for name, known in FAMILIES.items() if known is family)
    return {"production": name, "proteins": member.dynamics.proteins}


def _check_members(told: Sequence[object], file: Path) -> None:
    """Refuse other members than there are, before any is laid out."""
    found = sum(name.endswith(".gates") for name in read_names(file, NETWORK))
    if not 0 < len(told) == found:
        raise StorageError(
            f"{file} does not belong to its {CARD}: it holds {found} members, not {len(told):,}."
        )


def _lay_out(told: Mapping[str, Any], n: int, lineages: int, logarithmic: bool) -> Dynamics:
    """Dynamics of a member as the card tells them, without a value."""
    if not isinstance(told["proteins"], bool):
        raise TypeError("proteins are neither there nor absent")
    with torch.device("meta"):
        empty = torch.empty(n)
        production = FAMILIES[told["production"]](empty, empty, empty, torch.Generator())
        dynamics = Dynamics(production, lineages, 1.0, told["proteins"], logarithmic)
        return dynamics.requires_grad_(False)


def _restore_member(dynamics: Dynamics, tensors: Mapping[str, Tensor], k: int) -> Member:
    state = {name: tensors[f"{k}.{name}"] for name in dynamics.state_dict()}
    dynamics.load_state_dict(state, assign=True)
    return Member(dynamics, tensors[f"{k}.gates"])


def _check_values(tensors: Mapping[str, Tensor], file: Path) -> None:
    check_finite(tensors, file)
    for name, tensor in tensors.items():
        share = name.endswith(("gates", "probability", "stability"))
        high = 1.0 if share else math.inf
        low = 0.0 if share else 1e-30 if name.endswith("production.unit") else -math.inf
        if not ((tensor >= low) & (tensor <= high)).all():
            raise StorageError(f"{file} is damaged: tensor {name!r} holds impossible values.")


def _write_table(table: pd.DataFrame, file: Path) -> dict[str, object]:
    """Write a table, and say the type of each column and the digest of the file."""
    table.to_csv(file, index=False)
    numbers = set(table.select_dtypes("number"))
    kinds = {name: str(table[name].dtype) if name in numbers else "str" for name in table}
    return {"columns": kinds, "sha256": digest_file(file)}


def _read_table(file: Path, told: Mapping[str, Any]) -> pd.DataFrame:
    """Read a table as the card tells it."""
    columns = dict(told["columns"])
    try:
        if digest_file(file) != told["sha256"]:
            raise StorageError(f"{file} is damaged: it was changed after the fit.")
        # a gene may be called NA
        table = pd.read_csv(
            file, dtype=columns, keep_default_na=False, float_precision="round_trip"
        )
    except FileNotFoundError:
        raise StorageError(
            f"{file.parent} holds no whole network: {file.name} is missing."
        ) from None
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{file} is damaged: it is no table ({error}).") from error
    numbers = table.select_dtypes("number").to_numpy()
    if list(table) != list(columns) or not np.isfinite(numbers).all():
        raise StorageError(f"{file} is damaged: it does not hold {', '.join(columns)}.")
    return table
