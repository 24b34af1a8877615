"""Gene regulatory networks: edges found, knockouts and trajectories predicted, by every method.

edges          scores of invatlas.evaluate.network against the truth, all ordered pairs of genes;
               a method that chooses no threshold calls as many edges as there are
knockouts      a fifth of the single knockouts is left out, and the steady state of each predicted;
               error is the root mean square over all genes but the one knocked out, mean over
               knockouts; ``error_top`` over the tenth of the genes farthest from the median of all
               steady states. ``knockouts_strict`` leaves out the knockdowns of those genes too
trajectories   the series of some donors are left out (each donor once; five folds where there are
               more than five) and each predicted from its own first time or bin; error is the root
               mean square over later times and all genes, mean over lineages, then donors
off_targets    rank of the gene that a knockout hit beside its own, among all genes of that row
               (1 is best; mean over planted rows), how often it is the first, and how many of
               the planted pairs are among as many strongest pairs of all knockouts
seeds          Spearman correlation of |s| over candidates between seeds 0 and 1

    python benchmarks/network.py --sets dream4_100_1,beeline_GSD --parts edges --json out.json
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from network_methods import METHODS, Answer, Method
from network_sets import SETS, NetworkSet
from peers import describe_environment, limit_threads, say, write_json
from scipy.stats import spearmanr

from invatlas.errors import DataError
from invatlas.evaluate.network import network_scores
from invatlas.grn.experiments import Experiments

FOLDS = 5
Record = dict[str, object]


def ask(method: Method, experiments: Experiments, seed: int) -> tuple[Answer, float]:
    """Answer of a method and its seconds; an empty one where the data lack what it needs."""
    start = time.perf_counter()
    try:
        answer = method.fit(experiments, seed)
    except DataError:
        answer = Answer()
    return answer, time.perf_counter() - start


def measure_edges(data: NetworkSet, method: Method, seed: int, folds: int) -> Record | None:
    """Score the edges a method finds."""
    if data.truth is None:
        return None
    answer, seconds = ask(method, data.experiments, seed)
    if answer.scores is None:
        return None
    thresholds = {} if answer.threshold is None else {"it": answer.threshold}
    table = network_scores(
        {"it": answer.scores},
        data.truth,
        data.signs,
        candidates=data.candidates,
        thresholds=thresholds,
    )
    return {**table.loc["it"].to_dict(), "seconds": seconds}


def measure_knockouts(
    data: NetworkSet, method: Method, seed: int, folds: int, strict: bool = False
) -> Record | None:
    """Error of the steady states of knockouts that were left out."""
    steady = data.experiments.steady
    single = [s for s in steady if s.intervention.kind == "knockout"]
    single = [s for s in single if len(s.intervention.genes) == 1]
    if len(single) < FOLDS:
        return None
    order = np.random.default_rng(0).permutation(len(single))
    usual = np.median([s.expression for s in steady], axis=0)
    errors, top, seconds = [], [], []
    for fold in range(min(folds, FOLDS)):
        held_out = [single[k] for k in order[fold::FOLDS]]
        genes = {s.intervention.genes for s in held_out}
        dropped = {"knockout", "knockdown"} if strict else {"knockout"}
        kept = [
            s
            for s in steady
            if not (s.intervention.genes in genes and s.intervention.kind in dropped)
        ]
        answer, spent = ask(method, replace(data.experiments, steady=tuple(kept)), seed)
        if answer.rest is None:
            return None
        for state in held_out:
            others = np.delete(np.arange(len(state.expression)), state.intervention.genes)
            wrong = (answer.rest(state.intervention) - state.expression)[others]
            far = np.argsort(np.abs(state.expression - usual)[others])[-max(1, len(others) // 10) :]
            errors.append(root_mean_square(wrong))
            top.append(root_mean_square(wrong[far]))
        seconds.append(spent)
    found = {"error": np.mean(errors), "error_top": np.mean(top), "predicted": len(errors)}
    return {**found, "seconds": np.mean(seconds)}


def measure_strict_knockouts(
    data: NetworkSet, method: Method, seed: int, folds: int
) -> Record | None:
    """As :func:`measure_knockouts`, without the knockdowns of the same genes."""
    return measure_knockouts(data, method, seed, folds, strict=True)


def measure_trajectories(data: NetworkSet, method: Method, seed: int, folds: int) -> Record | None:
    """Error of the trajectories of donors that were left out."""
    if not data.donors_differ:
        return None
    errors, seconds = [], []
    for donors in list(split_donors(data.experiments))[:folds]:
        kept, held_out = [], []
        for trajectory in data.experiments.trajectories:
            (held_out if trajectory.donor in donors else kept).append(trajectory)
        answer, spent = ask(method, replace(data.experiments, trajectories=tuple(kept)), seed)
        if answer.path is None:
            return None
        for t in held_out:
            told = answer.path(t.lineage, t.mean[0], t.times)
            error = root_mean_square((told - t.mean)[1:])
            errors.append({"donor": t.donor, "lineage": t.lineage, "error": error})
        seconds.append(spent)
    by_donor = pd.DataFrame(errors).groupby("donor")["error"].mean()
    lineages = pd.DataFrame(errors).groupby("lineage")["error"].mean()
    of_lineages = {f"error_{name}": error for name, error in lineages.items() if name}
    worst = {"worst_donor": by_donor.max(), "donors": len(by_donor)}
    return {"error": by_donor.mean(), **worst, **of_lineages, "seconds": np.mean(seconds)}


def split_donors(experiments: Experiments) -> Iterator[list[str]]:
    """Donors to leave out, one at a time, or by five folds where they are more."""
    donors = sorted({t.donor for t in experiments.trajectories})
    for fold in range(min(len(donors), FOLDS)):
        yield donors[fold::FOLDS]


def measure_seeds(data: NetworkSet, method: Method, seed: int, folds: int) -> Record | None:
    """Agreement of two seeds on the ranking of edges."""
    answers = [ask(method, data.experiments, seed + k)[0].scores for k in (0, 1)]
    if answers[0] is None or answers[1] is None:
        return None
    count = ~np.eye(len(answers[0]), dtype=bool) & data.experiments.regulators[:, None]
    one, other = (np.abs(scores[count]) for scores in answers)
    return {"spearman": float(spearmanr(one, other).statistic)}


def measure_off_targets(data: NetworkSet, method: Method, seed: int, folds: int) -> Record | None:
    """Where planted off-targets stand among all genes that could be one."""
    if data.off_targets is None:
        return None
    answer, seconds = ask(method, data.experiments, seed)
    if answer.off_targets is None:
        return None
    ranks, pairs = [], []
    for state in data.experiments.steady:
        size = np.abs(answer.off_targets[state.name])
        if state.intervention.kind == "knockout":
            planted = data.off_targets.get(state.name)
            pairs += [(s, gene == planted) for gene, s in enumerate(size)]
            if planted is not None:
                ranks.append(1 + int((np.delete(size, planted) >= size[planted]).sum()))
    strongest = sorted(pairs, key=lambda pair: -pair[0])[: len(ranks)]
    found = {"rank": np.mean(ranks), "first": np.mean(np.array(ranks) == 1)}
    return {**found, "among_strongest": sum(p for _, p in strongest), "seconds": seconds}


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


Measure = Callable[[NetworkSet, Method, int, int], Record | None]
PARTS: dict[str, tuple[str, Measure]] = {  # what of an answer is measured, and how
    "edges": ("scores", measure_edges),
    "knockouts": ("rest", measure_knockouts),
    "knockouts_strict": ("rest", measure_strict_knockouts),
    "trajectories": ("path", measure_trajectories),
    "off_targets": ("off_targets", measure_off_targets),
    "seeds": ("scores", measure_seeds),
}


def main() -> None:
    """Run every part of every set with every method, print tables and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(m for m in METHODS if m != "forests_1000"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the five are run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    chosen = {}
    for kind, known in (("sets", SETS), ("methods", METHODS), ("parts", PARTS)):
        chosen[kind] = getattr(arguments, kind).split(",")
        if unknown := [name for name in chosen[kind] if name not in known]:
            raise SystemExit(f"unknown {kind}: {unknown[0]!r}; choose from {', '.join(known)}")
    records: list[Record] = []
    for name in chosen["sets"]:
        data = SETS[name]()
        say(f"== {name}: {len(data.experiments.genes)} genes")
        for part in chosen["parts"]:
            needed, measure = PARTS[part]
            rows = []
            for method in chosen["methods"]:
                if needed not in METHODS[method].gives:
                    continue
                found = measure(data, METHODS[method], arguments.seed, arguments.folds)
                if found is not None:
                    rows.append({"method": method, **found})
            if rows:
                table = pd.DataFrame(rows).set_index("method")
                say(f"{part}\n{table.to_string(float_format=lambda v: f'{v:.4g}')}\n")
            records += [{"set": name, "part": part, **row} for row in rows]
            if arguments.json:
                content = {"environment": describe_environment(), "records": records}
                write_json(arguments.json, content)


if __name__ == "__main__":
    main()
