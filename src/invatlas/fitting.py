"""The command that fits an atlas: what is asked, what is told before, what is written after."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invatlas.assignments import GENE_LISTS, RUN_KEYS, choose_settings, read_assignments
from invatlas.errors import InvatlasError, SettingsError
from invatlas.files import read_cells, read_genes, read_run, refuse_output
from invatlas.interruption import STATUS, Interruption, interruptible
from invatlas.options import GeneColumn, Layer, Overwrite, Threads, use_threads
from invatlas.settings import PRIOR_NAMES, Settings, read_toml
from invatlas.terminal import explained, note, say, show_confounding, warned
from invatlas.wording import count_noun

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from invatlas.atlas import Atlas

DEFAULTS = Settings()
COLUMN = "obs column, or column:continuous for a scale; may be repeated."


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
        typer.Option(help="TOML file: a table a column, coarse value = [finer values]."),
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
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
        typer.Option("--set", help="Any other setting, as name=value; a wrong name lists them."),
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
        bool,
        typer.Option(
            "--audit",
            help="Show in the report what the latents tell, of held-out donors if enough.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit an atlas to raw counts and write it, with its latents and a report."""
    start = time.perf_counter()
    with explained(("strict",)):
        flags = {
            "biological": biological,
            "technical": technical,
            "hierarchy": read_toml(hierarchy) if hierarchy else None,
            "layer": layer,
            "gene_column": gene_column,
            "genes_file": str(genes_file) if genes_file else None,
            "genes": genes,
            "likelihood": likelihood,
            "prior": prior,
            "epochs": epochs,
            "minibatch_size": minibatch_size,
            "technical_in_decoder": technical_in_decoder,
            "seed": seed,
        }
        run = _choose_run(config, setting or [], flags)
        settings = choose_settings({k: v for k, v in run.items() if k not in RUN_KEYS})
        refuse_output(output, overwrite)
        from invatlas.folders import check_target
        from invatlas.storage import ATLAS

        check_target(output.resolve(), ATLAS)
        adata = read_cells(cells)
        told = _check_design(adata, run)
        use_threads(threads)
        with interruptible(say) as interruption:
            with warned(told):
                atlas = _fit(adata, run, settings, strict, seeds)
            interruption.stage = "layout"
            for warning in atlas.record["warnings"]:
                if warning not in told:
                    note(warning, "Warning")
            _write_fit(atlas, adata, output, cells.stem, interruption, audit)
        trained = atlas.record["training"]
        say(
            f"Fitted {adata.n_obs:,} cells x {len(atlas.genes):,} genes in "
            f"{time.perf_counter() - start:.0f} s ({count_noun(trained['epochs'], 'epoch')}, "
            f"{trained['stopped']}; best {trained['best_epoch']})."
        )
        say(f"Wrote {output}; open {output / 'report.html'} in a browser.")
        if interruption.came:
            raise typer.Exit(STATUS)


def _choose_run(
    config: Path | None, assignments: list[str], flags: dict[str, Any]
) -> dict[str, Any]:
    """What to fit and how: a flag is nearer than ``--set``, and that nearer than the config.

    How many genes, and which, are one choice: the nearest that makes it undoes the others'.
    """
    run = read_run(config)
    given = {name: value for name, value in flags.items() if value is not None}
    for told in (read_assignments(assignments), given):
        listed = not told.keys().isdisjoint(GENE_LISTS)
        if listed and "genes" in told:
            raise SettingsError(
                "--genes says how many genes to choose, --genes-file which to take; give one of "
                "them."
            )
        if listed or "genes" in told:
            run = {name: value for name, value in run.items() if name not in GENE_LISTS}
        run |= told
    return run


def _fit(
    adata: AnnData, run: dict[str, Any], settings: Settings, strict: bool, seeds: int | None
) -> Atlas:
    from invatlas.atlas import fit as fit_atlas

    columns = run.get("biological", []), run.get("technical", [])
    file = run.get("genes_file")
    choices: dict[str, Any] = {
        "hierarchy": run.get("hierarchy"),
        "layer": run.get("layer"),
        "gene_column": run.get("gene_column"),
        "genes": run.get("gene_names") if file is None else read_genes(file),
        "settings": settings,
        "progress": True,
        "strict": strict,
    }
    if not seeds:
        return fit_atlas(adata, *columns, **choices)
    from invatlas.evaluate.consensus import fit_seeds
    from invatlas.tasks.summary import describe_agreement

    atlas, _ = fit_seeds(adata, *columns, seeds=seeds, **choices)
    if told := describe_agreement(atlas):
        say(told)
    return atlas


def _check_design(adata: AnnData, run: dict[str, Any]) -> list[str]:
    """Show what cannot be told, and return the sentences."""
    from invatlas.data.confounding import check_design
    from invatlas.data.findings import VERDICTS

    findings = check_design(
        adata.obs, run.get("biological", []), run.get("technical", []), run.get("hierarchy")
    )
    show_confounding(findings, VERDICTS)
    return [finding.sentence for finding in findings]


def _write_fit(
    atlas: Atlas, adata: AnnData, output: Path, title: str, interruption: Interruption, audit: bool
) -> None:
    from invatlas.folders import staged
    from invatlas.report.page import write_report
    from invatlas.storage import ATLAS, write_atlas
    from invatlas.tasks.map import map_cells
    from invatlas.tasks.summary import summarise

    say("Laying cells out on a plane and writing the report.")
    mapped = map_cells(atlas, adata, **_reading(atlas), layout=True)
    told, unseen = _audit(atlas, adata) if audit else (None, False)
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
            unseen=unseen,
        )
        interruption.stage = "moving"


def _reading(atlas: Atlas) -> dict[str, Any]:
    """Where the fit found counts and names of genes."""
    return {name: atlas.record[name] for name in ("layer", "gene_column")}


def _audit(atlas: Atlas, adata: AnnData) -> tuple[pd.DataFrame | None, bool]:
    """Audit donors held out of the fit if they answer every question to z_I, else all cells.

    Gives the table, if there is one, and whether its cells were held out.
    """
    from invatlas.evaluate import leakage
    from invatlas.training.split import draw_split

    read, codes = _reading(atlas), atlas.schema.encode(adata.obs)
    split = draw_split(*atlas.schema.keep_categories(*codes), atlas.settings)  # as the fit did
    try:
        if split.covariate is not None:
            told = leakage(atlas, adata[split.held_out], **read)
            if told.loc[told["latents"] == "invariant", "judged"].all():
                say(f"The audit asks {len(split.held_out):,} cells of donors held out of the fit.")
                return told, True
        told = leakage(atlas, adata, **read)
    except InvatlasError as error:
        note(f"There is no audit. {error}", "Warning")
        return None, False
    note(
        "The audit asks cells the atlas was fitted to, since too few donors were held out: "
        "new donors may be told more. invatlas audit asks cells of your own."
    )
    return told, False
