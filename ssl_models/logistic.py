"""Multinomial logistic regression with an L2 penalty, by L-BFGS: the linear probe's only classifier.

Minimises mean cross-entropy + |W|^2 / (2 C rows), the intercept unpenalised: the same optimum as scikit-learn's
LogisticRegression(C). Loss and gradient are two matrix products in float32, on the device of the probe, or sparse on
the CPU; SciPy's L-BFGS-B searches the line. Faster than scikit-learn mainly because a fit can start from another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array, issparse

Matrix = Any
"""Features `[rows, width]`: a float32 NumPy array, or a float32 scipy.sparse.csr_array."""
Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

ITERATIONS = 300
GRADIENT = 1e-4
"""Converged where no entry of the gradient of the mean loss is larger (scikit-learn's default)."""
MEMORY = 10


@dataclass(frozen=True)
class Classifier:
    """`weights` `[width + 1, classes]`, the intercepts last; `classes` are the labels the columns stand for."""

    weights: Weights
    classes: Labels
    converged: bool

    def predict(self, matrix: Matrix) -> Labels:
        """The label of each row of `matrix` `[rows, width]`."""
        scores = np.asarray(matrix @ self.weights[:-1]) + self.weights[-1]
        labels: Labels = self.classes[scores.argmax(axis=1)]
        return labels


Products = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def _products(matrix: Matrix, device: torch.device) -> Products:
    """Multiply by the matrix, and by its transpose."""
    if issparse(matrix):
        transposed = csr_array(matrix.T)
        return (lambda w: torch.from_numpy(matrix @ w.numpy())), (lambda r: torch.from_numpy(transposed @ r.numpy()))
    dense = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32)).to(device)
    return (lambda w: dense @ w), (lambda r: dense.T @ r)


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
    with torch.inference_mode():
        found = minimize(
            loss,
            first,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": ITERATIONS, "gtol": GRADIENT, "maxcor": MEMORY},
        )
    return Classifier(found.x.astype(np.float32).reshape(width + 1, -1), classes, bool(found.success))
