"""What the terminal shows: sentences and tables; progress and warnings on the error stream."""

from __future__ import annotations

import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from invatlas.errors import InvatlasError, StudyWarning
from invatlas.interruption import NOTHING, STATUS
from invatlas.wording import count_noun

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from invatlas.data.findings import Finding
    from invatlas.grn.experiments import Experiments, SteadyState, Trajectory
    from invatlas.grn.network import Network
    from invatlas.tasks.map import Mapped
    from invatlas.tasks.states import States

Function = TypeVar("Function", bound=Callable[..., Any])
FLAGS = ("gene_column", "layer", "minimum_overlap")
MOST_FINDINGS = 12
MOST_EDGES = 10
AUDITED = (
    "Balanced accuracy of each probe, on donors it did not learn from where there are donors (in "
    "brackets: the 95 % quantile once values are exchanged, ? where no exchange could judge). Bold "
    "is above it and above guessing: the latents tell the covariate. Far below it, what the probe "
    "learnt does not hold for new donors."
)
screen = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def explained(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Turn our own errors into one line and an exit status.

    Functions name their arguments as Python does; those named here, and those that every command
    calls the same, are flags of the command, and are spelled so: ``bins=0`` is ``--bins 0``,
    ``bins is 1`` is ``--bins is 1``, ``strict=True`` is ``--strict``. A name that is no word of
    English, ``gene_column``, is one wherever it stands.
    """
    try:
        with warnings.catch_warnings():
            _hush()
            yield
    except InvatlasError as error:
        screen.print(
            f"[bold red]Error[/]: {escape(_spell_flags(str(error), (*FLAGS, *arguments)))}"
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        screen.print(NOTHING)
        raise typer.Exit(STATUS) from None


def command(app: typer.Typer, name: str | None = None) -> Callable[[Function], Function]:
    """Make a function a command; the list of commands says all of its first line, in two if need.

    typer itself cuts a line there.
    """

    def add(function: Function) -> Function:
        first = (function.__doc__ or "").splitlines()[0]
        app.command(name, short_help=first)(function)
        return function

    return add


def _hush() -> None:
    """Keep anndata from saying of each table what we say once, where it matters."""
    warnings.filterwarnings("ignore", "(Observation|Variable) names are not unique", UserWarning)


def _spell_flags(text: str, arguments: Sequence[str]) -> str:
    for name in arguments:
        flag = "--" + name.replace("_", "-")
        text = re.sub(rf"\b{name}=True\b", flag, text)
        text = re.sub(rf"\b{name}=('[^']*'|\"[^\"]*\")", partial(_quote_value, flag), text)
        text = re.sub(rf"\b{name}=['\"]?([^\s'\",;()]+)['\"]?", rf"{flag} \1", text)
        text = re.sub(rf"^{name} (?=is )", f"{flag} ", text)
        if "_" in name:
            text = re.sub(rf"(?<![\w'\"-]){name}\b(?![='\"])", flag, text)
    return text


def _quote_value(flag: str, found: re.Match[str]) -> str:
    return f"{flag} {shlex.quote(found[1][1:-1])}"


def say(text: str) -> None:
    """Print a line as it is: names from files may look like markup."""
    screen.print(escape(text))


def note(text: str, kind: str = "Note") -> None:
    """Print a line that wants attention."""
    screen.print(f"[yellow]{kind}[/]: {escape(text)}")


@contextmanager
def noted() -> Iterator[list[str]]:
    """Print the warnings of our own as notes, and keep them."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _hush()
        yield told
    for warning in caught:
        if warning.category is UserWarning and not told.count(str(warning.message)):
            told.append(str(warning.message))
            note(told[-1])


@contextmanager
def warned(told: list[str]) -> Iterator[None]:
    """Print what a fit warns of as soon as it does, unless it was told already, and add it."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, StudyWarning):
            before(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.append(str(message))
            note(told[-1], "Warning")

    with warnings.catch_warnings():
        warnings.simplefilter("always", StudyWarning)
        before, warnings.showwarning = warnings.showwarning, show
        yield


def show_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values as a table, on the output stream."""
    table = Table(show_header=False, box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)


def show_table(rows: pd.DataFrame) -> None:
    """Show rows under the names of their columns, on the output stream."""
    table = Table(*map(escape, rows.columns), box=None, padding=(0, 2, 0, 0))
    for row in rows.itertuples(index=False):
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else escape(str(v)) for v in row))
    Console(highlight=False).print(table)


def show_confounding(findings: Sequence[Finding], verdicts: Mapping[str, str]) -> None:
    """Show what of a design cannot be told; nothing where there is nothing to say."""
    if not findings:
        return
    table = Table("columns", "verdict", "what cannot be told", box=None, padding=(0, 2, 0, 0))
    for finding in findings[:MOST_FINDINGS]:
        colour = "yellow" if finding.alarm else "dim"
        columns = f"{finding.biological} and {finding.beside}"
        verdict = f"[{colour}]{verdicts[finding.kind]}[/]"
        table.add_row(escape(columns), verdict, escape(finding.sentence))
    screen.print(table, soft_wrap=False)
    if (left := len(findings) - MOST_FINDINGS) > 0:
        say(f"And {left} more, in the report.")


def show_audit(found: pd.DataFrame) -> None:
    """Show scores beside the null's 95 % quantile, bold above it; ? where none can be judged."""
    say(AUDITED)
    probes = list(dict.fromkeys(found["probe"]))
    table = Table("covariate", "latents", "given", *probes, box=None, padding=(0, 2, 0, 0))
    for (name, latents), rows in found.groupby(["covariate", "latents"], sort=False):
        scores = [_say_score(row) for row in rows.to_dict("records")]
        table.add_row(escape(name), latents, escape(rows["given"].iloc[0]), *scores)
    Console(highlight=False).print(table)
    notes = found[found["note"].fillna("") != ""].groupby("covariate", sort=False)["note"]
    for name, kinds in notes.unique().items():
        for told in kinds:
            note(f"{name}: {told}.")


def _say_score(row: Mapping[str, Any]) -> str:
    score, null = row["score"], row["null_95"]
    if score != score:
        return "[dim]no answer[/]"
    if not row["judged"]:
        return f"{score:.2f} [dim](?)[/]"
    style = "bold" if score > max(null, row["chance"]) else "none"
    return f"[{style}]{score:.2f}[/] [dim]({null:.2f})[/]"


def show_mapped(mapped: Mapped, called: Sequence[str], abstain_below: float) -> None:
    """Say how the genes met, what was flagged and what the new states are."""
    say(mapped.overlap.describe())
    for told in mapped.notes:
        note(told)
    obs = mapped.cells.obs
    n_new = int(obs["novelty_flag"].sum())
    say(
        f"{count_noun(n_new, 'cell')} {'is' if n_new == 1 else 'are'} flagged as new, "
        f"{obs['abstained'].sum():,} in all are not called."
    )
    if obs["abstained"].any() and len(called) > 1:
        sure = [
            f"{name} of {(obs[f'predicted_{name}_probability'] >= abstain_below).sum():,}"
            for name in called
        ]
        say(f"Called one by one with at least {abstain_below:g}: {', '.join(sure)} cells.")
    for state in mapped.states.table.to_dict("records") if mapped.states else []:
        say(
            f"{state['group']}: {count_noun(state['cells'], 'new cell')}, nearest to "
            f"{state['nearest']} ({100 * state['share']:.1f} % of them called so); "
            f"markers {state['markers'] or 'none'}."
        )


def show_states(found: States) -> None:
    """Say of each state how large and how stable it is, which diseases share it, and why not."""
    table = Table(
        "state", "cells", "stability", "more in", "markers", box=None, padding=(0, 2, 0, 0)
    )
    for row in found.table.to_dict("records"):
        numbers = f"{row['cells']:,}", f"{row['stability']:.2f}"
        table.add_row(row["state"], *numbers, escape(row["diseases"]), escape(row["markers"]))
    Console(highlight=False).print(table)
    _say_who_is_named(found)


def _say_who_is_named(found: States) -> None:
    """Say when a disease is named beside a state, and which were left out for the size alone."""
    from invatlas.tasks.states import FALSE_DISCOVERY_RATE, LEAST_DIFFERENCE

    say(
        f"More in: diseases that have at least {100 * LEAST_DIFFERENCE:g} points more of their "
        f"donors' cells in the state than the reference, at an FDR of {FALSE_DISCOVERY_RATE:g}; "
        "smaller differences can come from the fit alone."
    )
    shares = found.shares
    more = shares["share"] - shares["reference_share"]
    clear = shares["false_discovery_rate"] <= FALSE_DISCOVERY_RATE
    for row in shares[clear & (more > 0) & (more < LEAST_DIFFERENCE)].to_dict("records"):
        note(
            f"{row['state']} is not said to be more in {row['disease']}, for its size alone: "
            f"{100 * row['share']:.1f} % against {100 * row['reference_share']:.1f} % "
            f"(FDR {row['false_discovery_rate']:.1g})."
        )


def show_experiments(experiments: Experiments, adata: AnnData) -> None:
    """Say what the rows of a network's data became."""
    from invatlas.grn.experiments import GIVEN

    scale = "" if experiments.scale == GIVEN else f", as {experiments.scale}"
    say(f"Read {count_noun(adata.n_obs, 'row')} x {adata.n_vars:,} genes{scale}.")
    if found := experiments.trajectories:
        points = [len(series.times) for series in found]
        cells = sum(int(series.cells.sum()) for series in found)
        many = f"{min(points)}" if min(points) == max(points) else f"{min(points)} to {max(points)}"
        of = f", means of {cells:,} rows" if cells > sum(points) else ""
        say(f"{len(found):,} series of {many} times{of}{_count_kinds(found)}.")
        if upset := sum(series.perturbed for series in found):
            say(f"In {upset:,} of them unknown genes may be perturbed during the first half.")
    if experiments.steady:
        states = count_noun(len(experiments.steady), "steady state")
        say(f"{states}{_count_kinds(experiments.steady)}.")
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


def show_network(network: Network) -> None:
    """Show the strongest edges, and genes that interventions moved without meaning to."""
    from invatlas.grn.network import list_edges
    from invatlas.grn.off_targets import SURE

    listed = list_edges(network)
    shown, possible = min(MOST_EDGES, len(listed)), count_noun(len(listed), "possible edge")
    say(f"The {shown} strongest of {possible}, by the size of the weight, whatever its sign:")
    show_table(listed.head(MOST_EDGES))
    if found := len(network.off_targets):
        sure = int((network.off_targets["verdict"] == SURE).sum())
        them = "it" if found == 1 else "them"
        say(
            f"{count_noun(found, 'gene')} may have been moved by interventions not meant for "
            f"{them}; {sure} surely, in others a steep edge looks the same:"
        )
        show_table(network.off_targets.head(MOST_EDGES))
    elif len(network.strengths):
        say("No intervention is found to have moved a gene that it was not meant for.")
