"""The simulator of 350 yeast genes that PHOENIX was tested on, regenerated from its formulas.

    dy_g/dt = w_g f_g(y) - y_g        w_g = 1 but where a gene is knocked out (0) or down (1/2)
    f_g       sums and products of      fAct(x; e, n) = b x^n / (k + x^n),
              b = (e^n - 1) / (2 e^n - 1),  k = b - 1,  so that fAct(e) = 1/2 and fAct(1) = 1
    inputs    genes without a formula: constant in a series

The normalised Hill function is that of Kraeutler et al. 2010 (BMC Syst Biol 4:157), the formulas
are Hossain et al. 2024 (Genome Biol 25:127), made with the simulator of Bhuva et al. 2019 (Genome
Biol 20:236). A formula is read by a grammar of its own: names of genes, numbers, + - * / and fAct.

    python benchmarks/phoenix.py        # what the formulas hold, and how long a simulation takes
"""

from __future__ import annotations

import ast
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import data_folder

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
STEP = 0.05
Formula = Callable[[np.ndarray], np.ndarray]  # expression (series, gene) to (series,)


@dataclass(frozen=True)
class Simulator:
    """Formulas and true edges.

    Attributes
    ----------
    genes
        Names, in alphabetical order.
    formulas
        dy/dt of each gene that has one, by its place.
    edges
        True edges (regulator, target).
    signs
        +1 where the regulator raises the target, -1 where it lowers it, 0 elsewhere.
    """

    genes: list[str]
    formulas: dict[int, Formula]
    edges: np.ndarray
    signs: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """Mask (gene,) of the genes without a formula."""
        return ~np.isin(np.arange(len(self.genes)), list(self.formulas))

    def slope(self, y: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """dy/dt (series, gene), production being scaled by ``strength`` (gene,)."""
        found = np.zeros_like(y)
        for gene, formula in self.formulas.items():
            found[:, gene] = strength[gene] * (formula(y) + y[:, gene]) - y[:, gene]
        return found

    def follow(
        self, start: np.ndarray, times: np.ndarray, strength: np.ndarray | None = None
    ) -> np.ndarray:
        """Expression (series, time, gene) from ``start`` (series, gene), by Runge-Kutta steps.

        Inputs keep what ``start`` says, scaled by ``strength``.
        """
        strength = np.ones(len(self.genes)) if strength is None else strength
        y = np.where(self.inputs, start * strength, start)
        found = [y]
        for gap in np.diff(times):
            steps = max(1, round(gap / STEP))
            h = gap / steps
            for _ in range(steps):
                a = self.slope(y, strength)
                b = self.slope(y + h / 2 * a, strength)
                c = self.slope(y + h / 2 * b, strength)
                d = self.slope(y + h * c, strength)
                y = y + h / 6 * (a + 2 * b + 2 * c + d)
            found.append(y)
        return np.stack(found, 1)

    def rest(self, start: np.ndarray, strength: np.ndarray | None = None) -> np.ndarray:
        """Expression (series, gene) after 40 decay times, from ``start``."""
        return self.follow(start, np.array([0.0, 40.0]), strength)[:, -1]


def load_simulator() -> Simulator:
    """Read formulas, and the signs of their edges from the table.

    The table lists three edges (REB1 to SIN3, GLN3 to FUR4, UME6 to GAL1) that no formula holds:
    the formulas make the data, so those are no edges.

    Raises
    ------
    SystemExit
        If the table lacks an edge, or a formula holds anything but what the grammar allows.
    """
    folder = data_folder() / "grn"
    equations = pd.read_csv(folder / "phoenix_ode_system_functions_350.csv.gz")
    table = pd.read_csv(folder / "phoenix_edge_properties_G350.csv.gz")
    genes = sorted(equations["node"])
    place = {gene: j for j, gene in enumerate(genes)}
    formulas, met = {}, set()
    for gene, text in zip(equations["node"], equations["eqn"], strict=True):
        if text != "input gene":
            tree = ast.parse(text, mode="eval").body
            formulas[place[gene]] = read_formula(tree, place)
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            met |= {(name, gene) for name in names - {gene, "fAct"}}
    pairs = zip(table["from"], table["to"], strict=True)
    sign_of = dict(zip(pairs, np.where(table["activation"], 1.0, -1.0), strict=True))
    if unknown := met - set(sign_of):
        raise SystemExit(f"the table of the simulator lacks the edges {sorted(unknown)}")
    signs = np.zeros((len(genes), len(genes)))
    for regulator, target in met:
        signs[place[regulator], place[target]] = sign_of[regulator, target]
    return Simulator(genes, formulas, signs != 0, signs)


def read_formula(node: ast.expr, place: dict[str, int]) -> Formula:
    """Turn the tree of a formula into a function of expression; nothing in it is executed."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return lambda y: value
        case ast.Name(id=name) if name in place:
            return lambda y: y[:, place[name]]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            one, other = read_formula(left, place), read_formula(right, place)
            apply = OPERATIONS[type(op)]
            return lambda y: apply(one(y), other(y))
        case ast.Call(
            func=ast.Name(id="fAct"),
            args=[source, ast.Constant(value=float(half)), ast.Constant(value=float(n))],
            keywords=[],
        ):
            x = read_formula(source, place)
            b = (half**n - 1) / (2 * half**n - 1)
            return lambda y: b * x(y) ** n / (b - 1 + x(y) ** n)
    raise SystemExit(
        f"a formula of the simulator holds {ast.unparse(node)!r}, which is not allowed"
    )


def simulate_series(
    simulator: Simulator, series: int, times: np.ndarray, noise: float, seed: int
) -> np.ndarray:
    """Noisy expression (series, time, gene) from random starts between 0 and 1."""
    rng = np.random.default_rng(seed)
    y = simulator.follow(rng.random((series, len(simulator.genes))), times)
    return y + rng.normal(0, noise, y.shape)


def main() -> None:
    """Say what the formulas hold and simulate once."""
    simulator = load_simulator()
    print(
        f"{len(simulator.genes)} genes, {simulator.inputs.sum()} of them inputs; "
        f"{simulator.edges.sum()} edges, {(simulator.signs < 0).sum()} of them negative"
    )
    start = time.perf_counter()
    y = simulate_series(simulator, 40, np.linspace(0, 5, 11), 0.0, 0)
    seconds = time.perf_counter() - start
    print(f"{y.shape} in {seconds:.1f} s; expression from {y.min():.3f} to {y.max():.3f}")
    late = simulator.rest(y[:, -1])
    print(f"largest slope at rest {np.abs(simulator.slope(late, np.ones(350))).max():.1e}")
    lifted = y[:, -1][:, None].repeat(2, 1)
    for (regulator, target), sign in np.ndenumerate(simulator.signs):
        if sign:  # a regulator moved up moves its target the way its sign says
            lifted[:, 1] = lifted[:, 0]
            lifted[:, 1, regulator] += 1e-3
            low, high = (simulator.formulas[target](lifted[:, k]) for k in (0, 1))
            assert (sign * (high - low) >= -1e-12).all(), (regulator, target)
    print("every edge acts with its sign")


if __name__ == "__main__":
    main()
