"""Probes: classifiers that tell a covariate from latents, as far as the latents tell it.

Linear       p(t | z) = softmax(W z + b) on standardised latents, fitted in each stratum
Neighbours   the weighted vote of the k nearest cells of the stratum, k = sqrt(cells), 15 at most
Boosted      20 rounds of trees with 8 leaves on latents in 32 quantile bins, told the stratum

All weigh values inversely to their frequency in the stratum among the cells they learn from: they
are judged by balanced accuracy, and a donor left out would else tip them against its own value. A
line, a neighbourhood and a step function fail for different reasons; what none of the three finds
is not shown to be absent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances

from invatlas.evaluate.question import Question

NOBODY = -1  # a prediction, or a neighbour, that there is not
MOST_NEIGHBOURS = 15
BINS = 32

Predictor = Callable[[np.ndarray], np.ndarray]


class Probe(ABC):
    """A classifier of one question, with the latents (cell, latent) of the cells asked."""

    name: str

    def __init__(self, z: np.ndarray, question: Question) -> None:
        self.z = self.scale(np.asarray(z, dtype=np.float64)[question.rows])
        self.question = question

    @abstractmethod
    def scale(self, z: np.ndarray) -> np.ndarray:
        """Bring latents to the scale of the probe; labels are never looked at."""

    @abstractmethod
    def learn(self, t: np.ndarray, fold: np.ndarray) -> Predictor:
        """Learn values t (cell,) from latents.

        The predictor takes scaled latents of the same cells and gives values (cell,), each learnt
        from other folds, or from other donors.
        """


class Linear(Probe):
    """Multinomial logistic regression, one for each stratum and fold."""

    name = "linear"

    def scale(self, z: np.ndarray) -> np.ndarray:
        """Standardise each latent."""
        spread = z.std(0)
        return np.asarray((z - z.mean(0)) / np.where(spread > 0, spread, 1.0))

    def learn(self, t: np.ndarray, fold: np.ndarray) -> Predictor:
        """Fit the cells of a stratum outside each fold."""
        models = []
        for rows, others in _split(self.question.stratum, fold):
            model = (
                LogisticRegression(class_weight="balanced", tol=1e-2, max_iter=200)
                if len(np.unique(t[others])) > 1
                else DummyClassifier(strategy="most_frequent")
            )
            models.append((rows, model.fit(self.z[others], t[others])))
        return lambda z: _predict(models, z)


class Neighbours(Probe):
    """Vote of the nearest cells of other donors; nothing is fitted, so folds play no part."""

    name = "neighbours"

    def __init__(self, z: np.ndarray, question: Question) -> None:
        super().__init__(z, question)
        self.nearest = self.find(self.z)
        self.own = question.stratum * (question.apart.max() + 1) + question.apart

    def scale(self, z: np.ndarray) -> np.ndarray:
        """Leave distances as they are."""
        return z

    def find(self, z: np.ndarray) -> np.ndarray:
        """Cells nearest to other places of the same cells (cell, neighbour)."""
        nearest = np.full((len(z), MOST_NEIGHBOURS), NOBODY)
        for rows in _group(self.question.stratum):
            apart = self.question.apart[rows]
            distance = pairwise_distances(z[rows], self.z[rows])
            distance[apart[:, None] == apart] = np.inf
            k = min(MOST_NEIGHBOURS, max(1, round(np.sqrt(len(rows)))))
            found = np.argpartition(distance, k - 1, axis=1)[:, :k]
            near = np.isfinite(np.take_along_axis(distance, found, axis=1))
            nearest[rows, :k] = np.where(near, rows[found], NOBODY)
        return nearest

    def learn(self, t: np.ndarray, fold: np.ndarray) -> Predictor:
        """Remember the values, and among how many cells each finds its voters."""
        question, values = self.question, int(t.max()) + 1
        voters = _count(question.stratum, t) - _count(self.own, t)

        def predict(z: np.ndarray) -> np.ndarray:
            nearest = self.nearest if z is self.z else self.find(z)
            place = np.arange(len(z))[:, None] * values + t[nearest]
            votes = np.bincount(place.ravel(), (nearest != NOBODY).ravel(), len(z) * values)
            return np.asarray((votes.reshape(len(z), values) / np.maximum(voters, 1)).argmax(1))

        return predict


class Boosted(Probe):
    """Gradient-boosted trees, one for each fold, that may split by stratum."""

    name = "boosted"

    def scale(self, z: np.ndarray) -> np.ndarray:
        """Sort each latent into quantile bins, once for all the fits to come."""
        return np.floor(z.argsort(0).argsort(0) * BINS / len(z))

    def learn(self, t: np.ndarray, fold: np.ndarray) -> Predictor:
        """Fit all cells outside each fold, with the stratum as a category."""
        stratum, models = self.question.stratum, []
        for rows, others in _split(np.zeros_like(stratum), fold):
            model = HistGradientBoostingClassifier(
                max_iter=20,
                max_leaf_nodes=8,
                learning_rate=0.3,
                early_stopping=False,
                categorical_features=[self.z.shape[1]],
                random_state=0,
            )
            if len(np.unique(t[others])) < 2:
                model = DummyClassifier(strategy="most_frequent")
            told, weight = np.c_[self.z, stratum][others], _balance(stratum[others], t[others])
            models.append((rows, model.fit(told, t[others], sample_weight=weight)))
        return lambda z: _predict(models, np.c_[z, stratum])


PROBES: tuple[type[Probe], ...] = (Linear, Neighbours, Boosted)


def _group(codes: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of each code."""
    order = np.argsort(codes, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _split(stratum: np.ndarray, fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each stratum and fold, and the rows of the stratum to learn from, if any."""
    for rows in _group(stratum):
        for number in np.unique(fold[rows]):
            inside = fold[rows] == number
            if not inside.all():
                yield rows[inside], rows[~inside]


def _predict(
    models: list[tuple[np.ndarray, LogisticRegression | HistGradientBoostingClassifier]],
    z: np.ndarray,
) -> np.ndarray:
    predicted = np.full(len(z), NOBODY)
    for rows, model in models:
        predicted[rows] = model.predict(z[rows])
    return predicted


def _count(group: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Cells with each value in the group of each cell (cell, value)."""
    number = np.unique(group, return_inverse=True)[1]
    values = int(t.max()) + 1
    counts = np.bincount(number * values + t, minlength=(number.max() + 1) * values)
    return np.asarray(counts.reshape(-1, values)[number])


def _balance(stratum: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Weight of each cell (cell,): each value weighs the same in its stratum; 1 on average."""
    place = stratum * (t.max() + 1) + t
    weight = 1.0 / np.bincount(place)[place]
    return np.asarray(weight / weight.mean())
