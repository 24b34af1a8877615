"""Which gene drives which: equations of expression in time, read from data.

>>> network = ia.grn.fit(adata, time="pseudotime", lineage="lineage", donor="donor")
>>> ia.grn.edges(network)
>>> ia.grn.intervene(network, "GATA1")
>>> ia.grn.save(network, "grn/")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invatlas.grn.network import Network, fit
    from invatlas.grn.network import list_edges as edges
    from invatlas.grn.predict import intervene
    from invatlas.grn.settings import NetworkSettings
    from invatlas.grn.storage import load, save

_PLACES = {
    "Network": ("network", "Network"),
    "NetworkSettings": ("settings", "NetworkSettings"),
    "edges": ("network", "list_edges"),
    "fit": ("network", "fit"),
    "intervene": ("predict", "intervene"),
    "load": ("storage", "load"),
    "save": ("storage", "save"),
}

__all__ = ["Network", "NetworkSettings", "edges", "fit", "intervene", "load", "save"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, member = _PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), member)


def __dir__() -> list[str]:
    return sorted(__all__)
