"""The command that brings new cells into an atlas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invatlas.assignments import read_given
from invatlas.errors import SettingsError, StorageError
from invatlas.files import read_cells, refuse_as_cells, refuse_output, write_cells
from invatlas.options import Folder, GeneColumn, Layer, Overwrite, Threads, use_threads
from invatlas.terminal import explained, say, show_mapped
from invatlas.wording import count_noun

if TYPE_CHECKING:
    from invatlas.atlas import Atlas
    from invatlas.tasks.annotate import Calling
    from invatlas.tasks.map import Mapped


def map_query(
    atlas: Folder,
    query: Annotated[Path, typer.Argument(help="h5ad file with raw counts of new cells.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write.")],
    layer: Layer = None,
    gene_column: GeneColumn = None,
    minimum_overlap: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the reference's counts in common genes."),
    ] = 0.5,
    given: Annotated[
        list[str] | None,
        typer.Option(help="What is known of all cells, as covariate=value; may be repeated."),
    ] = None,
    label_prior: Annotated[
        str, typer.Option(help="Label frequencies: reference, uniform or query.")
    ] = "reference",
    abstain_below: Annotated[
        float, typer.Option(help="Joint probability under which no call is made.")
    ] = 0.5,
    false_discovery_rate: Annotated[
        float, typer.Option(help="Nominal share of known cells among those flagged.")
    ] = 0.05,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Move z_I's encoder to this query first: for one laboratory or condition that "
            "the atlas never saw.",
        ),
    ] = False,
    align_by: Annotated[
        str | None,
        typer.Option(
            help="The same for each value of a column of obs, such as the batch; not the donor, "
            "whose disease would go with it."
        ),
    ] = None,
    adapt: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a copy of the atlas that has learnt the query's new technical values."
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option(help="Lay the cells out and write a report beside the output.")
    ] = True,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring new cells into an atlas: latents, calls, confidence, novelty; from counts alone."""
    with explained():
        from invatlas.folders import check_target
        from invatlas.storage import ATLAS, load, save
        from invatlas.tasks.adapt import adapt as adapt_atlas
        from invatlas.tasks.annotate import Calling
        from invatlas.tasks.map import map_cells

        calling = Calling(read_given(given or []), label_prior, abstain_below, false_discovery_rate)
        if atlas.is_file():
            raise StorageError(
                f"The first argument, {atlas}, is a file; it takes the folder of an atlas, and the "
                "second one the h5ad file of the query."
            )
        if adapt and (align or align_by is not None):
            raise SettingsError(
                "--adapt learns what new donors add to cells as the atlas sees them, --align and "
                "--align-by change how it sees them; map with one of them, then with the other."
            )
        page = output.with_suffix(".html") if report else None
        if output.resolve() == query.resolve():
            raise SettingsError(f"{output} is the query itself; give the output another name.")
        refuse_as_cells(output, overwrite)
        for place in (page, adapt):
            if place:
                refuse_output(place, overwrite)
        if adapt:
            check_target(adapt.resolve(), ATLAS)
            if adapt.resolve() == atlas.resolve():
                raise SettingsError("--adapt takes another folder than the atlas's own.")
        use_threads(threads)
        loaded = load(atlas)
        adata = read_cells(query)
        adapted = None
        if adapt:
            adapted = adapt_atlas(loaded, adata, layer=layer, gene_column=gene_column)
        mapped = map_cells(
            loaded,
            adata,
            calling=calling,
            layer=layer,
            gene_column=gene_column,
            minimum_overlap=minimum_overlap,
            layout=report,
            align=align,
            align_by=align_by,
        )
        adata.obs = mapped.cells.obs
        for name in mapped.cells.obsm:
            adata.obsm[name] = mapped.cells.obsm[name]
        write_cells(adata, output)
        show_mapped(mapped, [c.name for c in loaded.schema.called], calling.abstain_below)
        say(f"Wrote {count_noun(adata.n_obs, 'cell')} to {output}.")
        if page:
            _write_query_report(page, loaded, mapped, calling, query.stem, atlas.resolve().name)
        if adapt and adapted:
            save(adapted, adapt, overwrite=overwrite)
            say(f"Wrote the adapted atlas to {adapt}; {atlas} is as it was.")


def _write_query_report(
    page: Path, atlas: Atlas, mapped: Mapped, calling: Calling, title: str, name: str
) -> None:
    from invatlas.report.query import write_query_report
    from invatlas.tasks.summary import summarise_query

    write_query_report(
        page,
        summary=summarise_query(atlas, mapped, calling, title, name),
        cells=mapped.cells,
        overlap=mapped.overlap,
        notes=mapped.notes,
        groups=mapped.states.table if mapped.states else None,
    )
    say(f"Wrote {page}; open it in a browser.")
