"""The fitted network: equations of several members, edges, what was found on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from invatlas.errors import SettingsError, TrainingError
from invatlas.grn.baselines import lasso
from invatlas.grn.dynamics import Dynamics
from invatlas.grn.evidence import total_effects
from invatlas.grn.experiments import Experiments, read_experiments
from invatlas.grn.measured import Measured, measure
from invatlas.grn.member import choose_refinement, fit_member
from invatlas.grn.objective import Unknowns
from invatlas.grn.off_targets import find_off_targets, tabulate_strengths
from invatlas.grn.progress import draw_bars
from invatlas.grn.readout import Edges, read_edges, tabulate_edges
from invatlas.grn.settings import NetworkSettings
from invatlas.grn.trajectories import Trajectory

FloatArray = NDArray[np.float64]
LINEAR_SHARE = 0.6
EVERY = 10  # steps between two rows of the history


@dataclass(frozen=True, eq=False)
class Member:
    """Equations of one member of the ensemble, and its gates (regulator, target)."""

    dynamics: Dynamics
    gates: Tensor


@dataclass(frozen=True, repr=False, eq=False)
class Network:
    """A fitted gene regulatory network.

    Attributes
    ----------
    genes
        Names, in the order of every array.
    regulators
        Which genes may regulate others, (gene,).
    members
        Equations; the first was fitted to the data as they are, the others to resampled ones.
    edges
        Weight, probability and stability of every edge.
    lineages
        Names of lineages with an offset of their own.
    starts
        Mean expression at the first time of each lineage, (lineage, gene): of its series nobody
        intervened on, where there are any. The usual level without series.
    usual
        Usual expression (gene,): the median of what was measured.
    times
        First and last time of each lineage; none without series, which alone tell how fast
        anything is.
    settings
        What the fit was told.
    strengths, off_targets
        What interventions left of their targets' production, and which other genes they moved.
    history
        Loss by member and step.
    scale
        What the numbers are.
    warnings
        What a reader should know.
    """

    genes: pd.Index
    regulators: NDArray[np.bool_]
    members: tuple[Member, ...]
    edges: Edges
    lineages: tuple[str, ...]
    starts: FloatArray
    usual: FloatArray
    times: tuple[tuple[float, float], ...]
    settings: NetworkSettings
    strengths: pd.DataFrame
    off_targets: pd.DataFrame
    history: pd.DataFrame
    scale: str
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """A few lines that say what the network holds."""
        likely = int((self.edges.probability > 0.5).sum())
        return (
            f"invatlas network\n  genes: {len(self.genes):,} ({', '.join(self.genes[:3])}, ...)\n"
            f"  regulators: {int(self.regulators.sum()):,}\n"
            f"  edges with a probability above 1/2: {likely:,}\n"
            f"  production: {self.settings.production}, {len(self.members)} members\n"
            f"  off-targets found: {len(self.off_targets)}"
        )


def fit(
    adata: AnnData,
    *,
    time: str | None = None,
    lineage: str | None = None,
    donor: str | None = None,
    regulators: Sequence[str] | None = None,
    prior_network: pd.DataFrame | str | None = None,
    interventions: str | None = None,
    experiment: str | None = None,
    layer: str | None = None,
    bins: int | None = None,
    settings: NetworkSettings | None = None,
    progress: bool = False,
) -> Network:
    """Fit a gene regulatory network to series, lineages and interventions.

    Neural ordinary differential equations with a gate for each edge, after PathReg (Aliee et al.
    2022, arXiv 2210.14672) and C-NODE (arXiv 2106.12430), gated by edge rather than by input.

    Parameters
    ----------
    adata
        Expression (row, gene); counts become log(1 + counts per 10,000).
    time
        Column of obs with real time, simulated time or pseudotime; rows without one are steady
        states.
    lineage, donor
        Columns that name series, replicates or lineages; and donors.
    regulators
        Genes that may regulate; all by default.
    prior_network
        Believed edges: a table with ``regulator``, ``target`` and, where known, ``weight`` or
        ``sign``; or a key of varm. They are preferred, never enforced.
    interventions, experiment
        Columns with the intervened gene of each row and the kind of its experiment.
    layer
        Layer with the expression; X by default.
    bins
        Most bins of cells along a lineage.
    settings
        Of the fit.
    progress
        Whether to show a bar with the time left.

    Raises
    ------
    CovariateError, GeneError, DataError, SettingsError
        As :func:`invatlas.grn.experiments.read_experiments` says.
    TrainingError
        If the loss stopped being a finite number.
    """
    experiments = read_experiments(
        adata,
        time=time,
        lineage=lineage,
        donor=donor,
        regulators=regulators,
        prior_network=prior_network,
        interventions=interventions,
        experiment=experiment,
        layer=layer,
        bins=bins,
    )
    if not isinstance(settings, NetworkSettings | None):
        raise SettingsError(f"settings is {settings!r:.60}; it takes an ia.grn.NetworkSettings.")
    return fit_experiments(experiments, settings or NetworkSettings(), progress)


def fit_experiments(
    experiments: Experiments, settings: NetworkSettings, progress: bool = False
) -> Network:
    """Fit a network to what was measured, see :func:`fit`."""
    measured, n = measure(experiments), len(experiments.genes)
    allowed = torch.as_tensor(experiments.regulators)[:, None] & ~torch.eye(n, dtype=torch.bool)
    prior = experiments.prior
    believed = None if prior is None else torch.as_tensor(prior, dtype=torch.float32)
    members, history = [], []
    steps = settings.steps * settings.members + choose_refinement(measured, settings, 0)
    with draw_bars(progress) as bars:
        bar = bars.add_task("fitting", total=steps)
        for member in range(settings.members):

            def report(step: int, loss: float, member: int = member) -> None:
                about = f"fitting: member {member + 1}, loss {loss:,.0f}"
                bars.update(bar, advance=1, description=about)
                if step % EVERY == 0:
                    history.append({"member": member, "step": step, "loss": loss})

            unknowns = fit_member(measured, allowed, believed, settings, member, report)
            if not all(torch.isfinite(p).all() for p in unknowns.parameters()):
                raise TrainingError("A weight of the network is no finite number after the fit.")
            members.append(unknowns)
        z, share = total_effects(measured), 1.0
        if z is None:
            genes = bars.add_task("linear model: genes", total=n)
            linear = lasso(experiments, on_gene=lambda: bars.advance(genes))
            z, share = torch.as_tensor(linear, dtype=torch.float32), LINEAR_SHARE
    edges = read_edges(measured, allowed, members, z, share)
    return _assemble(experiments, measured, members, edges, settings, pd.DataFrame(history))


def list_edges(network: Network) -> pd.DataFrame:
    """Every possible edge, the strongest first: by the size of its weight.

    That is the ranking benchmarks measured, and it is not that of the probability: where few
    members hold an edge, its weight can be large and its probability small.

    Returns
    -------
    DataFrame
        ``regulator``, ``target``, ``sign`` (+1 raises, -1 lowers, 0 not told), ``weight``
        (signed score, see :mod:`invatlas.grn.readout`), ``probability`` and ``stability``.

    Raises
    ------
    SettingsError
        If this is no network.
    """
    if not isinstance(network, Network):
        raise SettingsError(f"The network is {network!r:.60}; ia.grn.fit and load give one.")
    return tabulate_edges(network.edges, network.genes, network.regulators)


def _assemble(
    experiments: Experiments,
    measured: Measured,
    members: Sequence[Unknowns],
    edges: Edges,
    settings: NetworkSettings,
    history: pd.DataFrame,
) -> Network:
    for unknowns in members:
        unknowns.requires_grad_(False)
    genes = experiments.genes
    starts, times = _find_starts(experiments.trajectories, measured)
    return Network(
        genes,
        experiments.regulators,
        tuple(Member(u.dynamics, u.open_gates().detach()) for u in members),
        edges,
        measured.lineages,
        starts,
        measured.centre.double().numpy(),
        times,
        settings,
        tabulate_strengths(measured, members[0], genes),
        find_off_targets(measured, members[0], settings, genes),
        history,
        experiments.scale,
        experiments.warnings,
    )


def _find_starts(
    trajectories: Sequence[Trajectory], measured: Measured
) -> tuple[FloatArray, tuple[tuple[float, float], ...]]:
    """Where lineages start, (lineage, gene), and the first and last time of each."""
    if not trajectories:
        return measured.centre.double().numpy()[None], ()
    s, starts, times = measured.series, [], []
    free = torch.tensor([not t.intervention.genes for t in trajectories])
    for k in range(len(measured.lineages)):
        own = s.lineage == k
        starts.append(s.y[own & free if (own & free).any() else own, 0].mean(0))
        at = np.concatenate([trajectories[i].times for i in own.nonzero()[:, 0].tolist()])
        times.append((float(at.min()), float(at.max())))
    return torch.stack(starts).double().numpy(), tuple(times)
