"""The linear probe: what a linear classifier gains from frozen features, beside every baseline that could explain it.

The protocol is the same for every model. Features are standardised on the training part. The feature (layer, pooling)
and the strength C are chosen on a stratified slice of the training part, of whole groups (files, videos, clusters of
near-duplicates) as the test part is: first the feature at the middle strength, then the strength of that feature. The
classifier is refitted on the whole training part, and the test part is read once.

On the label-efficiency curve there are too few labels to tune anything, so nothing is: the feature is the one chosen
above and C is FEW_SHOT_STRENGTH for every encoder, draw and number of labels. All encoders see the same draws.

The random encoder is several, of as many seeds: its numbers are means over them. What the first one's slice has chosen,
the others keep, and the draws of few labels are dealt to them in turn. Intervals are over groups, and over seeds and
draws where there are some (`intervals`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, diags_array, issparse

from ssl_models.objectives.shared.accuracy import correct
from ssl_models.probing.geometry import knn_votes, principal_plane
from ssl_models.probing.intervals import FEWEST_GROUPS, Gain, paired, proportion
from ssl_models.probing.logistic import Classifier, Labels, Matrix, fit
from ssl_models.probing.settings import Probe

SLICE = 0.2
"""Share of the training part on which the feature and the strength are chosen."""
FEW_SHOT_STRENGTH = 1.0
CONSTANT = 1e-6
"""A feature whose deviation is below this share of its root mean square holds nothing but rounding."""
DOCUMENT_LENGTH = 8.0
"""Norm of a row of the bag of tokens: about that of a few dozen standardised features, so that one range of C fits."""
CHANCE_SLACK = 0.05
"""How far above the majority class the interval of shuffled labels must lie to be warned of."""
PLANE_ROWS = 1000
"""Test rows on the map of the features: more would hide each other."""
RISE = 1.05
"""A validation loss that ends higher than this many times its least has risen."""
_SLICE_STREAM, _SHOT_STREAM, _SHUFFLE_STREAM, _ROW_STREAM = range(4)

Mask = npt.NDArray[np.bool_]
Losses = Sequence[tuple[int, float]]
"""(step, validation loss) as training went."""


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
    def tested_groups(self) -> Labels:
        """Groups of the test part's rows."""
        return self.groups[self.test]

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
    correct: Mask | None = field(default=None, compare=False, repr=False)
    """`[draws, test rows]`; all encoders see the same draws. None where every label is used."""


@dataclass(frozen=True)
class Share:
    """A share of the test rows and its 95 % interval."""

    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: Mask, groups: Labels) -> Share:
        """The share of `correct`, `[rows]` or `[draws, rows]`, that is true; `groups` `[rows]`."""
        return cls(float(correct.mean()), *proportion(correct, groups))


@dataclass(frozen=True)
class Score:
    """What one encoder reached, with the `feature` and `strength` that the training slice chose."""

    feature: str
    strength: float
    width: int
    slice_accuracy: float | None
    converged: bool
    predicted: Labels
    """`[test rows]`, of the first seed"""
    correct: Mask
    """`[seeds, test rows]`; one seed but for the random encoder"""
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


def asked(config: Probe, labels: Labels) -> tuple[int, ...]:
    """Of `config.shots`, those that most classes of `labels` `[rows]` have more of: else there is nothing to draw."""
    rows = np.unique(labels, return_counts=True)[1]
    return tuple(count for count in config.shots if 2 * np.sum(rows > count) >= len(rows))


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


def score(
    features: Iterable[Mapping[str, Matrix]], task: Task, config: Probe, device: torch.device, seeds: int = 1
) -> tuple[Score, Matrix] | None:
    """Choose, refit on the whole training part, read the test part; also the first seed's standardised matrix of all
    rows. `features`: those of each seed, asked for one after the other. None where a seed has no finite feature."""
    train, labels, groups = ~task.test, task.trained, task.tested_groups
    counts = asked(config, labels)
    chosen: tuple[str, Matrix, float, float | None] | None = None
    predicted: list[Labels] = []
    few: dict[int, Mask] = {count: np.zeros((config.draws, len(task.tested)), bool) for count in counts}
    converged = True
    for seed, named in enumerate(features):
        if chosen is None:
            chosen = choose(named, task, config, device)
        matrix = None if chosen is None else chosen[1] if seed == 0 else standardise(named[chosen[0]], train)
        if chosen is None or matrix is None:
            return None
        classifier = fit(matrix[train], labels, chosen[2], device=device)
        predicted.append(classifier.predict(matrix[task.test]))
        converged &= classifier.converged
        for count in counts:
            for draw in range(seed, config.draws, seeds):
                rows = shots(labels, count, draw, config.seed)
                few_shot = fit(matrix[train][rows], labels[rows], FEW_SHOT_STRENGTH, device=device)
                few[count][draw] = few_shot.predict(matrix[task.test]) == task.tested
    assert chosen is not None
    name, matrix, strength, slice_accuracy = chosen
    correct = np.stack(predicted) == task.tested
    share = Share.of(correct, groups)
    shares = [(count, Share.of(drawn, groups), drawn) for count, drawn in few.items()]
    points = [Point(count, of.accuracy, of.low, of.high, drawn) for count, of, drawn in shares]
    everything = Point(round(len(labels) / len(np.unique(labels))), share.accuracy, share.low, share.high)
    found = Score(
        feature=name,
        strength=strength,
        width=matrix.shape[1],
        slice_accuracy=slice_accuracy,
        converged=converged,
        predicted=predicted[0],
        correct=correct,
        accuracy=share.accuracy,
        low=share.low,
        high=share.high,
        curve=(*points, everything),
    )
    return found, matrix


def probe(
    pretrained: Mapping[str, Matrix],
    random_init: Iterable[Mapping[str, Matrix]],
    raw_input: Matrix,
    task: Task,
    config: Probe,
    device: torch.device | None = None,
    zero_shot: Labels | None = None,
    losses: Losses = (),
) -> Report:
    """The whole table from features of the task's rows (all of them, in order), by name; of the random encoder, those
    of each of `config.seeds` seeds. `zero_shot`: the classes of the test rows that the model told from their names;
    `losses`: of validation, as training went. ValueError where the training or the test part is empty."""
    if not len(task.trained) or not len(task.tested):
        raise ValueError("the probe needs labelled rows in its training part and in its test part")
    where = device or torch.device("cpu")
    scored = {
        "pretrained": score([pretrained], task, config, where),
        "random_init": score(random_init, task, config, where, config.seeds),
        "raw_input": score([{"raw": raw_input}], task, config, where),
    }
    scores = {name: result[0] if result else None for name, result in scored.items()}
    values, counts = np.unique(task.trained, return_counts=True)
    majority = float(np.mean(task.tested == values[counts.argmax()]))
    shuffled: Mask | None = None
    neighbours, plane = None, None
    if (result := scored["pretrained"]) is not None:
        shuffled = _shuffled(result[1], task, result[0].strength, config, where)
        neighbours = _neighbours(result[1], task, config.neighbours, where)
        plane = principal_plane(torch.from_numpy(result[1][task.test][:PLANE_ROWS])).numpy()
    gains = {name: _gain(scores["pretrained"], scores[name], task) for name in ("random_init", "raw_input")}
    return Report(
        task=task,
        scores=scores,
        majority=majority,
        shuffled_labels=None if shuffled is None else float(shuffled.mean()),
        knn=neighbours,
        gains=gains,
        warnings=_warnings(task, config, scores, majority, shuffled, losses),
        zero_shot=None if zero_shot is None else Share.of(zero_shot == task.tested, task.tested_groups),
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


def _shuffled(matrix: Matrix, task: Task, strength: float, config: Probe, device: torch.device) -> Mask:
    """Which test rows are told after each of `draws` shuffles of the training labels, `[draws, test rows]`."""
    train, test = matrix[~task.test], matrix[task.test]
    classifiers = (
        fit(train, shuffle(task.trained, draw, config.seed), strength, device=device) for draw in range(config.draws)
    )
    return np.stack([classifier.predict(test) == task.tested for classifier in classifiers])


def _neighbours(matrix: Matrix, task: Task, neighbours: int, device: torch.device) -> float:
    bank, queries = (torch.from_numpy(matrix[part]).to(device) for part in (~task.test, task.test))
    votes = knn_votes(bank, torch.from_numpy(task.trained).to(device), queries, neighbours).cpu()
    targets = torch.from_numpy(task.tested)
    return float(correct(votes, targets.where(targets < votes.shape[1], -1))) / len(targets)  # -1: a class unseen


def few_shot_gains(report: Report, other: str) -> list[Point]:
    """How far the pre-trained encoder leads `other` at each number of labels but all: mean and 95 % interval of the
    difference, over the draws and the groups."""
    pretrained, rival = report.scores["pretrained"], report.scores[other]
    if pretrained is None or rival is None:
        return []
    gains = []
    for mine, theirs in zip(pretrained.curve, rival.curve, strict=True):
        if mine.correct is not None and theirs.correct is not None:
            gain = paired(mine.correct, theirs.correct, report.task.tested_groups)
            gains.append(Point(mine.labels, gain.mean, gain.low, gain.high))
    return gains


def _gain(pretrained: Score | None, other: Score | None, task: Task) -> Gain | None:
    if pretrained is None or other is None:
        return None
    return paired(pretrained.correct, other.correct, task.tested_groups)


def _warnings(
    task: Task,
    config: Probe,
    scores: dict[str, Score | None],
    majority: float,
    shuffled: Mask | None,
    losses: Losses,
) -> tuple[str, ...]:
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
    if (groups := len(np.unique(task.tested_groups))) < FEWEST_GROUPS:
        found.append(
            f"the test part is {len(task.tested)} rows of {groups} groups: fewer than {FEWEST_GROUPS} say nothing of "
            "how sure a number is, so every interval is the widest there is; label more, or raise shard.probe"
        )
    if any(result and result.slice_accuracy is None for result in scores.values()):
        found.append(
            f"the {len(task.trained)} rows of the training part are too few to choose on: every encoder has its first "
            "feature and the middle strength"
        )
    if left_out := sorted(set(config.shots) - set(asked(config, task.trained))):
        found.append(
            f"not asked, as most classes have no more rows to train on: {', '.join(map(str, left_out))} labels a class"
        )
    if shuffled is not None and proportion(shuffled, task.tested_groups)[0] > majority + CHANCE_SLACK:
        found.append(
            f"shuffled labels reach {shuffled.mean():.3f}, above chance: something besides the features decides"
        )
    if risen := overfitted(losses):
        found.append(risen)
    return tuple(found)


def overfitted(losses: Losses) -> str | None:
    """What there is to say where the validation loss, (step, loss) as training went, ends above its least."""
    known = [(step, loss) for step, loss in losses if np.isfinite(loss)]
    if not known:
        return None
    (best, least), (last, end) = min(known, key=lambda point: point[1]), known[-1]
    if end <= least * RISE:
        return None
    return (
        f"the validation loss rose from {least:.3f} at step {best} to {end:.3f} at step {last}: the model has "
        "overfitted; train fewer steps, or on more data"
    )
