"""Commands about networks of genes: one subcommand, one public function of ``invatlas.grn``.

invatlas grn fit        fit a network to series, lineages and interventions
invatlas grn edges      list its edges, the strongest first
invatlas grn knockout   say what an intervention on genes does
"""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invatlas.assignments import read_assignments
from invatlas.errors import StorageError
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
from invatlas.terminal import command, explained, noted, say, show_experiments, show_network
from invatlas.wording import count_noun

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from invatlas.grn.network import Network
    from invatlas.grn.settings import NetworkSettings

LEAST_CHANGE = 1e-3  # of a gene's usual level; what moves less is not told
READ = ("time", "lineage", "donor", "regulators", "prior_network", "interventions", "experiment")
FIT = (*READ, "layer", "bins", "seed")
KNOCKOUT = ("kind", "left", "lineage", "method")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which gene drives which: equations of expression in time.",
)

NetworkFolder = Annotated[Path, typer.Argument(help="Folder of a network.")]


@command(app)
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
    with explained(FIT):
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
        show_experiments(experiments, adata)
        use_threads(threads)
        network = fit_experiments(experiments, settings, progress=True)
        show_network(network)
        _write(network, output)
        say(f"Wrote {output} after {clock.perf_counter() - start:.0f} s.")


@command(app)
def edges(
    network: NetworkFolder,
    output: Output,
    probability: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out edges that are less likely.")
    ] = 0.0,
    overwrite: Overwrite = False,
) -> None:
    """List edges, the largest weight first whatever its sign, which is no order of probability.

    A weight is a mean over fits, so one fit alone can make it large; the probability then stays
    small. --probability leaves such edges out.
    """
    with explained():
        from invatlas.grn.network import list_edges
        from invatlas.grn.storage import load

        refuse_as_table(output, overwrite)
        listed = list_edges(load(network))
        _refuse_inside(network, output)
        kept = listed[listed["probability"] >= probability]
        write_text(kept.to_csv(index=False), output)
        say(f"Wrote {len(kept):,} of {count_noun(len(listed), 'possible edge')} to {output}.")


@command(app)
def knockout(
    network: NetworkFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write.")],
    gene: Annotated[
        list[str], typer.Option(help="Gene to intervene on; may be repeated, for all at once.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            help="knockout, knockdown or overexpression; with --left, what that amounts to.",
            show_default="knockout",
        ),
    ] = None,
    left: Annotated[
        float | None,
        typer.Option(
            help="Share of production that is left.", show_default="0, 0.5 or 2, by the kind"
        ),
    ] = None,
    lineage: Annotated[
        str | None,
        typer.Option(help="Lineage to follow, where they differ; the first one by default."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Solver: dopri5, or rk4 where that fails.")
    ] = "dopri5",
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict expression at rest, and in time after a fit of series, with an intervention."""
    with explained(KNOCKOUT):
        from invatlas.grn.predict import intervene
        from invatlas.grn.storage import load

        refuse_as_cells(output, overwrite)
        use_threads(threads)
        found = load(network)
        _refuse_inside(network, output)
        with noted():
            predicted = intervene(found, gene, kind=kind, left=left, lineage=lineage, method=method)
        write_cells(predicted, output)
        genes, done = (predicted.uns["intervention"][name] for name in ("genes", "kind"))
        if left is not None:
            done = _say_left(left)
        among = f" in {predicted.uns['intervention']['lineage']}" if len(found.lineages) > 1 else ""
        moved = _say_changes(predicted, genes, found)
        say(f"{'+'.join(genes)}: {done}. At rest{among}{moved}.")
        say(f"Wrote {predicted.n_obs:,} rows x {predicted.n_vars:,} genes to {output}.")


def _refuse_inside(network: Path, output: Path) -> None:
    """Refuse to write into the folder of a network, which holds it alone."""
    if output.resolve().is_relative_to(network.resolve()):
        raise StorageError(
            f"{output} is inside the folder of the network, which stays as the fit wrote it; "
            "name another place."
        )


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


def _write(network: Network, output: Path) -> None:
    from invatlas.folders import staged
    from invatlas.grn.storage import NETWORK, write_network

    with settled() as settle, staged(output, NETWORK) as folder:
        write_network(network, folder)
        settle()


def _say_left(left: float) -> str:
    return f"{left:g} times its production" if left > 1 else f"{left:g} of its production left"


def _say_changes(predicted: AnnData, genes: list[str], network: Network) -> str:
    """The genes an intervention moves most, beside its own; no change that is next to none."""
    import pandas as pd

    rest = predicted[predicted.obs["time"].isna()].to_df().set_axis(["untouched", "intervened"])
    change = (rest.loc["intervened"] - rest.loc["untouched"]).drop(genes)
    usual = pd.Series(network.usual, index=rest.columns).abs().drop(genes)
    moved = change[(change != 0) & (change.abs() >= LEAST_CHANGE * usual)]
    most = moved.sort_values(key=abs, ascending=False).head(5)
    told = ", ".join(f"{gene} {by:+.3g}" for gene, by in most.items())
    if told:
        return f": {told}"
    return " it moves no other gene" + (" that comes to rest" if change.hasnans else "")
