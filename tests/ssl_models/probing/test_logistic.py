"""The classifier against scikit-learn's optimum, whatever path leads to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from ssl_models.probing import logistic
from ssl_models.probing.logistic import Classifier, fit


def problem(rows: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, rows - classes)])
    centres = generator.normal(size=(classes, width))
    return (centres[labels] + 1.5 * generator.normal(size=(rows, width))).astype(np.float32), labels


def loss(classifier: Classifier, matrix: np.ndarray, labels: np.ndarray, strength: float) -> float:
    scores = matrix.astype(np.float64) @ classifier.weights[:-1] + classifier.weights[-1]
    scores -= scores.max(axis=1, keepdims=True)
    chosen = scores[np.arange(len(labels)), np.searchsorted(classifier.classes, labels)]
    cross_entropy = np.mean(np.log(np.exp(scores).sum(axis=1)) - chosen)
    return float(cross_entropy + (classifier.weights[:-1] ** 2).sum() / (2 * strength * len(labels)))


def theirs(matrix: np.ndarray, labels: np.ndarray, strength: float) -> Classifier:
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(matrix.astype(np.float64), labels)
    weights = np.concatenate([model.coef_.T, model.intercept_[None]]).astype(np.float32)
    return Classifier(weights, model.classes_, True)


@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(200, 20), (40, 100)])  # the second is fitted in the span of its rows
def test_the_optimum_is_scikit_learns(rows: int, width: int, strength: float) -> None:
    matrix, labels = problem(rows, width, 4)
    ours, other = fit(matrix, labels, strength), theirs(matrix, labels, strength)
    assert ours.converged
    assert loss(ours, matrix, labels, strength) == pytest.approx(loss(other, matrix, labels, strength), abs=1e-4)
    assert np.mean(ours.predict(matrix) == other.predict(matrix)) > 0.98


@settings(max_examples=20)
@given(rows=st.integers(10, 60), width=st.integers(1, 60), classes=st.integers(2, 5), seed=st.integers(0, 99))
def test_sparse_dense_and_span_agree(rows: int, width: int, classes: int, seed: int) -> None:
    matrix, labels = problem(rows, width, classes, seed)
    matrix[np.abs(matrix) < 1] = 0
    with pytest.MonkeyPatch.context() as patch:
        span, sparse = fit(matrix, labels, 1.0), fit(csr_array(matrix), labels, 1.0)
        patch.setattr(logistic, "FEW", 0)
        direct = fit(matrix, labels, 1.0)
    losses = [loss(found, matrix, labels, 1.0) for found in (span, sparse, direct)]
    assert max(losses) - min(losses) < 1e-3


def test_a_start_changes_the_path_and_not_the_end() -> None:
    matrix, labels = problem(200, 10, 3)
    warm = fit(matrix, labels, 1.0, start=fit(matrix, labels, 0.01))
    assert loss(warm, matrix, labels, 1.0) == pytest.approx(
        loss(fit(matrix, labels, 1.0), matrix, labels, 1.0), abs=1e-4
    )


def test_labels_keep_their_names() -> None:
    matrix, labels = problem(90, 8, 3)
    names = np.array([3, 17, 40])
    found = fit(matrix, names[labels], 1.0)
    assert found.classes.tolist() == [3, 17, 40]
    assert set(found.predict(matrix)) <= {3, 17, 40}


def test_one_class_is_predicted_always() -> None:
    matrix, _ = problem(20, 5, 2)
    assert fit(matrix, np.full(20, 7), 1.0).predict(matrix).tolist() == [7] * 20


@pytest.mark.parametrize("width", [3, 50])
def test_features_without_information_leave_the_commonest_class(width: int) -> None:
    labels = np.array([0] * 6 + [1] * 14)
    assert fit(np.zeros((20, width), np.float32), labels, 1.0).predict(np.zeros((2, width), np.float32)).tolist() == [
        1,
        1,
    ]


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fit(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), 1.0)
