"""The command line: one subcommand, one public function.

    invatlas fit       fit an atlas to raw counts
    invatlas map       bring new cells into an atlas
    invatlas audit     say what the latents tell of each covariate
    invatlas info      say what an atlas holds
    invatlas simulate  write a study whose truth is known

Exit status: 0 done, 1 a mistake that is explained, 2 a wrong flag, 130 interrupted.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
from invatlas.interruption import NOTHING, STATUS, Interruption, interruptible
from invatlas.settings import Settings, read_toml

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from invatlas.atlas import Atlas
    from invatlas.tasks.annotate import Calling
    from invatlas.tasks.map import Mapped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
screen = Console(stderr=True, highlight=False, soft_wrap=True)
DEFAULTS = Settings()

Layer = Annotated[str | None, typer.Option(help="Layer that holds the raw counts; X by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
MOST_FINDINGS = 12
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; all by default.")]
COLUMN = "obs column, or column:continuous for a scale; may be repeated."
RUN_KEYS = ("biological", "technical", "hierarchy", "layer", "genes_file", "gene_names")


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
            "epochs": epochs,
            "minibatch_size": minibatch_size,
            "technical_in_decoder": technical_in_decoder,
            "seed": seed,
            **_read_assignments(setting or []),
        }
        run |= {name: value for name, value in flags.items() if value is not None}
        settings = _choose_settings({k: v for k, v in run.items() if k not in RUN_KEYS})
        refuse_output(output, overwrite)
        from invatlas.storage import check_target

        check_target(output.resolve())
        adata = read_cells(cells)
        _say_what_is_confounded(adata, run)
        _use_threads(threads)
        with interruptible(_say) as interruption:
            atlas = _fit(adata, run, settings, strict)
            _write_fit(atlas, adata, output, cells.stem, interruption, audit)
        trained = atlas.record["training"]
        _say(
            f"Fitted {adata.n_obs:,} cells x {len(atlas.genes):,} genes in "
            f"{time.perf_counter() - start:.0f} s ({trained['epochs']} epochs, "
            f"{trained['stopped']}; best {trained['best_epoch']})."
        )
        _say(f"Wrote {output}; open {output / 'report.html'} in a browser.")
        if interruption.came:
            raise typer.Exit(STATUS)


@app.command("map")
def map_query(
    atlas: Annotated[Path, typer.Argument(help="Folder of an atlas.")],
    query: Annotated[Path, typer.Argument(help="h5ad file with raw counts of new cells.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write.")],
    layer: Layer = None,
    gene_column: Annotated[
        str | None, typer.Option(help="Column of var with gene names; var_names by default.")
    ] = None,
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
        from invatlas.storage import check_target, load, save
        from invatlas.tasks.adapt import adapt as adapt_atlas
        from invatlas.tasks.annotate import Calling
        from invatlas.tasks.map import map_cells

        calling = Calling(
            _read_given(given or []), label_prior, abstain_below, false_discovery_rate
        )
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
            check_target(adapt.resolve())
            if adapt.resolve() == atlas.resolve():
                raise SettingsError("--adapt takes another folder than the atlas's own.")
        _use_threads(threads)
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
        _say_what_was_found(mapped)
        _say(f"Wrote {adata.n_obs:,} cells to {output}.")
        if page:
            _write_query_report(page, loaded, mapped, calling, query.stem, atlas.resolve().name)
        if adapt and adapted:
            save(adapted, adapt, overwrite=overwrite)
            _say(f"Wrote the adapted atlas to {adapt}; {atlas} is as it was.")


@app.command()
def audit(
    atlas: Annotated[Path, typer.Argument(help="Folder of an atlas.")],
    cells: Annotated[Path, typer.Argument(help="h5ad file with raw counts and covariates.")],
    layer: Layer = None,
    gene_column: Annotated[
        str | None, typer.Option(help="Column of var with gene names; var_names by default.")
    ] = None,
    most_cells: Annotated[int, typer.Option(help="Cells to look at, at most.")] = 2500,
    permutations: Annotated[int, typer.Option(help="Exchanges behind each null.")] = 39,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
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
        _show_audit(found)
        if keep:
            write_text(found.to_json(orient="records", indent=1), keep)
            _say(f"Wrote {len(found)} answers to {keep}.")


@app.command()
def info(atlas: Annotated[Path, typer.Argument(help="Folder of an atlas.")]) -> None:
    """Say what an atlas holds."""
    with explained():
        from invatlas.atlas import outline
        from invatlas.data.confounding import VERDICTS
        from invatlas.storage import load
        from invatlas.tasks.summary import describe_calibration

        loaded = load(atlas)
        record = loaded.record
        table = Table(show_header=False, box=None)
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
        for row in rows:
            table.add_row(*map(escape, row))
        Console(highlight=False).print(table)


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
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
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
            seed=seed,
        )
        parts = {output: adata}
        if query:
            parts = dict(zip((output, query), split_off(adata), strict=True))
        for place, part in parts.items():
            write_cells(part, place)
            _say(f"Wrote {part.n_obs:,} cells x {part.n_vars:,} genes to {place}.")


@contextmanager
def explained() -> Iterator[None]:
    """Turn our own errors into one line and an exit status."""
    try:
        yield
    except InvatlasError as error:
        screen.print(f"[bold red]Error[/]: {escape(str(error))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        screen.print(NOTHING)
        raise typer.Exit(STATUS) from None


def _use_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _fit(adata: AnnData, run: dict[str, Any], settings: Settings, strict: bool) -> Atlas:
    from invatlas.atlas import fit as fit_atlas

    return fit_atlas(
        adata,
        run.get("biological", []),
        run.get("technical", []),
        hierarchy=run.get("hierarchy"),
        layer=run.get("layer"),
        genes=read_genes(run["genes_file"]) if "genes_file" in run else run.get("gene_names"),
        settings=settings,
        progress=True,
        strict=strict,
    )


def _say_what_is_confounded(adata: AnnData, run: dict[str, Any]) -> None:
    from invatlas.data.confounding import VERDICTS, check_design

    findings = check_design(
        adata.obs, run.get("biological", []), run.get("technical", []), run.get("hierarchy")
    )
    if not findings:
        return
    table = Table("columns", "verdict", "what cannot be told", box=None, padding=(0, 2, 0, 0))
    for finding in findings[:MOST_FINDINGS]:
        colour = "yellow" if finding.alarm else "dim"
        columns = f"{finding.biological} and {finding.beside}"
        verdict = f"[{colour}]{VERDICTS[finding.kind]}[/]"
        table.add_row(escape(columns), verdict, escape(finding.sentence))
    screen.print(table, soft_wrap=False)
    if (left := len(findings) - MOST_FINDINGS) > 0:
        _say(f"And {left} more, in the report.")


def _show_audit(found: pd.DataFrame) -> None:
    """Show each score beside the null's 95 % quantile, in bold where it lies above."""
    probes = list(dict.fromkeys(found["probe"]))
    table = Table("covariate", "latents", "given", *probes, box=None, padding=(0, 2, 0, 0))
    for (name, latents), rows in found.groupby(["covariate", "latents"], sort=False):
        numbers = zip(rows["score"], rows["null_95"], rows["chance"], strict=True)
        scores = [_say_score(*three) for three in numbers]
        table.add_row(escape(name), latents, escape(rows["given"].iloc[0]), *scores)
    Console(highlight=False).print(table)
    notes = found[found["note"].fillna("") != ""].groupby("covariate", sort=False)["note"]
    for name, kinds in notes.unique().items():
        for note in kinds:
            screen.print(f"[yellow]Note[/]: {escape(f'{name}: {note}')}.")


def _say_score(score: float, null: float, chance: float) -> str:
    if score != score:
        return "[dim]no answer[/]"
    style = "bold" if score > max(null, chance) else "none"
    return f"[{style}]{score:.2f}[/] [dim]({null:.2f})[/]"


def _write_fit(
    atlas: Atlas, adata: AnnData, output: Path, title: str, interruption: Interruption, audit: bool
) -> None:
    from invatlas.report.page import write_report
    from invatlas.storage import staged, write_atlas
    from invatlas.tasks.map import map_cells
    from invatlas.tasks.summary import summarise

    interruption.stage = "layout"
    for warning in atlas.record["warnings"]:
        screen.print(f"[yellow]Warning[/]: {escape(warning)}")
    screen.print("Laying cells out on a plane and writing the report.")
    mapped = map_cells(atlas, adata, layer=atlas.record["layer"], layout=True)
    told = None
    if audit:
        from invatlas.evaluate import leakage

        told = leakage(atlas, adata, layer=atlas.record["layer"])
    interruption.stage = "writing"
    with staged(output) as folder:
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


def _say(text: str) -> None:
    """Print a line as it is: names from files may look like markup."""
    screen.print(escape(text))


def _say_what_was_found(mapped: Mapped) -> None:
    _say(mapped.overlap.describe())
    for note in mapped.notes:
        screen.print(f"[yellow]Note[/]: {escape(note)}")
    obs = mapped.cells.obs
    _say(
        f"{obs['novelty_flag'].sum():,} cells are flagged as new, "
        f"{obs['abstained'].sum():,} in all are not called."
    )
    for state in mapped.states.table.to_dict("records") if mapped.states else []:
        _say(
            f"{state['group']}: {state['cells']} new cells, nearest to {state['nearest']}; "
            f"markers {state['markers'] or 'none'}."
        )


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
    _say(f"Wrote {page}; open it in a browser.")


def _choose_settings(values: dict[str, Any]) -> Settings:
    """Change the defaults; a name that is nearly a setting's is answered with that one."""
    known = [field.name for field in fields(Settings)]
    for name in sorted(set(values) - set(known)):
        if close := difflib.get_close_matches(name, [*known, *RUN_KEYS], n=1):
            raise SettingsError(f"Unknown setting {name}; did you mean {close[0]}?")
    return DEFAULTS.changed(values)


def _read_assignments(assignments: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in _split_assignments("--set", assignments):
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _read_given(assignments: list[str]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in _split_assignments("--given", assignments):
        given.setdefault(name, []).append(value.strip())
    return given


def _split_assignments(flag: str, assignments: list[str]) -> Iterator[tuple[str, str]]:
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"{flag} {assignment!r} has no value; write it as name=value.")
        yield name.strip(), text
