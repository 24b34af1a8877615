"""Commands about networks of genes: one subcommand, one public function of ``invatlas.grn``.

invatlas grn fit        fit a network to series, lineages and interventions
invatlas grn edges      list its edges, the likeliest first
invatlas grn knockout   say what an intervention on genes does
"""

from __future__ import annotations

import time as clock
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invatlas.assignments import read_assignments
from invatlas.files import (
    read_cells,
    read_genes,
    read_table,
    refuse_as_cells,
    refuse_as_table,
    refuse_output,
    write_cells,
    write_text,
)
from invatlas.interruption import settled
from invatlas.options import Output, Overwrite, Threads, use_threads
from invatlas.terminal import explained, note, noted, say, show_table

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from invatlas.grn.experiments import Experiments, SteadyState, Trajectory
    from invatlas.grn.network import Network
    from invatlas.grn.settings import NetworkSettings

SHOWN = 10

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which gene drives which: equations of expression in time.",
)

NetworkFolder = Annotated[Path, typer.Argument(help="Folder of a network.")]


@app.command()
def fit(
    expression: Annotated[
        Path, typer.Argument(help="h5ad file with counts, or expression in any other unit.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the network.")],
    time: Annotated[
        str | None,
        typer.Option(
            help="obs column with time or pseudotime; rows without one are steady states."
        ),
    ] = None,
    lineage: Annotated[
        str | None, typer.Option(help="obs column of series, replicates or lineages.")
    ] = None,
    donor: Annotated[str | None, typer.Option(help="obs column of donors.")] = None,
    regulators: Annotated[
        Path | None,
        typer.Option(help="Text file of genes that may regulate, one a line; all by default."),
    ] = None,
    prior_network: Annotated[
        str | None,
        typer.Option(
            help="CSV file of believed edges (regulator, target; weight or sign where known), or "
            "the name of a matrix in varm."
        ),
    ] = None,
    interventions: Annotated[
        str | None,
        typer.Option(help="obs column with the intervened gene of each row; A+B for several."),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(help="obs column with the kind: knockout, knockdown, overexpression, ..."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer with the expression; X by default.")
    ] = None,
    bins: Annotated[
        int | None, typer.Option(help="Most bins of cells along a lineage; 0 for none.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, as name=value; docs/networks.md lists them."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of every random choice; wins over --set seed.", show_default="0"),
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit a network to series, lineages and interventions, and write it."""
    start = clock.perf_counter()
    with explained():
        from invatlas.folders import check_target
        from invatlas.grn.experiments import read_experiments
        from invatlas.grn.network import fit_experiments
        from invatlas.grn.storage import NETWORK

        settings = _choose_settings(setting or [], seed)
        genes = read_genes(str(regulators)) if regulators else None
        refuse_output(output, overwrite)
        check_target(output.resolve(), NETWORK)
        adata = read_cells(expression)
        experiments = read_experiments(
            adata,
            time=time,
            lineage=lineage,
            donor=donor,
            regulators=genes,
            prior_network=_read_prior(prior_network, adata),
            interventions=interventions,
            experiment=experiment,
            layer=layer,
            bins=bins,
        )
        _show_read(experiments, adata)
        use_threads(threads)
        network = fit_experiments(experiments, settings, progress=True)
        _show_found(network)
        _write(network, output)
        say(f"Wrote {output} after {clock.perf_counter() - start:.0f} s.")


@app.command()
def edges(
    network: NetworkFolder,
    output: Output,
    probability: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out edges that are less likely.")
    ] = 0.0,
    overwrite: Overwrite = False,
) -> None:
    """List edges, the likeliest first: sign, weight, probability, stability."""
    with explained():
        from invatlas.grn.network import list_edges
        from invatlas.grn.storage import load

        refuse_as_table(output, overwrite)
        listed = list_edges(load(network))
        kept = listed[listed["probability"] >= probability]
        write_text(kept.to_csv(index=False), output)
        say(f"Wrote {len(kept):,} of {len(listed):,} possible edges to {output}.")


@app.command()
def knockout(
    network: NetworkFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write.")],
    gene: Annotated[
        list[str], typer.Option(help="Gene to intervene on; may be repeated, for all at once.")
    ],
    kind: Annotated[str, typer.Option(help="knockout, knockdown or overexpression.")] = "knockout",
    left: Annotated[
        float | None, typer.Option(help="Share of production that is left, instead of the kind's.")
    ] = None,
    lineage: Annotated[
        str | None,
        typer.Option(help="Lineage to follow, where they differ; the first one by default."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Solver: dopri5, or rk4 where that fails.")
    ] = "dopri5",
    overwrite: Overwrite = False,
) -> None:
    """Predict expression at rest, and in time after a fit of series, with an intervention."""
    with explained():
        from invatlas.grn.predict import intervene
        from invatlas.grn.storage import load

        refuse_as_cells(output, overwrite)
        with noted():
            predicted = intervene(
                load(network), gene, kind=kind, left=left, lineage=lineage, method=method
            )
        write_cells(predicted, output)
        done = kind if left is None else f"{left:g} of its production left"
        say(f"{'+'.join(gene)}: {done}. At rest: {_list_changes(predicted, gene)}.")
        say(f"Wrote {predicted.n_obs:,} rows x {predicted.n_vars:,} genes to {output}.")


def _choose_settings(assignments: list[str], seed: int | None) -> NetworkSettings:
    from invatlas.grn.settings import NetworkSettings

    values = read_assignments(assignments)
    if seed is not None:
        values["seed"] = seed
    return NetworkSettings.from_dict(values)


def _read_prior(name: str | None, adata: AnnData) -> pd.DataFrame | str | None:
    """Table of the file, unless the name is one in varm."""
    if name is None or name in adata.varm or not Path(name).suffix:
        return name
    return read_table(Path(name))


def _show_read(experiments: Experiments, adata: AnnData) -> None:
    from invatlas.grn.experiments import GIVEN

    scale = "" if experiments.scale == GIVEN else f", as {experiments.scale}"
    say(f"Read {adata.n_obs:,} rows x {adata.n_vars:,} genes{scale}.")
    if found := experiments.trajectories:
        points = [len(series.times) for series in found]
        cells = sum(int(series.cells.sum()) for series in found)
        many = f"{min(points)}" if min(points) == max(points) else f"{min(points)} to {max(points)}"
        of = f", means of {cells:,} rows" if cells > sum(points) else ""
        say(f"{len(found):,} series of {many} times{of}{_count_kinds(found)}.")
        if upset := sum(series.perturbed for series in found):
            say(f"In {upset:,} of them unknown genes may be perturbed during the first half.")
    if experiments.steady:
        say(f"{len(experiments.steady):,} steady states{_count_kinds(experiments.steady)}.")
    if not experiments.regulators.all():
        say(f"Genes that may regulate: {experiments.regulators.sum():,}.")
    if experiments.prior is not None:
        say(f"Edges believed beforehand: {(experiments.prior != 0).sum():,}.")
    for warning in experiments.warnings:
        note(warning, "Warning")


def _count_kinds(rows: Sequence[SteadyState | Trajectory]) -> str:
    """How many rows have which intervention, the most frequent first; nothing if none has."""
    kinds = Counter(row.intervention.kind for row in rows)
    if set(kinds) == {"none"}:
        return ""
    return "; " + ", ".join(
        f"{n:,} {'without intervention' if kind == 'none' else kind}"
        for kind, n in kinds.most_common()
    )


def _show_found(network: Network) -> None:
    from invatlas.grn.network import list_edges
    from invatlas.grn.off_targets import SURE

    listed = list_edges(network)
    say(f"The {min(SHOWN, len(listed))} likeliest of {len(listed):,} possible edges:")
    show_table(listed.head(SHOWN))
    if found := len(network.off_targets):
        sure = int((network.off_targets["verdict"] == SURE).sum())
        say(
            f"{found} genes may have been moved by interventions not meant for them; "
            f"{sure} surely, in others a steep edge looks the same:"
        )
        show_table(network.off_targets.head(SHOWN))
    elif len(network.strengths):
        say("No intervention is found to have moved a gene that it was not meant for.")


def _write(network: Network, output: Path) -> None:
    from invatlas.folders import staged
    from invatlas.grn.storage import NETWORK, write_network

    with settled() as settle, staged(output, NETWORK) as folder:
        write_network(network, folder)
        settle()


def _list_changes(predicted: AnnData, genes: list[str]) -> str:
    """The genes an intervention moves most, beside its own."""
    rest = predicted[predicted.obs["time"].isna()].to_df().set_axis(["untouched", "intervened"])
    change = (rest.loc["intervened"] - rest.loc["untouched"]).drop(genes).dropna()
    most = change.sort_values(key=abs, ascending=False).head(5)
    return ", ".join(f"{gene} {by:+.3g}" for gene, by in most.items()) or "no other gene"
