"""The linear probe: what a linear classifier gains from frozen features, beside every baseline that could explain it.

The protocol is the same for every model. Features are standardised on the training part. The feature (layer, pooling)
and the strength C are chosen on a stratified slice of the training part, of whole groups (files, videos, clusters of
near-duplicates) as the test part is: first the feature at the middle strength, then the strength of that feature. The
classifier is refitted on the whole training part, and the test part is read once.

On the label-efficiency curve there are too few labels to tune anything, so nothing is: the feature is the one chosen
above and C is FEW_SHOT_STRENGTH for every encoder, draw and number of labels. All encoders see the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, diags_array, issparse

from ssl_models.config import Probe
from ssl_models.objectives.shared.accuracy import correct
from ssl_models.probing.geometry import knn_votes, principal_plane
from ssl_models.probing.intervals import Gain, paired_bootstrap, wilson
from ssl_models.probing.logistic import Classifier, Labels, Matrix, fit

SLICE = 0.2
"""Share of the training part on which the feature and the strength are chosen."""
FEW_SHOT_STRENGTH = 1.0
CONSTANT = 1e-6
"""A feature whose deviation is below this share of its root mean square holds nothing but rounding."""
DOCUMENT_LENGTH = 8.0
"""Norm of a row of the bag of tokens: about that of a few dozen standardised features, so that one range of C fits."""
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 0.975 for 1 to 9 degrees of freedom; the normal quantile beyond is within 14 %."""
CHANCE_SLACK = 0.05
"""How far above the majority class the interval of shuffled labels must lie to be warned of."""
PLANE_ROWS = 1000
"""Test rows on the map of the features: more would hide each other."""
_SLICE_STREAM, _SHOT_STREAM, _SHUFFLE_STREAM, _ROW_STREAM = range(4)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """Labelled rows: their numbers in the probe split, `labels` (indices into `names`), which are the test part, and
    the number of the group that each belongs to."""

    rows: Labels
    labels: Labels
    test: Mask
    groups: Labels
    names: tuple[str, ...]

    @classmethod
    def choose(cls, labels: Labels, test: Mask, groups: Labels, names: tuple[str, ...], limit: int, seed: int) -> Task:
        """The labelled rows (label >= 0), or a random `limit` of them with the same share of test rows."""
        rows = np.flatnonzero(labels >= 0)
        if len(rows) > limit:
            wanted = round(limit * float(test[rows].mean()))
            parts = ((rows[test[rows]], wanted), (rows[~test[rows]], limit - wanted))
            drawn = [np.random.default_rng((seed, _ROW_STREAM)).permutation(part)[:most] for part, most in parts]
            rows = np.sort(np.concatenate(drawn))
        return cls(rows, labels[rows].astype(np.int64), test[rows].astype(bool), groups[rows], names)

    @property
    def trained(self) -> Labels:
        """Labels of the training part."""
        return self.labels[~self.test]

    @property
    def tested(self) -> Labels:
        """Labels of the test part."""
        return self.labels[self.test]

    @property
    def classes(self) -> int:
        """Number of classes among the labelled rows."""
        return len(np.unique(self.labels))

    @property
    def unseen(self) -> list[str]:
        """Classes of the test part that the training part lacks: their rows count as wrong for everybody."""
        return [self.names[index] for index in np.setdiff1d(self.tested, self.trained)]


@dataclass(frozen=True)
class Point:
    """One point of the label-efficiency curve: the mean over the draws and its 95 % interval."""

    labels: int
    accuracy: float
    low: float
    high: float
    draws: tuple[float, ...] = ()
    """The accuracy of each draw; all encoders see the same draws. Empty where every label is used."""


@dataclass(frozen=True)
class Share:
    """A share of the test rows and Wilson's 95 % interval of it."""

    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: Mask) -> Share:
        """The share of `correct` `[rows]` that is true."""
        right, rows = int(correct.sum()), len(correct)
        return cls(right / rows, *wilson(right, rows))


@dataclass(frozen=True)
class Score:
    """What one encoder reached, with the `feature` and `strength` that the training slice chose."""

    feature: str
    strength: float
    width: int
    slice_accuracy: float | None
    converged: bool
    predicted: Labels
    """`[test rows]`"""
    accuracy: float
    low: float
    high: float
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Report:
    """The whole table. A score is None where every feature of the encoder holds NaN or infinity."""

    task: Task
    scores: dict[str, Score | None]
    majority: float
    shuffled_labels: float | None
    knn: float | None
    gains: dict[str, Gain | None]
    warnings: tuple[str, ...]
    zero_shot: Share | None = None
    """Test rows whose class the model tells from the classes' names; None where it reads none."""
    plane: npt.NDArray[np.float32] | None = None
    """The first PLANE_ROWS test rows' features on their first two principal components, `[rows, 2]`."""


def standardise(matrix: Matrix, train: Mask) -> Matrix | None:
    """`matrix` `[rows, width]` with mean 0 and deviation 1 over the rows `train`; constant columns become 0; None where
    a value is not finite. Sparse counts become TF-IDF (log counts, document frequencies of the rows `train`) with rows
    of one length, which stay sparse and make the stronger baseline."""
    if issparse(matrix):
        return _tf_idf(csr_array(matrix), train)
    values = np.asarray(matrix)
    if not np.isfinite(values).all():
        return None
    part = values[train]
    mean = part.mean(axis=0, dtype=np.float64)
    deviation = part.std(axis=0, dtype=np.float64)
    constant = deviation <= CONSTANT * np.sqrt(deviation**2 + mean**2)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
    return ((values - mean.astype(np.float32)) * scale.astype(np.float32)).astype(np.float32)


def _tf_idf(counts: csr_array, train: Mask) -> csr_array:
    counts = counts.astype(np.float32)
    documents = np.bincount(counts[train].indices, minlength=counts.shape[1])
    rarity = np.log((1 + train.sum()) / (1 + documents)).astype(np.float32)
    counts.data = np.log1p(counts.data)
    weighted = counts @ diags_array(rarity)
    norm = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    length = DOCUMENT_LENGTH / np.where(norm > 0, norm, 1.0)
    return csr_array(diags_array(length.astype(np.float32)) @ weighted, dtype=np.float32)


def stratified(labels: Labels, groups: Labels, share: float, seed: int) -> Mask:
    """Random whole groups that hold about `share` of the rows of each class, `[rows]`. A class's first group may be up
    to half of its rows, so at least half of them stay outside; a class of one group stays outside whole."""
    names, classes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    held = np.zeros(len(names), np.int64)
    chosen = np.zeros(len(labels), bool)
    for turn in np.random.default_rng((seed, _SLICE_STREAM)).permutation(len(members)):
        found, rows = np.unique(classes[members[turn]], return_counts=True)
        first = (held[found] == 0) & (2 * rows <= totals[found])
        if (first | (held[found] + rows / 2 <= share * totals[found])).all():
            chosen[members[turn]] = True
            held[found] += rows
    return chosen


def shots(labels: Labels, count: int, draw: int, seed: int) -> Labels:
    """Indices of `count` random rows of each class, or all that a class has."""
    generator = np.random.default_rng((seed, _SHOT_STREAM, count, draw))
    return np.concatenate(
        [generator.permutation(np.flatnonzero(labels == label))[:count] for label in np.unique(labels)]
    )


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two or more draws, within [0, 1]."""
    mean, half = float(np.mean(values)), half_width(values)
    return max(0.0, mean - half), min(1.0, mean + half)


def half_width(values: list[float]) -> float:
    """Half of Student's 95 % interval of the mean of two or more draws."""
    freedom = len(values) - 1
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else 1.96
    return quantile * float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))


def choose(
    features: Mapping[str, Matrix], task: Task, config: Probe, device: torch.device
) -> tuple[str, Matrix, float, float | None] | None:
    """(feature, its standardised matrix of all rows, strength, accuracy on the slice), chosen on a slice of the
    training part; None where no feature is finite. Ties go to the first feature and to the stronger penalty.

    Classes of one group leave no slice to choose on: then it is the first feature and the middle strength, no accuracy.
    """
    train, labels = ~task.test, task.trained
    held = stratified(labels, task.groups[train], SLICE, config.seed)
    strengths = sorted(config.strengths)
    middle = strengths[len(strengths) // 2]

    def fitted(matrix: Matrix, strength: float, start: Classifier | None = None) -> Classifier:
        return fit(matrix[train][~held], labels[~held], strength, start, device)

    def accuracy(classifier: Classifier, matrix: Matrix) -> float:
        return float(np.mean(classifier.predict(matrix[train][held]) == labels[held])) if held.any() else 0.0

    best: tuple[str, Matrix, float] | None = None
    for name, values in features.items():
        matrix = standardise(values, train)
        if matrix is None:
            continue
        reached = accuracy(fitted(matrix, middle), matrix) if len(features) > 1 else 0.0
        if best is None or reached > best[2]:
            best = (name, matrix, reached)
    if best is None:
        return None
    name, matrix, _ = best
    if not held.any():
        return name, matrix, middle, None
    classifier, results = None, []
    for strength in strengths:
        classifier = fitted(matrix, strength, classifier)
        results.append(accuracy(classifier, matrix))
    top = int(np.argmax(results))
    return name, matrix, strengths[top], results[top]


def _curve(matrix: Matrix, task: Task, config: Probe, device: torch.device) -> list[Point]:
    train, test, labels = matrix[~task.test], matrix[task.test], task.trained
    points = []
    for count in config.shots:
        reached = []
        for draw in range(config.draws):
            rows = shots(labels, count, draw, config.seed)
            classifier = fit(train[rows], labels[rows], FEW_SHOT_STRENGTH, device=device)
            reached.append(float(np.mean(classifier.predict(test) == task.tested)))
        points.append(Point(count, float(np.mean(reached)), *interval(reached), tuple(reached)))
    return points


def score(
    features: Mapping[str, Matrix], task: Task, config: Probe, device: torch.device
) -> tuple[Score, Matrix] | None:
    """Choose, refit on the whole training part, read the test part; also the standardised matrix of all rows."""
    chosen = choose(features, task, config, device)
    if chosen is None:
        return None
    name, matrix, strength, slice_accuracy = chosen
    classifier = fit(matrix[~task.test], task.trained, strength, device=device)
    predicted = classifier.predict(matrix[task.test])
    correct, rows = int(np.sum(predicted == task.tested)), len(predicted)
    low, high = wilson(correct, rows)
    everything = Point(round(len(task.trained) / len(np.unique(task.trained))), correct / rows, low, high)
    curve = (*_curve(matrix, task, config, device), everything)
    found = Score(
        feature=name,
        strength=strength,
        width=matrix.shape[1],
        slice_accuracy=slice_accuracy,
        converged=classifier.converged,
        predicted=predicted,
        accuracy=correct / rows,
        low=low,
        high=high,
        curve=curve,
    )
    return found, matrix


def probe(
    pretrained: Mapping[str, Matrix],
    random_init: Mapping[str, Matrix],
    raw_input: Matrix,
    task: Task,
    config: Probe,
    device: torch.device | None = None,
    zero_shot: Labels | None = None,
) -> Report:
    """The whole table from features of the task's rows (all of them, in order), by name; `zero_shot`: the classes of
    the test rows that the model told from their names. ValueError where the training or the test part is empty."""
    if not len(task.trained) or not len(task.tested):
        raise ValueError("the probe needs labelled rows in its training part and in its test part")
    where = device or torch.device("cpu")
    encoders = {"pretrained": pretrained, "random_init": random_init, "raw_input": {"raw": raw_input}}
    scored = {name: score(features, task, config, where) for name, features in encoders.items()}
    scores = {name: result[0] if result else None for name, result in scored.items()}
    values, counts = np.unique(task.trained, return_counts=True)
    majority = float(np.mean(task.tested == values[counts.argmax()]))
    shuffled, neighbours, plane = None, None, None
    if (result := scored["pretrained"]) is not None:
        shuffled = _shuffled(result[1], task, result[0].strength, config, where)
        neighbours = _neighbours(result[1], task, config.neighbours, where)
        plane = principal_plane(torch.from_numpy(result[1][task.test][:PLANE_ROWS])).numpy()
    gains = {name: _gain(scores["pretrained"], scores[name], task) for name in ("random_init", "raw_input")}
    return Report(
        task=task,
        scores=scores,
        majority=majority,
        shuffled_labels=shuffled,
        knn=neighbours,
        gains=gains,
        warnings=_warnings(task, scores, majority, shuffled),
        zero_shot=None if zero_shot is None else Share.of(zero_shot == task.tested),
        plane=plane,
    )


def shuffle(labels: Labels, draw: int, seed: int) -> Labels:
    """A random permutation of `labels` `[rows]` that spreads each label evenly over the rows of every true class. A
    free one does not where classes are few and tight: whole classes then get their own label by luck."""
    generator = np.random.default_rng((seed, _SHUFFLE_STREAM, draw))
    names, counts = np.unique(labels, return_counts=True)
    spread = np.concatenate([(np.arange(count) + generator.random()) / count for count in counts])
    shuffled = np.empty_like(labels)
    shuffled[np.lexsort((generator.random(len(labels)), labels))] = np.repeat(names, counts)[np.argsort(spread)]
    return shuffled


def _shuffled(matrix: Matrix, task: Task, strength: float, config: Probe, device: torch.device) -> float:
    """Mean accuracy over `draws` shuffles of the training labels."""
    train, test = matrix[~task.test], matrix[task.test]
    classifiers = (
        fit(train, shuffle(task.trained, draw, config.seed), strength, device=device) for draw in range(config.draws)
    )
    return float(np.mean([np.mean(classifier.predict(test) == task.tested) for classifier in classifiers]))


def _neighbours(matrix: Matrix, task: Task, neighbours: int, device: torch.device) -> float:
    bank, queries = (torch.from_numpy(matrix[part]).to(device) for part in (~task.test, task.test))
    votes = knn_votes(bank, torch.from_numpy(task.trained).to(device), queries, neighbours).cpu()
    targets = torch.from_numpy(task.tested)
    return float(correct(votes, targets.where(targets < votes.shape[1], -1))) / len(targets)  # -1: a class unseen


def few_shot_gains(report: Report, other: str) -> list[Point]:
    """How far the pre-trained encoder leads `other` at each number of labels but all: mean and 95 % interval of the
    difference, paired over the draws."""
    pretrained, rival = report.scores["pretrained"], report.scores[other]
    if pretrained is None or rival is None:
        return []
    gains = []
    for mine, others in zip(pretrained.curve[:-1], rival.curve[:-1], strict=True):
        differences = [ours - theirs for ours, theirs in zip(mine.draws, others.draws, strict=True)]
        mean, half = float(np.mean(differences)), half_width(differences)
        gains.append(Point(mine.labels, mean, mean - half, mean + half))
    return gains


def _gain(pretrained: Score | None, other: Score | None, task: Task) -> Gain | None:
    if pretrained is None or other is None:
        return None
    return paired_bootstrap(pretrained.predicted == task.tested, other.predicted == task.tested)


def _warnings(task: Task, scores: dict[str, Score | None], majority: float, shuffled: float | None) -> tuple[str, ...]:
    found = [
        f"{name}: every feature holds NaN or infinity, so it has no accuracy; did the training diverge?"
        for name, result in scores.items()
        if result is None
    ]
    if task.classes == 1:
        found.append(f"every labelled row is of class {task.names[task.labels[0]]!r}: the probe says nothing")
    if task.unseen:
        names = ", ".join(map(repr, task.unseen[:5])) + (", ..." if len(task.unseen) > 5 else "")
        found.append(
            f"{len(task.unseen)} classes of the test part are not in the training part ({names}): counted wrong"
        )
    if (
        shuffled is not None
        and wilson(round(shuffled * len(task.tested)), len(task.tested))[0] > majority + CHANCE_SLACK
    ):
        found.append(f"shuffled labels reach {shuffled:.3f}, above chance: something besides the features decides")
    return tuple(found)
