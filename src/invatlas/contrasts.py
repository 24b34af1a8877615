"""Commands that hold cells against others: what they might be, and how groups differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invatlas.assignments import read_change, read_given
from invatlas.errors import DataError, SettingsError
from invatlas.files import (
    name_beside,
    read_cells,
    refuse_as_cells,
    refuse_as_page,
    refuse_as_table,
    write_cells,
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
    Threads,
    use_threads,
)
from invatlas.terminal import explained, noted, say, show_states

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def counterfactual(
    atlas: Folder,
    cells: Cells,
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write.")],
    change: Annotated[
        list[str],
        typer.Option(
            "--set",
            help="What a covariate is to become, as covariate=value, covariate=A+B, or "
            "covariate=reference of a technical one; may be repeated.",
        ),
    ],
    layer: Layer = None,
    gene_column: GeneColumn = None,
    minimum_overlap: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the reference's counts in common genes."),
    ] = 0.5,
    log_normalised: Annotated[
        bool, typer.Option("--log-normalised", help="Write log(1 + counts per 10,000).")
    ] = False,
    samples: Annotated[int, typer.Option(min=2, help="Draws of the latents.")] = 20,
    seed: Seed = 0,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a fit of the same study with another seed, so that deviations hold "
            "how far fits disagree; may be repeated."
        ),
    ] = None,
    threads: Threads = None,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict what cells would look like, had they other values of some covariates."""
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.counterfactual import counterfactual as predict

        wanted = read_change(change)
        if output.resolve() == cells.resolve():
            raise SettingsError(f"{output} holds the cells themselves; give the output a new name.")
        refuse_as_cells(output, overwrite)
        refuse_as_page(report, overwrite)
        use_threads(threads)
        fitted, adata = load(atlas), read_cells(cells)
        others = [load(folder) for folder in also or []]
        with noted():
            predicted = predict(
                fitted,
                adata,
                wanted,
                layer=layer,
                gene_column=gene_column,
                minimum_overlap=minimum_overlap,
                log_normalised=log_normalised,
                samples=samples,
                seed=seed,
                others=others,
            )
        write_cells(predicted, output)
        supported = int(predicted.obs["counterfactual_supported"].sum())
        say(
            f"Wrote {predicted.n_obs:,} cells x {predicted.n_vars:,} genes to {output}; the atlas "
            f"knows {supported:,} of the cells."
        )
        if report:
            from invatlas.report.replies import show_counterfactual

            show_counterfactual(report, predicted, wanted)
            say(f"Wrote {report}.")


def differential(
    atlas: Folder,
    cells: Cells,
    output: Output,
    group: Annotated[
        list[str], typer.Option(help="What cells of the first group have, as column=value.")
    ],
    reference: Annotated[
        list[str], typer.Option(help="What cells of the second group have, as column=value.")
    ],
    within: Annotated[
        list[str] | None, typer.Option(help="What cells of both have, as column=value.")
    ] = None,
    donor: Annotated[str, typer.Option(help="Column of obs that names the replicates.")] = "donor",
    method: Annotated[str, typer.Option(help="posterior or pseudobulk (DESeq2).")] = "posterior",
    threshold: Annotated[
        float, typer.Option(help="Change in log2 beyond which a gene counts as different.")
    ] = 0.25,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Say which genes differ between two groups of cells, technique taken out."""
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.differential import differential_expression

        refuse_as_table(output, overwrite)
        refuse_as_page(report, overwrite)
        fitted, adata = load(atlas), read_cells(cells)
        groups = [
            _choose(adata.obs, {"--within": within or [], flag: values})
            for flag, values in (("--group", group), ("--reference", reference))
        ]
        found = differential_expression(
            fitted,
            adata,
            *groups,
            donor=donor,
            method=method,
            threshold=threshold,
            layer=layer,
            gene_column=gene_column,
        )
        write_text(found.to_csv(), output)
        clear = int((found["false_discovery_rate"] <= 0.05).sum())
        lead = f"{clear:,} of {len(found):,} genes differ at a false discovery rate of 5 %."
        say(lead)
        say(f"Wrote {output}.")
        if report:
            from invatlas.report.replies import show_differential

            names = [", ".join(values) for values in (group, reference)]
            show_differential(report, found, " against ".join(names), lead)
            say(f"Wrote {report}.")


def states(
    atlas: Folder,
    cells: Cells,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file, one row a cell.")],
    cell_type: Annotated[str, typer.Option(help="The cell type to look into.")],
    reference: Annotated[str, typer.Option(help="Disease to compare with, such as healthy.")],
    cell_type_column: CellType = None,
    disease: Condition = None,
    donor: Annotated[str, typer.Option(help="Column of obs that names the replicates.")] = "donor",
    layer: Layer = None,
    gene_column: GeneColumn = None,
    seed: Seed = 0,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the states within a cell type, and the diseases that share them.

    Beside the states of the cells, NAME_shares.csv holds what the states are: stability, markers,
    and the share of each disease against the reference with its false discovery rate.
    """
    with explained():
        from invatlas.storage import load
        from invatlas.tasks.states import states as find_states

        beside = name_beside(output, "shares")
        for place in (output, beside):
            refuse_as_table(place, overwrite)
        refuse_as_page(report, overwrite)
        found = find_states(
            load(atlas),
            read_cells(cells),
            cell_type=cell_type,
            cell_type_column=cell_type_column,
            disease=disease,
            reference=reference,
            donor=donor,
            layer=layer,
            gene_column=gene_column,
            seed=seed,
        )
        write_text(found.cells.to_csv(index_label="cell"), output)
        write_text(found.table.merge(found.shares, "left", on="state").to_csv(index=False), beside)
        show_states(found)
        say(
            f"Wrote the states of {len(found.cells):,} cells to {output}, and their shares of "
            f"each disease and markers to {beside}."
        )
        if report:
            from invatlas.report.replies import show_states as show_page

            show_page(report, found, cell_type)
            say(f"Wrote {report}.")


COMMANDS = (counterfactual, differential, states)


def _choose(obs: pd.DataFrame, asked: Mapping[str, list[str]]) -> np.ndarray:
    """Which cells have all that some flags ask for, bool (cell,)."""
    import numpy as np

    from invatlas.tasks.groups import choose_cells

    given = {flag: read_given(values, flag) for flag, values in asked.items()}
    chosen = np.all([choose_cells(obs, group, flag) for flag, group in given.items()], axis=0)
    if not chosen.any():
        raise DataError(f"No cell has what {' and '.join(given)} ask for together.")
    return np.asarray(chosen)
