"""Multinomial logistic regression with an L2 penalty, by L-BFGS: the linear probe's only classifier.

Minimises mean cross-entropy + |W|^2 / (2 C rows), the intercept unpenalised: the same optimum as scikit-learn's
LogisticRegression(C). Loss and gradient are two matrix products in float32, on the device of the probe, or sparse on
the CPU; SciPy's L-BFGS-B searches the line. A fit may start from another; a few rows are fitted in their own span,
where the optimum lies, which makes the many fits of few labels cheap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array, issparse
from threadpoolctl import ThreadpoolController

Matrix = Any
"""Features `[rows, width]`: a float32 NumPy array, or a float32 scipy.sparse.csr_array."""
Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

ITERATIONS = 300
GRADIENT, CONVERGED = 1e-4, 1e-3
"""The search ends where no entry of the gradient of the mean loss is larger than the first (scikit-learn's default), or
where float32 tells no better point; more than the second is no optimum."""
MEMORY = 10
FEW = 512
"""Most rows whose span is computed: it costs the cube of their number."""
THREADS_PAY = 1 << 26
"""rows x width x classes from which on a product is worth more than one thread; on a busy machine a small one that is
split waits several times as long as it computes."""
RANK = 1e-7
"""Directions of the rows' span with a smaller share of the largest eigenvalue are rounding."""


@dataclass(frozen=True)
class Classifier:
    """`weights` `[width + 1, classes]`, the intercepts last; `classes` are the labels the columns stand for."""

    weights: Weights
    classes: Labels
    converged: bool

    def predict(self, matrix: Matrix) -> Labels:
        """The label of each row of `matrix` `[rows, width]`."""
        times, _ = _products(matrix, torch.device("cpu"))
        with _threads(matrix.shape[0] * self.weights.size), torch.inference_mode():
            scores = times(torch.from_numpy(self.weights[:-1])) + torch.from_numpy(self.weights[-1])
        labels: Labels = self.classes[scores.argmax(dim=1).numpy()]
        return labels


@functools.cache
def _libraries() -> ThreadpoolController:
    """The linear algebra that torch, NumPy and SciPy brought along; finding them takes milliseconds."""
    return ThreadpoolController()


@contextmanager
def _threads(work: int) -> Iterator[None]:
    """One thread for products too small to be split."""
    if work >= THREADS_PAY:
        yield
        return
    with _libraries().limit(limits=1):
        yield


Products = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def _products(matrix: Matrix, device: torch.device) -> Products:
    """Multiply by the matrix, and by its transpose."""
    if issparse(matrix):
        transposed = csr_array(matrix.T)
        return (lambda w: torch.from_numpy(matrix @ w.numpy())), (lambda r: torch.from_numpy(transposed @ r.numpy()))
    dense = _dense(matrix).to(device)
    return (lambda w: dense @ w), (lambda r: dense.T @ r)


def _dense(matrix: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))


def fit(
    matrix: Matrix,
    labels: Labels,
    strength: float,
    start: Classifier | None = None,
    device: torch.device | None = None,
) -> Classifier:
    """The classifier of rows `matrix` `[rows, width]` with `labels` `[rows]`; `strength` is scikit-learn's C.

    `start`: a fit of the same rows at another strength, from where few steps are left. ValueError without rows.
    """
    rows, width = matrix.shape
    if not rows:
        raise ValueError("a classifier needs at least one labelled row")
    with _threads(rows * width * len(np.unique(labels))), torch.inference_mode():
        if rows < width and rows <= FEW and start is None:
            return _fit_in_span(matrix, labels, strength)
        return _fit(matrix, labels, strength, start, device)


def _fit_in_span(matrix: Matrix, labels: Labels, strength: float) -> Classifier:
    """The same optimum, found among weights X^T A: an orthonormal basis of the rows' span takes the features' place."""
    gram = (matrix @ matrix.T).toarray() if issparse(matrix) else _dense(matrix) @ _dense(matrix).T
    values, vectors = torch.linalg.eigh(torch.as_tensor(gram).double())
    kept = values > RANK * values[-1]
    roots = values[kept].sqrt()
    found = _fit((vectors[:, kept] * roots).float().numpy(), labels, strength, None, None)
    back = (vectors[:, kept] / roots).float() @ torch.from_numpy(found.weights[:-1])
    _, transposed_times = _products(matrix, torch.device("cpu"))
    weights = torch.cat([transposed_times(back), torch.from_numpy(found.weights[-1:])])
    return Classifier(weights.numpy(), found.classes, found.converged)


def _fit(
    matrix: Matrix, labels: Labels, strength: float, start: Classifier | None, device: torch.device | None
) -> Classifier:
    rows, width = matrix.shape
    where = torch.device("cpu") if device is None or issparse(matrix) else device
    times, transposed_times = _products(matrix, where)
    classes, targets = np.unique(labels, return_inverse=True)
    target = torch.from_numpy(targets.astype(np.int64)).to(where)[:, None]
    penalty = 1.0 / (strength * rows)

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights = torch.from_numpy(flat.astype(np.float32)).view(width + 1, -1).to(where)
        residual = (times(weights[:-1]) + weights[-1]).log_softmax(dim=1)
        cross_entropy = -float(residual.gather(1, target).double().mean())
        residual.exp_().scatter_add_(1, target, torch.full_like(residual[:, :1], -1.0)).div_(rows)
        slope = torch.cat([transposed_times(residual) + penalty * weights[:-1], residual.sum(0, keepdim=True)])
        value = cross_entropy + 0.5 * penalty * float(weights[:-1].double().square().sum())
        return value, slope.double().cpu().numpy().ravel()

    first = np.zeros((width + 1) * len(classes)) if start is None else start.weights.astype(np.float64).ravel()
    limits = {"maxiter": ITERATIONS, "gtol": GRADIENT, "maxcor": MEMORY}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=limits)
    converged = bool(np.abs(found.jac).max() <= CONVERGED)
    return Classifier(found.x.astype(np.float32).reshape(width + 1, -1), classes, converged)
