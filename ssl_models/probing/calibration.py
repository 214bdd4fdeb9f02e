"""Batch normalisation of a random encoder, as its inputs would have it.

A fresh batch norm believes in mean 0 and variance 1, which the activations of random weights are far from. Whether the
statistics of clean rows, as training takes them of augmented ones, make a random network's features better or worse
depends on the pictures: so the baseline is asked both ways, and the slice of the training part chooses.
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_models.objectives import Objective
from ssl_models.probing.features import Source

ROWS = 1024
"""Enough for the mean and the variance of a channel, which every row gives many values of."""


def calibrate(objective: Objective, source: Source) -> bool:
    """Set the running statistics of every batch norm to the mean over batches of up to `ROWS` of the source's rows;
    False where there is none."""
    norms = [module for module in objective.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return False
    objective.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for _, batch in Source(source.read, source.rows[:ROWS]).batches(objective):
            objective.features(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return True
