"""A shell, as tests have it: what they ask of the command line, and what it says."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from invatlas.cli import app

QUICK = (
    "--set hidden=16 --set invariant_latents=2 --set spurious_latents=2 --epochs 2 --genes 0"
).split()
COLUMNS = "--biological cell_type --biological disease --technical donor".split()


def call(*arguments: object, status: int = 0) -> str:
    result: Result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"traceback for {arguments}") from result.exception
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def refuse(*arguments: object) -> str:
    """Call in vain; exactly one line says why."""
    said = call(*arguments, status=1)
    assert said.count("Error:") == 1
    return said
