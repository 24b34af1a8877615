"""The command line: one subcommand, one public function.

    invatlas fit             fit an atlas to raw counts
    invatlas map             bring new cells into an atlas
    invatlas counterfactual  say what cells would look like, were they others
    invatlas differential    say which genes differ between two groups of cells
    invatlas states          find the states within a cell type and who shares them
    invatlas explain         say which genes latents and shifts move
    invatlas donors          compare donors: who stands out, which strata there are
    invatlas abundance       compare densities of cells between two conditions
    invatlas design          rank the next combinations to measure
    invatlas audit           say what the latents tell of each covariate
    invatlas info            say what an atlas holds
    invatlas grn             which gene drives which: networks.py
    invatlas simulate        write a study whose truth is known

Exit status: 0 done, 1 a mistake that is explained, 2 a wrong flag, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from invatlas.contrasts import COMMANDS as CONTRASTS
from invatlas.errors import SettingsError
from invatlas.files import read_cells, refuse_as_cells, refuse_output, write_cells, write_text
from invatlas.fitting import fit
from invatlas.mapping import map_query
from invatlas.networks import app as networks
from invatlas.options import Folder, GeneColumn, Layer, Overwrite, Seed
from invatlas.questions import COMMANDS as QUESTIONS
from invatlas.terminal import command, explained, say, show_audit, show_rows

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of options where a line has 80 letters
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"invatlas {version('invatlas')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Say the version and exit."
        ),
    ] = False,
) -> None:
    """Invariant atlases of single cells: what is biology and what is the laboratory."""


command(app)(fit)
command(app, "map")(map_query)


@command(app)
def audit(
    atlas: Folder,
    cells: Annotated[Path, typer.Argument(help="h5ad file with raw counts and covariates.")],
    layer: Layer = None,
    gene_column: GeneColumn = None,
    most_cells: Annotated[int, typer.Option(help="Cells to look at, at most.")] = 2500,
    permutations: Annotated[int, typer.Option(help="Exchanges behind each null.")] = 39,
    seed: Seed = 0,
    keep: Annotated[
        Path | None, typer.Option("--json", help="File for the whole table, a list of rows.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what the latents tell of each covariate, against chance and given biology."""
    with explained():
        from invatlas.evaluate import leakage
        from invatlas.storage import load

        if keep:
            refuse_output(keep, overwrite)
        found = leakage(
            load(atlas),
            read_cells(cells),
            layer=layer,
            gene_column=gene_column,
            cells=most_cells,
            permutations=permutations,
            boosted_permutations=min(9, permutations),
            seed=seed,
        )
        show_audit(found)
        if keep:
            write_text(found.to_json(orient="records", indent=1), keep)
            say(f"Wrote {len(found)} answers to {keep}.")


@command(app)
def info(atlas: Folder) -> None:
    """Say what an atlas holds."""
    with explained():
        from invatlas.atlas import outline
        from invatlas.data.findings import VERDICTS
        from invatlas.storage import load
        from invatlas.tasks.summary import describe_agreement, describe_calibration

        loaded = load(atlas)
        record, agreed = loaded.record, describe_agreement(loaded)
        rows = [
            *outline(loaded),
            ("held out", record["held_out"]),
            ("calls", describe_calibration(loaded)),
            *([("seeds", agreed)] if agreed else []),
            *[
                (VERDICTS[row["kind"]], f"{row['biological']} and {row['beside']}")
                for row in record["confounding"]
            ],
            *[("warning", warning) for warning in record["warnings"]],
            ("created", record["created"]),
            ("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        ]
        show_rows(rows)


for question in CONTRASTS + QUESTIONS:
    command(app)(question)
app.add_typer(networks, name="grn")


@command(app)
def simulate(
    output: Annotated[Path, typer.Argument(help="h5ad file to write.")],
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 6000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 1000,
    cell_types: Annotated[int, typer.Option(help="Number of cell types.")] = 6,
    diseases: Annotated[int, typer.Option(help="Number of diseases, healthy included.")] = 3,
    donors: Annotated[int, typer.Option(help="Number of donors.")] = 12,
    batches: Annotated[int, typer.Option(help="Number of experimental batches.")] = 4,
    correlation: Annotated[float, typer.Option(help="Of disease and batch, 0 to 1.")] = 0.0,
    shared_state: Annotated[
        float, typer.Option(help="Share of a cell type in a state that two diseases share.")
    ] = 0.0,
    seed: Seed = 0,
    query: Annotated[
        Path | None,
        typer.Option(
            help="h5ad file for the cells of a quarter of the donors, without their biology; "
            "the study is written without them."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a study whose latents, expression and disease genes are known."""
    with explained():
        from invatlas.data.simulate import simulate as simulate_study
        from invatlas.data.simulate import split_off

        for place in filter(None, (output, query)):
            refuse_as_cells(place, overwrite)
        if query and query.resolve() == output.resolve():
            raise SettingsError("--query takes another file than the study's.")
        adata = simulate_study(
            cells=cells,
            genes=genes,
            cell_types=cell_types,
            diseases=diseases,
            donors=donors,
            batches=batches,
            correlation=correlation,
            shared_state=shared_state,
            seed=seed,
        )
        parts = {output: adata}
        if query:
            parts = dict(zip((output, query), split_off(adata), strict=True))
        for place, part in parts.items():
            write_cells(part, place)
            say(f"Wrote {part.n_obs:,} cells x {part.n_vars:,} genes to {place}.")
