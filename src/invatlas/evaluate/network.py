"""How well a network was found, where the truth is known.

candidates   all ordered pairs of two genes; a gene's edge to itself is never counted
ranking      by the size of the score, |s|; ties have no order

auprc              average precision: sum over recalls R_n of (R_n - R_(n-1)) P_n
auprc_ratio        auprc / share of candidates that are edges, which a random ranking has
early_precision    share of true edges among the first k, k being the number of true edges
                   (Pratapa et al. 2020, Nat Methods 17:147); expected, where ties cross k
auroc              probability that an edge ranks above a pair that is none
signed_accuracy    of the true edges among the first k whose sign is known: share with the
                   right sign of s; missing where a method gives no signs
hamming            structural Hamming distance: edges to add, to take away or to turn around
                   until the called edges are the true ones (Tsamardinos et al. 2006, Mach
                   Learn 65:31)
called             how many edges are called: |s| at least the threshold
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from invatlas.errors import DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def network_scores(
    networks: Mapping[str, FloatArray],
    truth: BoolArray,
    signs: FloatArray | None = None,
    *,
    candidates: BoolArray | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Score networks against the true one.

    Parameters
    ----------
    networks
        Scores s (regulator, target) of each method; an edge is the likelier the larger its size.
    truth
        True edges (regulator, target).
    signs
        Their signs, positive or negative; 0 where unknown.
    candidates
        Pairs that count, (regulator, target); all pairs of two genes by default.
    thresholds
        The size of s from which on a method calls an edge. A method without one calls the first
        k, and those tied with the last, but none with s = 0.

    Returns
    -------
    A row for each method, the scores in columns.

    Raises
    ------
    DataError
        If shapes differ, a score is no finite number, or the truth has no edge or no other pair.
    """
    count = ~np.eye(len(truth), dtype=bool)
    if candidates is not None:
        count &= candidates
    edges = truth & count
    if not 0 < edges.sum() < count.sum():
        raise DataError(
            f"The truth has {edges.sum():,} edges among {count.sum():,} candidates; there must be "
            "edges, and pairs that are none."
        )
    rows = {}
    for name, scores in networks.items():
        if scores.shape != truth.shape or not np.isfinite(scores).all():
            raise DataError(
                f"The network {name!r} has the shape {scores.shape}; it must have {truth.shape}, "
                "and a finite score for each pair."
            )
        rows[name] = _score(scores, edges, count, signs, (thresholds or {}).get(name))
    return pd.DataFrame.from_dict(rows, orient="index")


def _score(
    scores: FloatArray,
    edges: BoolArray,
    count: BoolArray,
    signs: FloatArray | None,
    threshold: float | None,
) -> dict[str, float]:
    true, size = edges[count], np.abs(scores[count])
    k = int(true.sum())
    last = np.partition(size, -k)[-k]
    called = count & (np.abs(scores) >= (last if threshold is None else threshold))
    called &= (threshold is not None) | (scores != 0)
    auprc = float(average_precision_score(true, size))
    return {
        "auprc": auprc,
        "auprc_ratio": auprc / float(true.mean()),
        "early_precision": _precision_at(size, true, k, last),
        "auroc": float(roc_auc_score(true, size)),
        "signed_accuracy": _signed_accuracy(scores, edges & (np.abs(scores) >= last), signs),
        "hamming": _hamming_distance(called, edges),
        "called": int(called.sum()),
    }


def _precision_at(size: FloatArray, true: BoolArray, k: int, last: float) -> float:
    """Expected share of true edges among the first k, the ties at k in random order."""
    above, tied = size > last, size == last
    return float((true[above].sum() + (k - above.sum()) * true[tied].mean()) / k)


def _signed_accuracy(scores: FloatArray, found: BoolArray, signs: FloatArray | None) -> float:
    if signs is None or not (scores < 0).any():
        return float("nan")
    known = found & (signs != 0) & (scores != 0)
    right = np.sign(scores[known]) == np.sign(signs[known])
    return float(right.mean()) if known.any() else float("nan")


def _hamming_distance(called: BoolArray, edges: BoolArray) -> int:
    extra, missing = called & ~edges, edges & ~called
    turned = extra & missing.T
    return int(extra.sum() + missing.sum() - turned.sum())
