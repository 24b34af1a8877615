"""Networks of known equations to recover: Hill functions, which no family of production is.

dy_j/dt = d_j (m_j prod_i h_ij(p_i) - y_j),   dp_j/dt = d_j (y_j - p_j) / 5
h = 2 p^2 / (1 + p^2) where gene i raises gene j, 2 / (1 + p^2) where it lowers it
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

FloatArray = NDArray[np.float64]

NOISE = 0.03
LEFT = {"knockout": 0.0, "knockdown": 0.5}


@dataclass(frozen=True)
class Truth:
    """Signed edges (regulator, target) of genes that all have the usual level 1."""

    signs: NDArray[np.int_]

    @property
    def genes(self) -> list[str]:
        """Names of the genes."""
        return [f"G{j}" for j in range(len(self.signs))]

    @property
    def candidates(self) -> NDArray[np.bool_]:
        """Pairs that may be edges."""
        return ~np.eye(len(self.signs), dtype=bool)

    def produce(self, p: FloatArray) -> FloatArray:
        """Production of every gene, (gene,)."""
        square = p[:, None] ** 2
        raised, lowered = 2 * square / (1 + square), 2 / (1 + square)
        return np.where(self.signs > 0, raised, np.where(self.signs < 0, lowered, 1)).prod(0)

    def follow(self, start: FloatArray, times: FloatArray, left: FloatArray | float) -> FloatArray:
        """Expression (time, gene) from proteins at rest with it."""
        n = len(self.signs)

        def field(_: float, state: FloatArray) -> FloatArray:
            y, p = state[:n], state[n:]
            return np.concatenate([left * self.produce(p) - y, (y - p) / 5])

        both = np.concatenate([start, start])
        solved = solve_ivp(field, times[[0, -1]], both, t_eval=times, rtol=1e-6, atol=1e-8)
        return solved.y[:n].T

    def rest(self, left: FloatArray) -> FloatArray:
        """Steady state (gene,), from the usual levels."""
        start = np.ones(len(self.signs))
        return self.follow(start, np.array([0.0, 300.0]), left)[-1]

    def measure(self, experiments: list[tuple[str, str, FloatArray]], seed: int) -> AnnData:
        """Noisy steady states: target, kind, and what was truly left of production."""
        rng = np.random.default_rng(seed)
        y = np.stack([self.rest(left) for *_, left in experiments])
        obs = pd.DataFrame(
            [(target, kind) for target, kind, _ in experiments],
            columns=["target", "experiment"],
            index=[f"row{i}" for i in range(len(y))],
        )
        noisy = np.maximum(y + rng.normal(0, NOISE, y.shape), 0)
        return AnnData(noisy, obs=obs, var=pd.DataFrame(index=self.genes))

    def screen(self, seed: int = 0, guides: int = 1, kinds: tuple[str, ...] = ("knockout",)):  # type: ignore[no-untyped-def]
        """Every gene intervened on alone, and three wild types."""
        done = [("none", "wildtype", np.ones(len(self.signs)))] * 3
        for j, gene in enumerate(self.genes):
            for kind in kinds:
                left = np.ones(len(self.signs))
                left[j] = LEFT[kind]
                done += [(gene, kind, left)] * guides
        return self.measure(done, seed)

    def series(self, seed: int = 0, n: int = 8, scale: float = 1.0) -> AnnData:
        """Series from random starts at shared times."""
        rng = np.random.default_rng(seed)
        times = np.linspace(0, 12, 16)
        starts = rng.gamma(2, 0.5, size=(n, len(self.signs)))
        paths = [self.follow(start, times, 1.0) for start in starts]
        y = np.concatenate(paths) + rng.normal(0, NOISE, (n * len(times), len(self.signs)))
        obs = pd.DataFrame(
            {
                "time": np.tile(times * scale, n),
                "series": np.repeat([f"s{k}" for k in range(n)], len(times)),
                "target": "none",
                "experiment": None,
            },
            index=[f"time{i}" for i in range(len(y))],
        )
        return AnnData(np.maximum(y, 0), obs=obs, var=pd.DataFrame(index=self.genes))


@pytest.fixture(scope="session")
def truth() -> Truth:
    """A cascade, a fork, a feedback that lowers, and a gene apart."""
    signs = np.zeros((7, 7), dtype=int)
    edges = [(0, 1, 1), (1, 2, 1), (2, 3, -1), (0, 4, -1), (4, 5, 1), (3, 0, 1), (1, 5, 1)]
    for regulator, target, sign in edges:
        signs[regulator, target] = sign
    return Truth(signs)
