"""Scores of networks: against scikit-learn, by hand, and where ties and self edges could fool."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from invatlas.errors import DataError
from invatlas.evaluate.network import network_scores

# 0 -> 1 raises, 1 -> 2 lowers, 2 -> 0 raises, and 1 -> 1
TRUTH = np.array([[0, 1, 0], [0, 1, 1], [1, 0, 0]], dtype=bool)
SIGNS = np.array([[0.0, 1, 0], [0, 1, -1], [1, 0, 0]])


def draw(seed: int = 0, genes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((genes, genes)) < 0.2
    return truth, rng.normal(size=truth.shape) + truth


def test_areas_are_those_of_scikit_learn_off_the_diagonal() -> None:
    truth, scores = draw()
    off = ~np.eye(len(truth), dtype=bool)
    found = network_scores({"one": scores, "two": scores.round()}, truth)
    for name, s in (("one", scores), ("two", scores.round())):
        size = np.abs(s[off])
        auprc = average_precision_score(truth[off], size)
        assert found.loc[name, "auprc"] == pytest.approx(auprc)
        assert found.loc[name, "auprc_ratio"] == pytest.approx(auprc / truth[off].mean())
        assert found.loc[name, "auroc"] == pytest.approx(roc_auc_score(truth[off], size))


def test_by_hand() -> None:
    scores = np.array([[9.0, 5, 0], [-1, 9, 4], [2, 3, 9]])  # ranking: 01 yes, 12 yes, 21 no, 20
    found = network_scores({"it": scores}, TRUTH, SIGNS).loc["it"]
    assert found["auprc"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["auprc_ratio"] == pytest.approx((1 + 1 + 3 / 4) / 3 / (3 / 6))
    assert found["early_precision"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx(8 / 9)
    assert found["signed_accuracy"] == pytest.approx(1 / 2), "12 lowers, and is called raising"
    assert found["called"] == 3
    assert found["hamming"] == 2, "21 for 12 is extra, 20 is missing"
    strict = network_scores({"it": scores}, TRUTH, SIGNS, thresholds={"it": 4.5}).loc["it"]
    assert (strict["called"], strict["hamming"]) == (1, 2)


def test_an_edge_turned_around_is_one_step_away() -> None:
    found = network_scores({"it": TRUTH.T.astype(float)}, TRUTH).loc["it"]
    assert found["hamming"] == 3 and found["called"] == 3 and found["early_precision"] == 0
    right = network_scores({"it": TRUTH.astype(float)}, TRUTH).loc["it"]
    assert right["hamming"] == 0 and right["auprc"] == right["auroc"] == 1


def test_ties_count_as_their_expectation() -> None:
    truth, _ = draw(1)
    flat = network_scores({"it": np.full(truth.shape, 0.3)}, truth).loc["it"]
    share = truth[~np.eye(len(truth), dtype=bool)].mean()
    assert flat["early_precision"] == pytest.approx(share)
    assert flat["auroc"] == 0.5 and flat["auprc_ratio"] == pytest.approx(1)
    nothing = network_scores({"it": np.zeros(truth.shape)}, truth).loc["it"]
    edges = truth & ~np.eye(len(truth), dtype=bool)
    assert nothing["called"] == 0 and nothing["hamming"] == edges.sum()


def test_neither_self_edges_nor_the_order_of_genes_nor_the_scale_matter() -> None:
    truth, scores = draw(2)
    signs = np.where(np.arange(len(truth)) % 2, 1.0, -1.0)[None] * truth
    there = network_scores({"it": scores}, truth, signs)
    order = np.random.default_rng(3).permutation(len(truth))
    moved = np.ix_(order, order)
    again = network_scores({"it": 7 * scores[moved]}, truth[moved], signs[moved])
    assert np.allclose(there, again)
    loops, louder = truth.copy(), scores.copy()
    np.fill_diagonal(loops, True)
    np.fill_diagonal(louder, 99)
    assert np.allclose(there, network_scores({"it": louder}, loops, signs))


def test_signs_are_asked_only_where_a_method_has_them() -> None:
    truth, scores = draw(4)
    assert np.isnan(
        network_scores({"it": np.abs(scores)}, truth, 1.0 * truth).loc["it", "signed_accuracy"]
    )
    assert np.isnan(network_scores({"it": scores}, truth).loc["it", "signed_accuracy"])
    signs = np.sign(scores) * truth
    assert network_scores({"it": scores}, truth, signs).loc["it", "signed_accuracy"] == 1
    assert network_scores({"it": scores}, truth, -signs).loc["it", "signed_accuracy"] == 0


def test_only_candidates_count() -> None:
    truth, scores = draw(5)
    rows = np.zeros_like(truth)
    rows[:4] = True
    found = network_scores({"it": scores}, truth, candidates=rows)
    blind = network_scores({"it": np.where(rows, scores, 99)}, truth & rows, candidates=rows)
    assert np.allclose(found, blind, equal_nan=True)


def test_what_cannot_be_scored_is_refused() -> None:
    truth, scores = draw()
    with pytest.raises(DataError, match=r"'it' has the shape \(3, 3\); it must have \(12, 12\)"):
        network_scores({"it": np.ones((3, 3))}, truth)
    scores[0, 1] = np.nan
    with pytest.raises(DataError, match="finite score"):
        network_scores({"it": scores}, truth)
    with pytest.raises(DataError, match="0 edges among 6"):
        network_scores({"it": np.ones((3, 3))}, np.eye(3, dtype=bool))
