"""Commands that ask an atlas: one subcommand, one public function, one table.

Where an answer has two tables, the second lies beside the first: ``donors_strata.csv`` beside
``donors.csv``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invatlas.files import (
    name_beside,
    read_cells,
    read_table,
    refuse_as_page,
    refuse_as_table,
    write_text,
)
from invatlas.options import (
    Cells,
    CellType,
    Condition,
    Folder,
    GeneColumn,
    Layer,
    Output,
    Overwrite,
    Report,
    Seed,
)
from invatlas.terminal import explained, note, noted, say
from invatlas.wording import count_noun

if TYPE_CHECKING:
    import pandas as pd

Donor = Annotated[
    str | None, typer.Option(help="obs column; by default the technical one with most values.")
]


def explain(
    atlas: Folder,
    output: Output,
    covariate: Annotated[
        str | None, typer.Option(help="Whose shifts; by default the last biological one.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Value that the others are held against.")
    ] = None,
    gene_sets: Annotated[Path | None, typer.Option(help="gmt file of gene sets to score.")] = None,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Say which genes each latent and each shift of the prior moves."""
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.explain import explain as explain_atlas

        beside = name_beside(output, "gene_sets") if gene_sets else None
        _refuse(overwrite, report, output, beside)
        found = explain_atlas(
            load(atlas), covariate=covariate, against=against, gene_sets=gene_sets
        )
        moved = found.latents.join(found.shifts)
        for name in found.shifts:
            most = moved[name].sort_values(key=abs, ascending=False).head(5)
            genes = ", ".join(f"{gene} {change:+.2f}" for gene, change in most.items())
            best = found.gene_sets[found.gene_sets["of"] == name].head(1)
            enriched = "".join(
                f"; {row['gene_set']} (t {row['t']:+.1f})" for row in best.to_dict("records")
            )
            say(f"{name}: {genes}{enriched}.")
        _write(moved.reset_index(), output)
        if beside:
            _write(found.gene_sets, beside)
        if report:
            from invatlas.report.replies import show_explained

            show_explained(report, found)
            say(f"Wrote {report}.")


def donors(
    atlas: Folder,
    cells: Cells,
    output: Output,
    donor: Donor = None,
    condition: Condition = None,
    cell_type: CellType = None,
    fewest_cells: Annotated[int, typer.Option(help="Of a sample, to be compared.")] = 10,
    drawings: Annotated[int, typer.Option(help="Drawings of cells behind quantiles.")] = 100,
    seed: Seed = 0,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare donors in z_I: who stands out, and which strata a condition has.

    Two tables: of samples by cell type in the CSV file named, and of the strata beside it, in
    NAME_strata.csv. A distance of 0 means no further from the others than so few cells lie apart by
    chance.
    """
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.donors import donors as compare_donors

        beside = name_beside(output, "strata")
        _refuse(overwrite, report, output, beside)
        fitted, adata = load(atlas), read_cells(cells)
        with noted() as doubts:
            found = compare_donors(
                fitted,
                adata,
                donor=donor,
                condition=condition,
                cell_type=cell_type,
                fewest_cells=fewest_cells,
                drawings=drawings,
                seed=seed,
                layer=layer,
                gene_column=gene_column,
            )
        for row in found.table[found.table["outlying"]].to_dict("records"):
            say(
                f"{row['sample']} stands out among {row['condition']} in {row['cell_type']}: "
                f"outlyingness {row['outlyingness']:.1f} ({row['outlyingness_05']:.1f} to "
                f"{row['outlyingness_95']:.1f})."
            )
        for name, rows in found.strata.groupby("condition"):
            strata = count_noun(rows["stratum"].nunique(), "stratum", "strata")
            say(f"{name}: {count_noun(len(rows), 'sample')} in {strata}.")
        _say_near(found.table)
        _write(found.table, output)
        _write(found.strata, beside)
        if report:
            from invatlas.report.replies import show_donors

            show_donors(report, found, doubts)
            say(f"Wrote {report}.")


def abundance(
    atlas: Folder,
    cells: Cells,
    output: Output,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two conditions; the first two by default."),
    ] = None,
    donor: Donor = None,
    condition: Condition = None,
    cell_type: CellType = None,
    neighbours: Annotated[
        int | None, typer.Option(help="Of each cell; 10 for each sample by default.")
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare the density of cells between two conditions, cell by cell."""
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.abundance import abundance as compare_abundance

        _refuse(overwrite, report, output)
        fitted, adata = load(atlas), read_cells(cells)
        with noted() as doubts:
            found = compare_abundance(
                fitted,
                adata,
                between=between,
                donor=donor,
                condition=condition,
                cell_type=cell_type,
                neighbours=neighbours,
                layer=layer,
                gene_column=gene_column,
            )
        n = int((found["false_discovery_rate"] <= 0.05).sum())
        lead = f"{n:,} of {len(found):,} cells lie where densities differ (FDR 0.05)."
        say(lead)
        _write(found.rename_axis("cell").reset_index(), output)
        if report:
            from invatlas.report.replies import show_abundance

            show_abundance(report, found, lead, doubts)
            say(f"Wrote {report}.")


def design(
    atlas: Folder,
    output: Output,
    budget: Annotated[int, typer.Option(min=1, help="How many combinations to choose.")],
    candidates: Annotated[
        Path | None,
        typer.Option(help="CSV file, a row a combination; every unmeasured one by default."),
    ] = None,
    cells: Annotated[int, typer.Option(help="Cells of each donor that would be measured.")] = 100,
    reference: Annotated[
        Path | None, typer.Option(help="h5ad file the atlas was fitted to: donors are replicates.")
    ] = None,
    donor: Donor = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank combinations nobody measured by what measuring them would tell."""
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.design import design as plan

        _refuse(overwrite, report, output)
        found = plan(
            load(atlas),
            read_table(candidates) if candidates else None,
            budget=budget,
            cells=cells,
            reference=read_cells(reference) if reference else None,
            donor=donor,
            layer=layer,
            gene_column=gene_column,
        )
        for row in found.itertuples(index=False):
            values = ", ".join(map(str, row[1:-6]))
            say(f"{row.rank}. {values}: {row.information:.3f} nats, {row.total:.3f} in all.")
        _write(found, output)
        if report:
            from invatlas.report.replies import show_design

            show_design(report, found)
            say(f"Wrote {report}.")


COMMANDS = (explain, donors, abundance, design)


def _say_near(table: pd.DataFrame) -> None:
    """Say where distances are mostly 0 that it is no fault: nothing but chance is seen."""
    from invatlas.tasks.donors import TOGETHER

    known = table[table["distance"].notna() & (table["cell_type"] != TOGETHER)]
    near = int((known["distance"] == 0).sum())
    if near and 2 * near >= len(known):
        note(
            f"The distance is 0 in {near:,} of {count_noun(len(known), 'row')} of a sample and "
            "cell type: half of its condition or more lie no further from it than so few cells "
            "lie apart by chance. outlyingness_05 and _95 are of cells drawn anew, which scatter "
            "more."
        )


def _refuse(overwrite: bool, report: Path | None, *places: Path | None) -> None:
    refuse_as_page(report, overwrite)
    for place in filter(None, places):
        refuse_as_table(place, overwrite)


def _write(table: pd.DataFrame, path: Path) -> None:
    write_text(table.to_csv(index=False), path)
    say(f"Wrote {len(table):,} rows to {path}.")
