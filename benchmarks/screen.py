"""A simulated screen of knockouts and knockdowns, three of which hit a gene nobody meant.

    dy_g/dt = w_g f_g(y) - y_g,   f_g = mean of fAct(y_r) over activators, 1 - fAct(y_r) over
                                  repressors; 0.4 to 1 where a gene has no regulator

with w and fAct as in phoenix.py. Each of 40 genes has none to three regulators, rings allowed. All
genes are knocked out and knocked down once, three wild types and five series in time are measured,
with noise. In three knockouts a second gene is lowered to a third: their off-targets.
"""

from __future__ import annotations

import ast

import anndata as ad
import numpy as np
import pandas as pd
from phoenix import Formula, Simulator, read_formula

GENES, NOISE, SERIES = 40, 0.02, 5
TIMES = np.linspace(0, 6, 13)
DOSES = {"knockout": 0.0, "knockdown": 0.5}
OFF_TARGETS, OFF_TARGET_STRENGTH = 3, 1 / 3


def draw_simulator(seed: int) -> Simulator:
    """Draw a network with formulas."""
    rng = np.random.default_rng(seed)
    genes = [f"g{j:02d}" for j in range(GENES)]
    place = {gene: j for j, gene in enumerate(genes)}
    signs, formulas = np.zeros((GENES, GENES)), {}
    for target in range(GENES):
        others = np.delete(np.arange(GENES), target)
        regulators = rng.choice(others, rng.choice(4, p=[0.15, 0.4, 0.3, 0.15]), replace=False)
        parts = []
        for regulator in regulators:
            signs[regulator, target] = sign = rng.choice([-1, 1], p=[0.35, 0.65])
            half, n = rng.uniform(0.4, 0.6), rng.uniform(1.4, 1.8)
            activity = f"fAct({genes[regulator]}, {half}, {n})"
            parts.append(activity if sign > 0 else f"(1 - {activity})")
        production = f"({' + '.join(parts)}) / {len(parts)}" if parts else f"{rng.uniform(0.4, 1)}"
        formulas[target] = _read(f"{production} - {genes[target]}", place)
    return Simulator(genes, formulas, signs != 0, signs)


def simulate_screen(seed: int = 0) -> tuple[ad.AnnData, Simulator, dict[str, int]]:
    """Rows for :func:`read_experiments`, the simulator, and off-targets by name of row."""
    simulator = draw_simulator(seed)
    rng = np.random.default_rng(seed + 1)
    wild = simulator.rest(np.full((1, GENES), 0.5))
    rows, obs, planted = [wild] * 3, [("wildtype", "none", "", np.nan)] * 3, {}
    hit = rng.choice(GENES, OFF_TARGETS, replace=False)
    for kind, dose in DOSES.items():
        for gene, name in enumerate(simulator.genes):
            strength = np.ones(GENES)
            strength[gene] = dose
            if kind == "knockout" and gene in hit:
                off_target = rng.choice(np.flatnonzero((wild[0] > 0.3) & (strength == 1)))
                strength[off_target] = OFF_TARGET_STRENGTH
                planted[f"row{len(rows):03d}"] = int(off_target)
            rows.append(simulator.rest(wild, strength))
            obs.append((kind, name, "", np.nan))
    for k in range(SERIES):
        rows.append(simulator.follow(rng.random((1, GENES)), TIMES)[0])
        obs += [("wildtype", "none", f"series{k}", t) for t in TIMES]
    y = np.vstack(rows)
    names = [f"row{i:03d}" for i in range(len(y))]
    columns = ["experiment", "target", "series", "time"]
    adata = ad.AnnData(
        y + rng.normal(0, NOISE, y.shape),
        obs=pd.DataFrame(obs, index=names, columns=columns),
        var=pd.DataFrame(index=simulator.genes),
    )
    return adata, simulator, planted


def _read(text: str, place: dict[str, int]) -> Formula:
    return read_formula(ast.parse(text, mode="eval").body, place)
