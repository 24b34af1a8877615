"""What a network predicts: steady states and trajectories under interventions on its genes.

    do(g):  dy_g/dt = d_g (m_g f_g(p) - y_g)

m_g is 0 in a knockout, 1/2 in a knockdown, 2 in an over-expression, or what ``left`` says; several
genes at once. Where the network was fitted to counts, it is a share of the counts per 10,000, not
of their logarithm (dynamics.py). Predictions are means over the members of the ensemble, their
spread is its standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from invatlas.errors import CovariateError, GeneError, SettingsError
from invatlas.grn.measured import LEFT
from invatlas.grn.names import find_genes
from invatlas.grn.network import Member, Network

FloatArray = NDArray[np.float64]

POINTS = 41
METHODS = ("dopri5", "rk4")
MOST_LEFT = 100.0


def intervene(
    network: Network,
    genes: Sequence[str] | str,
    *,
    kind: str = "knockout",
    left: float | None = None,
    lineage: str | None = None,
    times: Sequence[float] | None = None,
    method: str = "dopri5",
) -> AnnData:
    """Predict what happens after an intervention on genes.

    Parameters
    ----------
    network
        A fitted network.
    genes
        One gene or several that are intervened on at once.
    kind
        ``knockout``, ``knockdown`` or ``overexpression``.
    left
        Share of production that is left, instead of the kind's: 0, 1/2, 2; of counts per 10,000
        where the network was fitted to counts.
    lineage
        Lineage to follow; the first one by default.
    times
        At which to predict, rising, none before the first that was measured, where lineages start
        and so does the intervention; 41 even points over what was measured by default.
    method
        Solver: ``dopri5`` with steps of its own, or ``rk4`` with one step between two times.

    Returns
    -------
    AnnData
        A row for each time without and with the intervention, and a steady state of either;
        obs ``time`` (missing at rest) and ``state`` (``untouched`` or ``intervened``); X expected
        expression, layer ``sd`` its standard deviation over members. Scale as in the fit.

    Raises
    ------
    GeneError
        If a gene is none of the network's.
    SettingsError
        If the kind, the share, the times or the method cannot be used.
    CovariateError
        If there is no such lineage.
    TrainingError
        If the solver fails.
    """
    share = _choose_share(kind, left)
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; it takes {' or '.join(METHODS)}.")
    places = find_places(network, [genes] if isinstance(genes, str) else list(genes))
    row = find_lineage(network, lineage)
    at = _choose_times(network, times)
    first = torch.tensor([network.times[0]])
    early = int(at[0] > first)  # lineages start at the first time, asked for or not
    kept = torch.ones(2, len(network.genes))
    kept[1, places] = share
    paths, rests = [], []
    for member in network.members:
        offset = member.dynamics.lineage_offset[row]
        start = torch.as_tensor(network.starts[row], dtype=torch.float32).expand(2, -1)
        path = member.dynamics.solve(
            start, torch.cat([first[:early], at]), member.gates, kept, offset, method
        )
        paths.append(path[:, early:])
        rests.append(member.dynamics.settle(kept, member.gates, offset))
    path, rest = torch.stack(paths), torch.stack(rests)[:, :, None]
    both = torch.cat([path, rest], 2).double().numpy()  # member, state, time, gene
    obs = pd.DataFrame(
        {
            "time": [*at.tolist(), np.nan] * 2,
            "state": np.repeat(["untouched", "intervened"], len(at) + 1),
        },
        index=pd.Index([f"{k}" for k in range(2 * len(at) + 2)]),
    )
    flat = both.reshape(len(both), -1, both.shape[-1])
    predicted = AnnData(flat.mean(0), obs=obs, var=pd.DataFrame(index=network.genes.astype(str)))
    predicted.layers["sd"] = flat.std(0)
    return predicted


def predict_rest(network: Network, left: FloatArray) -> FloatArray:
    """Steady states under interventions, mean over members.

    Parameters
    ----------
    network
        A fitted network.
    left
        Share of each gene's production that is left, (row, gene).

    Returns
    -------
    Expression (row, gene).
    """
    kept = torch.as_tensor(left, dtype=torch.float32)
    rest = [member.dynamics.settle(kept, member.gates) for member in network.members]
    return torch.stack(rest).mean(0).double().numpy()


def predict_path(
    network: Network, lineage: str, start: FloatArray, times: FloatArray
) -> FloatArray:
    """Trajectory of a lineage from where it starts, by the first member.

    Parameters
    ----------
    network
        A fitted network.
    lineage
        Its name.
    start
        Expression at the first time, (gene,).
    times
        Rising, (time,).

    Returns
    -------
    Expression (time, gene).

    Raises
    ------
    CovariateError
        If there is no such lineage.
    """
    row, member = find_lineage(network, lineage), network.members[0]
    y = torch.as_tensor(start, dtype=torch.float32)[None]
    at = torch.as_tensor(times, dtype=torch.float32)[None]
    kept = torch.ones(1, len(network.genes))
    offset = member.dynamics.lineage_offset[row]
    return member.dynamics.run(y, at, member.gates, kept, offset)[0].double().numpy()


def find_places(network: Network, genes: Sequence[str]) -> list[int]:
    """Places of genes among the network's."""
    places, unknown = find_genes(genes, list(network.genes))
    if unknown or not places:
        raise GeneError(f"The intervention names {unknown or 'no gene'}.")
    return places


def find_lineage(network: Network, lineage: str | None) -> int:
    """Place of a lineage; the only one where lineages share all."""
    if lineage is None or network.lineages in ((), ("",)):
        return 0
    if lineage not in network.lineages:
        raise CovariateError(
            f"There is no lineage {lineage!r}; the network has {', '.join(network.lineages)}."
        )
    return network.lineages.index(lineage)


def _choose_share(kind: str, left: float | None) -> float:
    if kind not in LEFT:
        raise SettingsError(f"kind is {kind!r}; it takes {', '.join(LEFT)}.")
    if left is None:
        return LEFT[kind]
    if not (isinstance(left, (int, float)) and 0 <= left <= MOST_LEFT):
        raise SettingsError(f"left is {left!r}; it takes a share from 0 to {MOST_LEFT:g}.")
    return left


def _choose_times(network: Network, times: Sequence[float] | None) -> Tensor:
    if times is None:
        return torch.linspace(*network.times, POINTS)
    try:
        at = torch.as_tensor(np.asarray(times, dtype=np.float64), dtype=torch.float32)
    except (TypeError, ValueError):
        at = torch.zeros(0)
    first = torch.tensor(network.times[0])
    rising = at.ndim == 1 and len(at) > 1 and bool((at.diff() > 0).all())
    if not (rising and torch.isfinite(at).all() and at[0] >= first):
        raise SettingsError(
            f"times are {times!r}; they take two numbers or more that rise, none below "
            f"{float(first):g}, where the measurements start."
        )
    return at


__all__ = ["Member", "intervene", "predict_path", "predict_rest"]
