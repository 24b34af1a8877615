"""The next experiment, judged in retrospect: what each choice of combinations would have told.

Simulated studies of ten cell types and six diseases. Each disease but the healthy state keeps a
random number of its cell types; the others are withheld from the fit and are the candidates. With
``--groups`` donors come from two groups besides, which differ in nothing (nobody knows that
beforehand): three in four of the combinations that are left are measured in group A only, so that
many candidates would tell little. A chosen candidate is then measured: z_I of its cells from half
of the donors is added. The means of *all* candidates are predicted before and after and compared
with the cells of the other donors: log-likelihood and root mean square error, in standard
deviations within combinations. The networks stay as they were fitted. Largest uncertainty takes
the candidates in the order of their uncertainty before anything is added, ties broken at random.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from peers import say, write_json

import invatlas as ia
from invatlas.tasks.design import measure_cells, weigh
from invatlas.tasks.prior_effects import Effects, Measured, Weights, fit_effects, predict

STRATEGIES = ("design", "largest uncertainty", "random")


@dataclass(frozen=True)
class Retrospect:
    """Candidates of one study, with what measuring them tells and what is true of them."""

    effects: Effects
    before: Measured
    weights: Weights
    answers: np.ndarray
    answer_noise: np.ndarray
    truth: np.ndarray
    truth_noise: np.ndarray

    def score(self, chosen: np.ndarray) -> tuple[float, float]:
        """Log-likelihood of all candidates (nats a candidate) and error, some being measured."""
        pairs = zip(self.before.weights, self.weights, strict=True)
        after = replace(
            self.before,
            weights=[np.concatenate([known, new[chosen]]) for known, new in pairs],
            means=np.concatenate([self.before.means, self.answers[chosen]]),
            noise=np.append(self.before.noise, self.answer_noise[chosen]),
        )
        mean, left = predict(self.effects, after, self.weights)
        variance = left.diagonal(axis1=1, axis2=2).clip(0).T + self.truth_noise[:, None]
        miss = self.truth - mean
        nats = -0.5 * (miss**2 / variance + np.log(2 * np.pi * variance)).sum(1).mean()
        return float(nats), float(np.sqrt((miss**2).mean()))


def withhold(study: AnnData, groups: bool, generator: np.random.Generator) -> np.ndarray:
    """Which cells are of combinations that nobody measured."""
    hidden = np.zeros(study.n_obs, dtype=bool)
    types = study.obs["cell_type"].cat.categories
    for disease in study.obs["disease"].cat.categories[1:]:
        ill = (study.obs["disease"] == disease).to_numpy()
        away = generator.permutation(types)[: generator.integers(2, len(types))]
        hidden |= ill & study.obs["cell_type"].isin(away).to_numpy()
        if groups:
            away = types[generator.random(len(types)) < 0.75]
            in_b = (study.obs["group"] == "B").to_numpy()
            hidden |= ill & in_b & study.obs["cell_type"].isin(away).to_numpy()
    return hidden


def look_back(seed: int, epochs: int | None, groups: bool) -> tuple[Retrospect, pd.DataFrame]:
    """Fit to what is not withheld and lay out the candidates and the order of the design."""
    donors = 8 if groups else 5  # of each disease
    study = ia.simulate(
        cells=3000, genes=200, cell_types=10, diseases=6, donors=6 * donors, batches=3,
        truth=False, disease_effect=2.0, library_size=2000.0, seed=seed,
    )  # fmt: skip
    rank = study.obs["donor"].cat.codes.to_numpy() // 6  # the k-th donor of its disease
    study.obs["group"] = pd.Categorical(np.where(rank % 2, "B", "A"))
    columns = ["cell_type", "disease", *(["group"] if groups else [])]
    hidden = withhold(study, groups, np.random.default_rng(seed))
    settings = ia.Settings(
        genes=0, spared_donors=0.0, hidden=64, epochs=epochs, invariant_latents=10, seed=seed
    )
    atlas = ia.fit(study[~hidden].copy(), columns, ["donor", "batch"], settings=settings)
    before = measure_cells(atlas, study[~hidden].copy(), "donor")
    z = ia.embed(atlas, study).astype(float)
    own = study.obs.groupby([*columns, "donor"], observed=True).ngroup().to_numpy()[~hidden]
    scale = np.sqrt(pd.DataFrame(z[~hidden]).groupby(own).var(ddof=1).mean().to_numpy())
    halves = []
    for rows in (hidden & (rank < (donors + 1) // 2), hidden & (rank >= (donors + 1) // 2)):
        cells = pd.DataFrame(z[rows] / scale).join(
            study.obs.loc[rows, [*columns, "donor"]].reset_index(drop=True)
        )
        by_donor = cells.groupby([*columns, "donor"], observed=True)
        mean, size = by_donor.mean(), by_donor.size()
        both = list(range(len(columns)))
        halves.append(
            pd.DataFrame(mean.groupby(level=both, observed=True).mean()).assign(
                cells=size.groupby(level=both, observed=True).median().round().astype(int),
                donors=size.groupby(level=both, observed=True).size(),
                floor=(1 / size).groupby(level=both, observed=True).mean(),
            )
        )
    common = halves[0].index.intersection(halves[1].index)
    answers, truth = (half.loc[common] for half in halves)
    candidates = answers.reset_index()[[*columns, "cells", "donors"]]
    latents = list(range(z.shape[1]))
    retrospect = Retrospect(
        fit_effects(before),
        before,
        weigh(atlas.schema.biological, candidates),
        answers[latents].to_numpy(),
        ((before.donor_variance + answers["floor"]) / answers["donors"]).to_numpy(),
        truth[latents].to_numpy(),
        ((before.donor_variance + truth["floor"]) / truth["donors"]).to_numpy(),
    )
    planned = ia.design(
        atlas, candidates, budget=len(candidates), reference=study[~hidden].copy(), donor="donor"
    )
    place = pd.MultiIndex.from_frame(candidates[columns])
    order = place.get_indexer(pd.MultiIndex.from_frame(planned[columns]))
    return retrospect, planned.assign(position=order)


def replay(
    retrospect: Retrospect, planned: pd.DataFrame, budgets: list[int], draws: int, seed: int
) -> pd.DataFrame:
    """Score every strategy at every budget."""
    generator = np.random.default_rng([seed, 1])
    uncertainty = planned.sort_values("position")["uncertainty"].to_numpy()
    rows = []
    for draw in range(draws):
        shuffled = generator.permutation(len(planned))
        orders = {
            "random": shuffled,
            "largest uncertainty": shuffled[
                np.argsort(-uncertainty[shuffled].round(6), kind="stable")
            ],
        }
        if draw == 0:
            orders["design"] = planned["position"].to_numpy()
        for strategy, order in orders.items():
            for budget in budgets:
                nats, error = retrospect.score(order[:budget])
                rows.append((seed, strategy, draw, budget, nats, error))
    names = ["study", "strategy", "draw", "budget", "nats", "error"]
    return pd.DataFrame(rows, columns=names)


def draw_figure(table: pd.DataFrame, place: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_study = table.groupby(["strategy", "budget", "study"])[["gained", "error"]].mean()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = {
        "gained": "Log-likelihood gained\n(nats a candidate)",
        "error": "Error of the predicted mean\n(standard deviations)",
    }
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for strategy, line in zip(STRATEGIES, ("-", "--", ":"), strict=True):
            curve = by_study.loc[strategy, column].groupby(level="budget").agg(["mean", "sem"])
            axis.plot(curve.index, curve["mean"], line, label=strategy)
            low, high = curve["mean"] - curve["sem"], curve["mean"] + curve["sem"]
            axis.fill_between(curve.index, low, high, alpha=0.15, linewidth=0)
        axis.set(xlabel="Combinations measured", ylabel=label, xticks=range(0, 16, 5))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(place, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    budgets, tables = [0, 1, 2, 3, 4, 6, 8, 10, 12, 15], []
    for seed in args.seeds:
        start = time.perf_counter()
        retrospect, planned = look_back(seed, args.epochs, args.groups)
        tables.append(replay(retrospect, planned, budgets, args.draws, seed))
        t = ", ".join(f"{v:.3g}" for v in retrospect.effects.variances.mean(0))
        say(
            f"study {seed}: {len(planned)} candidates, variances {t}, between donors "
            f"{retrospect.before.donor_variance:.3g}, {time.perf_counter() - start:.0f} s"
        )
        table = pd.concat(tables, ignore_index=True)
        nothing = table[table["budget"] == 0].groupby("study")["nats"].first()
        table["gained"] = table["nats"] - table["study"].map(nothing)
        if args.json:
            write_json(args.json, {"seeds": args.seeds, "scores": table.to_dict("records")})
    by_study = table.groupby(["strategy", "budget", "study"])[["gained", "error"]].mean()
    for column in ("gained", "error"):
        means = by_study[column].groupby(level=["budget", "strategy"]).mean().unstack()
        say(f"\n{column}\n{means[list(STRATEGIES)].round(3).to_string()}")
        designed = by_study.loc["design", column]
        for other in STRATEGIES[1:]:
            sign = 1 if column == "gained" else -1
            ahead = sign * (designed - by_study.loc[other, column]).unstack()
            whole = ahead.loc[budgets[1:]].mean()
            say(f"ahead by {whole.mean():.3f} +- {whole.sem():.3f} over budgets, of {other}")
            wins = {budget: int((ahead.loc[budget] > 0).sum()) for budget in budgets[1:]}
            say(f"design ahead of {other} in studies, by budget: {wins}")
    if args.figure:
        draw_figure(table, args.figure)


if __name__ == "__main__":
    main()
