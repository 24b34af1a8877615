"""What a network predicts: steady states and trajectories under interventions on its genes.

    do(g):  dy_g/dt = d_g (m_g f_g(p) - y_g)

m_g is 0 in a knockout, 1/2 in a knockdown, 2 in an over-expression, or what ``left`` says; several
genes at once. Where the network was fitted to counts, it is a share of the counts per 10,000, not
of their logarithm (dynamics.py). Predictions are means over the members of the ensemble, their
spread is its standard deviation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Real

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
from invatlas.wording import list_first

FloatArray = NDArray[np.float64]

POINTS = 41
METHODS = ("dopri5", "rk4")
MOST_LEFT = 100.0


def intervene(
    network: Network,
    genes: Sequence[str] | str,
    *,
    kind: str | None = None,
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
        ``knockout``, ``knockdown`` or ``overexpression``; by default what ``left`` amounts to, and
        a knockout where neither is told.
    left
        Share of production that is left, instead of the kind's: 0, 1/2, 2; of counts per 10,000
        where the network was fitted to counts.
    lineage
        Lineage to follow; the first one by default.
    times
        At which to predict, rising, none before the first of the lineage, where it starts and so
        does the intervention; 41 even points over what was measured of it by default. A network
        fitted without series has none: it does not know how fast genes change.
    method
        Solver: ``dopri5`` with steps of its own, or ``rk4`` with one step between two times.

    Returns
    -------
    AnnData
        A row for each time without and with the intervention, and a steady state of either;
        obs ``time`` (missing at rest) and ``state`` (``untouched`` or ``intervened``); X expected
        expression, layer ``sd`` its standard deviation over members. Scale as in the fit. Genes
        that come to no rest have no steady state: it is missing, with a warning.
        ``uns["intervention"]`` says what was asked: genes, kind, left, lineage, method, scale.

    Raises
    ------
    GeneError
        If a gene is none of the network's.
    SettingsError
        If the kind, the share, the times or the method cannot be used, or the share is not one of
        the kind.
    CovariateError
        If there is no such lineage, or lineages share all.
    TrainingError
        If the solver fails.
    """
    kind, share = choose_strength(kind, left)
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; it takes {' or '.join(METHODS)}.")
    names = list(dict.fromkeys([genes] if isinstance(genes, str) else map(str, genes)))
    places = find_places(network, names)
    row = find_lineage(network, lineage)
    at = _choose_times(network, row, times)
    kept = torch.ones(2, len(network.genes))
    kept[1, places] = share
    paths = []
    for member in network.members:
        path = _follow(network, member, row, at, kept, method)
        paths.append(torch.cat([path, _find_rest(member, row, kept)[:, None]], 1))
    both = torch.stack(paths).double().numpy()  # member, state, time, gene
    _say_what_swings(network, np.isnan(both[:, :, -1]).any((0, 1)))
    obs = pd.DataFrame(
        {
            "time": [*at, np.nan] * 2,
            "state": np.repeat(["untouched", "intervened"], len(at) + 1),
        },
        index=pd.Index([f"{k}" for k in range(2 * len(at) + 2)]),
    )
    flat = both.reshape(len(both), -1, both.shape[-1])
    predicted = AnnData(flat.mean(0), obs=obs, var=pd.DataFrame(index=network.genes.astype(str)))
    predicted.layers["sd"] = flat.std(0)
    predicted.uns["intervention"] = {
        "genes": names,
        "kind": kind,
        "left": share,
        "lineage": network.lineages[row],
        "method": method,
        "scale": network.scale,
    }
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
    at = _count_from(times[0], times)[None]
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
    """Place of a lineage; the first one where none is named.

    Raises
    ------
    CovariateError
        If there is no such lineage, or lineages share all.
    """
    if lineage is None:
        return 0
    if lineage in network.lineages:
        return network.lineages.index(lineage)
    if network.lineages == ("",):
        raise CovariateError(
            f"There is no lineage {lineage!r}: the network has one set of equations, which all "
            "its series share; name no lineage."
        )
    raise CovariateError(
        f"There is no lineage {lineage!r}; the network has {', '.join(network.lineages)}."
    )


def choose_strength(kind: str | None, left: float | None) -> tuple[str, float]:
    """Kind of an intervention and the share it leaves, each told by the other if need be.

    Raises
    ------
    SettingsError
        If either cannot be used, or they contradict each other.
    """
    if kind is not None and kind not in LEFT:
        raise SettingsError(f"kind is {kind!r}; it takes {', '.join(LEFT)}.")
    if left is None:
        return kind or "knockout", LEFT[kind or "knockout"]
    if isinstance(left, bool) or not isinstance(left, Real) or not 0 <= left <= MOST_LEFT:
        raise SettingsError(f"left is {left!r}; it takes a share from 0 to {MOST_LEFT:g}.")
    fits = {"knockout": left == 0, "knockdown": left < 1, "overexpression": left > 1}
    if not fits.get(kind or "", left != 1):
        raise SettingsError(
            f"left is {float(left):g}, no {kind or 'intervention'}: 0 is a knockout, less than 1 a "
            "knockdown, more than 1 an overexpression."
        )
    return kind or next(name for name in fits if fits[name]), float(left)


def _choose_times(network: Network, row: int, times: Sequence[float] | None) -> FloatArray:
    """Times of a lineage to predict at, rising; none where the network has none."""
    if not network.times:
        if times is not None:
            raise SettingsError(
                f"times are {times!r}; the network was fitted without series, which alone tell "
                "how fast genes change: it predicts steady states, name no times."
            )
        return np.zeros(0)
    first, last = network.times[row]
    if times is None:
        return np.linspace(first, last, POINTS)
    try:
        at = np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError):
        at = np.zeros(0)
    since = _count_from(first, at)
    rising = at.ndim == 1 and len(at) > 1 and bool((since.diff() > 0).all())
    if not (rising and torch.isfinite(since).all() and at[0] >= first):
        raise SettingsError(
            f"times are {times!r}; they take two numbers or more that rise, none below "
            f"{first:.15g}, where the measurements start."
        )
    return at


def _count_from(first: float, times: FloatArray) -> Tensor:
    """Times since the first, which single precision tells apart also where the first is large."""
    return torch.as_tensor(times - first, dtype=torch.float32)


def _follow(
    network: Network, member: Member, row: int, at: FloatArray, kept: Tensor, method: str
) -> Tensor:
    """Trajectories (state, time, gene) from where a lineage starts, asked for or not."""
    if not len(at):
        return kept.new_zeros(2, 0, len(network.genes))
    since = _count_from(network.times[row][0], at)
    early = int(since[0] > 0)
    whole = torch.cat([torch.zeros(early), since])
    start = torch.as_tensor(network.starts[row], dtype=torch.float32).expand(2, -1)
    offset = member.dynamics.lineage_offset[row]
    return member.dynamics.solve(start, whole, member.gates, kept, offset, method)[:, early:]


def _find_rest(member: Member, row: int, kept: Tensor) -> Tensor:
    """Steady states (state, gene), missing where a gene comes to no rest."""
    dynamics, offset = member.dynamics, member.dynamics.lineage_offset[row]
    rest = dynamics.settle(kept, member.gates, offset)
    still = dynamics.is_at_rest(rest, member.gates, kept, offset)
    return rest.masked_fill(~still, torch.nan)


def _say_what_swings(network: Network, swings: NDArray[np.bool_]) -> None:
    """Warn, once for all members and states, of genes without a steady state."""
    if swings.any():
        names = network.genes[swings]
        warnings.warn(
            f"No steady state is found for {len(names)} of {len(network.genes)} genes "
            f"({list_first(names)}): by the equations they swing, or settle too slowly to tell. "
            "It is missing where so.",
            stacklevel=3,
        )


__all__ = ["Member", "intervene", "predict_path", "predict_rest"]
