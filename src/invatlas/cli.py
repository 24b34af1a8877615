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

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invatlas.assignments import (
    RUN_KEYS,
    choose_settings,
    read_assignments,
    read_given,
)
from invatlas.contrasts import COMMANDS as CONTRASTS
from invatlas.errors import InvatlasError, SettingsError, StorageError
from invatlas.files import (
    read_cells,
    read_genes,
    read_run,
    refuse_as_cells,
    refuse_output,
    write_cells,
    write_text,
)
from invatlas.interruption import STATUS, Interruption, interruptible
from invatlas.networks import app as networks
from invatlas.options import Folder, GeneColumn, Layer, Overwrite, Seed, Threads, use_threads
from invatlas.questions import COMMANDS as QUESTIONS
from invatlas.settings import PRIOR_NAMES, Settings, read_toml
from invatlas.terminal import (
    explained,
    note,
    say,
    show_agreement,
    show_audit,
    show_confounding,
    show_mapped,
    show_rows,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from invatlas.atlas import Atlas
    from invatlas.tasks.annotate import Calling
    from invatlas.tasks.map import Mapped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DEFAULTS = Settings()

COLUMN = "obs column, or column:continuous for a scale; may be repeated."


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


@app.command()
def fit(
    cells: Annotated[Path, typer.Argument(help="h5ad file with raw counts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the atlas.")],
    biological: Annotated[list[str] | None, typer.Option("--biological", "-b", help=COLUMN)] = None,
    technical: Annotated[list[str] | None, typer.Option("--technical", "-t", help=COLUMN)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with any setting, or the atlas.json of an earlier fit."),
    ] = None,
    hierarchy: Annotated[
        Path | None,
        typer.Option(help="TOML file: a table a column, coarse value = \\[finer values]."),
    ] = None,
    layer: Layer = None,
    genes: Annotated[
        int | None,
        typer.Option(help="Highly variable genes; 0 takes all.", show_default=str(DEFAULTS.genes)),
    ] = None,
    genes_file: Annotated[
        Path | None, typer.Option(help="Text file that names the genes, one a line.")
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help=f"negative_binomial, poisson or gaussian; {DEFAULTS.likelihood} by default."
        ),
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help=f"{', '.join(PRIOR_NAMES)}; {DEFAULTS.prior} by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Chosen from the data by default.")] = None,
    minibatch_size: Annotated[
        int | None, typer.Option(help="Cells in a step; chosen from the data by default.")
    ] = None,
    technical_in_decoder: Annotated[
        bool | None,
        typer.Option(
            help="Whether the decoder is told the technical values.",
            show_default=str(DEFAULTS.technical_in_decoder).lower(),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of every random choice.", show_default=str(DEFAULTS.seed)),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any other setting, as name=value; docs/settings.md lists them."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, help="Fit with so many seeds; keep the one nearest to the others."),
    ] = None,
    threads: Threads = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a study whose covariates are confounded.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Show in the report what the latents tell.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit an atlas to raw counts and write it, with its latents and a report."""
    start = time.perf_counter()
    with explained():
        run = read_run(config)
        flags = {
            "biological": biological,
            "technical": technical,
            "hierarchy": read_toml(hierarchy) if hierarchy else None,
            "layer": layer,
            "genes_file": str(genes_file) if genes_file else None,
            "genes": genes,
            "likelihood": likelihood,
            "prior": prior,
            "epochs": epochs,
            "minibatch_size": minibatch_size,
            "technical_in_decoder": technical_in_decoder,
            "seed": seed,
            **read_assignments(setting or []),
        }
        run |= {name: value for name, value in flags.items() if value is not None}
        settings = choose_settings({k: v for k, v in run.items() if k not in RUN_KEYS})
        refuse_output(output, overwrite)
        from invatlas.folders import check_target
        from invatlas.storage import ATLAS

        check_target(output.resolve(), ATLAS)
        adata = read_cells(cells)
        _check_design(adata, run)
        use_threads(threads)
        with interruptible(say) as interruption:
            atlas = _fit(adata, run, settings, strict, seeds)
            _write_fit(atlas, adata, output, cells.stem, interruption, audit)
        trained = atlas.record["training"]
        say(
            f"Fitted {adata.n_obs:,} cells x {len(atlas.genes):,} genes in "
            f"{time.perf_counter() - start:.0f} s ({trained['epochs']} epochs, "
            f"{trained['stopped']}; best {trained['best_epoch']})."
        )
        say(f"Wrote {output}; open {output / 'report.html'} in a browser.")
        if interruption.came:
            raise typer.Exit(STATUS)


@app.command("map")
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
        )
        adata.obs = mapped.cells.obs
        for name in mapped.cells.obsm:
            adata.obsm[name] = mapped.cells.obsm[name]
        write_cells(adata, output)
        show_mapped(mapped, [c.name for c in loaded.schema.called], calling.abstain_below)
        say(f"Wrote {adata.n_obs:,} cells to {output}.")
        if page:
            _write_query_report(page, loaded, mapped, calling, query.stem, atlas.resolve().name)
        if adapt and adapted:
            save(adapted, adapt, overwrite=overwrite)
            say(f"Wrote the adapted atlas to {adapt}; {atlas} is as it was.")


@app.command()
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


@app.command()
def info(atlas: Folder) -> None:
    """Say what an atlas holds."""
    with explained():
        from invatlas.atlas import outline
        from invatlas.data.confounding import VERDICTS
        from invatlas.storage import load
        from invatlas.tasks.summary import describe_calibration

        loaded = load(atlas)
        record = loaded.record
        rows = [
            *outline(loaded),
            ("held out", record["held_out"]),
            ("calls", describe_calibration(loaded)),
            *[
                (VERDICTS[row["kind"]], f"{row['biological']} and {row['beside']}")
                for row in record["confounding"]
            ],
            *[("warning", warning) for warning in record["warnings"]],
            ("created", record["created"]),
            ("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        ]
        show_rows(rows)


for command in CONTRASTS + QUESTIONS:
    app.command()(command)
app.add_typer(networks, name="grn")


@app.command()
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


def _fit(
    adata: AnnData, run: dict[str, Any], settings: Settings, strict: bool, seeds: int | None
) -> Atlas:
    from invatlas.atlas import fit as fit_atlas

    columns = run.get("biological", []), run.get("technical", [])
    choices: dict[str, Any] = {
        "hierarchy": run.get("hierarchy"),
        "layer": run.get("layer"),
        "genes": read_genes(run["genes_file"]) if "genes_file" in run else run.get("gene_names"),
        "settings": settings,
        "progress": True,
        "strict": strict,
    }
    if not seeds:
        return fit_atlas(adata, *columns, **choices)
    from invatlas.evaluate.consensus import fit_seeds

    atlas, agreed = fit_seeds(adata, *columns, seeds=seeds, **choices)
    show_agreement(agreed, atlas.settings.seed)
    return atlas


def _check_design(adata: AnnData, run: dict[str, Any]) -> None:
    from invatlas.data.confounding import VERDICTS, check_design

    findings = check_design(
        adata.obs, run.get("biological", []), run.get("technical", []), run.get("hierarchy")
    )
    show_confounding(findings, VERDICTS)


def _write_fit(
    atlas: Atlas, adata: AnnData, output: Path, title: str, interruption: Interruption, audit: bool
) -> None:
    from invatlas.folders import staged
    from invatlas.report.page import write_report
    from invatlas.storage import ATLAS, write_atlas
    from invatlas.tasks.map import map_cells
    from invatlas.tasks.summary import summarise

    interruption.stage = "layout"
    for warning in atlas.record["warnings"]:
        note(warning, "Warning")
    say("Laying cells out on a plane and writing the report.")
    mapped = map_cells(atlas, adata, layer=atlas.record["layer"], layout=True)
    told = None
    if audit:
        from invatlas.evaluate import leakage

        try:
            told = leakage(atlas, adata, layer=atlas.record["layer"])
        except InvatlasError as error:
            note(f"There is no audit. {error}", "Warning")
    interruption.stage = "writing"
    with staged(output, ATLAS) as folder:
        write_atlas(atlas, folder)
        mapped.cells.write_h5ad(folder / "latents.h5ad", compression="gzip")
        write_report(
            folder / "report.html",
            summary=summarise(atlas, mapped.cells.obs, title),
            latents=mapped.cells,
            history=atlas.history,
            warnings=atlas.record["warnings"],
            audit=told,
        )
        interruption.stage = "moving"


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
