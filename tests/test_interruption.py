"""Ctrl-C in a fit, as a shell would send it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import invatlas as ia
from shell import COLUMNS, QUICK

# Writes a line at the end of an epoch, so that a signal can be sent at a known time.
TELLING = """
import sys, time
from invatlas import cli
from invatlas.tasks import map
from invatlas.training import loop
original, seen = {place}, [0]

def telling(*args, **kwargs):
    seen[0] += 1
    if seen[0] == {number}:
        print("NOW", flush=True)
    time.sleep(0.05)
    return original(*args, **kwargs)

{place} = telling
sys.argv[0] = "invatlas"
cli.app()
"""


def interrupt_at(
    number: int, *arguments: object, place: str = "loop.objective_terms", times: int = 1
) -> tuple[int, str]:
    """Send SIGINT when the number-th minibatch is looked at."""
    code = TELLING.format(place=place, number=number)
    run = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # where the tests run in the background of a shell, SIGINT is ignored, also by children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    assert run.stdout.readline().strip() == "NOW"
    for _ in range(times):
        run.send_signal(signal.SIGINT)
        time.sleep(0.02 if times > 1 else 0)
    _, said = run.communicate(timeout=120)
    return run.returncode, said


def test_ctrl_c_after_the_first_epoch_leaves_a_usable_atlas(cells: Path, tmp_path: Path) -> None:
    flags = (*QUICK[:-4], "--genes", 0, "--epochs", 400, "--minibatch-size", 100)
    status, said = interrupt_at(9, "fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *flags)
    assert status == 130, said
    assert "Traceback" not in said
    assert said.count("Interrupted: keeping what was learnt") == 1
    assert (
        "The calibration on values of donor that training never met was left out, since the fit "
        "was interrupted; calls are"
    ) in said
    atlas = ia.load(tmp_path / "atlas")
    assert atlas.record["training"]["stopped"] == "interrupted"
    assert 1 <= len(atlas.history) < 400
    assert np.isfinite(ia.embed(atlas, ad.read_h5ad(cells))).all()
    assert (tmp_path / "atlas" / "report.html").exists()


@pytest.mark.parametrize("place", ["loop.objective_terms", "map.lay_out"])
def test_a_second_ctrl_c_quits_at_once(cells: Path, tmp_path: Path, place: str) -> None:
    flags = (*QUICK[:-4], "--genes", 0, "--epochs", 9, "--minibatch-size", 100)
    number = 9 if place == "loop.objective_terms" else 1
    asked = ("fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *flags)
    status, said = interrupt_at(number, *asked, place=place, times=2)
    assert status == 130, said
    assert "Traceback" not in said and said.count("nothing was written") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_the_end_of_the_first_epoch_leaves_nothing(
    cells: Path, tmp_path: Path
) -> None:
    flags = (*QUICK[:-4], "--genes", 0, "--epochs", 400, "--minibatch-size", 20)
    status, said = interrupt_at(2, "fit", cells, *COLUMNS, "-o", tmp_path / "atlas", *flags)
    assert status == 130, said
    assert "Traceback" not in said and "nothing was written" in said
    assert list(tmp_path.iterdir()) == []
