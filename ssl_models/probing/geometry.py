"""What the geometry of features tells without training anything: the vote of nearest neighbours, the effective rank
that tells learning from collapse, and the map of a cloud of points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssl_models.objectives.shared.accuracy import correct

TEMPERATURE = 0.07
"""Sharpness of the neighbours' votes, after Wu et al. 2018 (arXiv 1805.01978)."""
CHUNK = 1024
"""Rows whose similarities to all others are held at once."""


def _votes(queries: Tensor, bank: Tensor, labels: Tensor, neighbours: int, itself: bool, start: int) -> Tensor:
    similarity = queries @ bank.T
    if itself:  # leave-one-out: row i of the chunk is row start + i of the bank
        own = torch.arange(len(queries), device=queries.device)
        similarity[own, own + start] = -torch.inf
    nearest = similarity.topk(neighbours, dim=1)
    weights = (nearest.values / TEMPERATURE).softmax(dim=1)  # the usual exp(s/t), scaled by a constant per row
    classes = int(labels.max()) + 1
    votes = torch.zeros(len(queries), classes, device=queries.device)
    return votes.scatter_add_(1, labels[nearest.indices], weights)


@torch.no_grad()
def knn_votes(bank: Tensor, labels: Tensor, queries: Tensor | None = None, neighbours: int = 20) -> Tensor:
    """Votes `[queries, classes]` of the `neighbours` nearest by cosine, weighted by similarity (Wu et al. 2018).

    bank: float `[rows, width]` with `labels` `[rows]` int64 from 0; queries: `[queries, width]`, or None to classify
    each row of the bank by the others (leave-one-out). Fewer rows than `neighbours`: all of them vote.
    """
    itself = queries is None
    if len(bank) < 1 + itself:
        raise ValueError(f"{len(bank)} labelled rows are too few for nearest neighbours")
    bank = functional.normalize(bank.float(), dim=1)
    asked = bank if queries is None else functional.normalize(queries.float(), dim=1)
    k = min(neighbours, len(bank) - itself)
    starts = range(0, len(asked), CHUNK)
    return torch.cat([_votes(asked[at : at + CHUNK], bank, labels, k, itself, at) for at in starts])


def knn_accuracy(features: Tensor, labels: Tensor, neighbours: int = 20) -> float:
    """Leave-one-out accuracy of `knn_votes`, ties broken at random, on features `[rows, width]` with labels `[rows]`
    int64; rows labelled below zero are left out. NaN where fewer than two labelled rows remain or a feature is not
    finite."""
    known = labels >= 0
    features, labels = features[known], labels[known]
    if len(features) < 2 or not torch.isfinite(features).all():
        return float("nan")
    return float(correct(knn_votes(features, labels, neighbours=neighbours), labels)) / len(labels)


@torch.no_grad()
def rank_me(features: Tensor) -> float:
    """Effective rank of features `[rows, width]`, between 1 (collapsed) and min(rows, width): the exponential of the
    entropy of the normalised singular values (RankMe, Garrido et al. 2023, arXiv 2210.02885, eq. 2). NaN where a
    feature is not finite or there are no rows."""
    if not len(features) or not torch.isfinite(features).all():
        return float("nan")
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


@torch.no_grad()
def principal_plane(features: Tensor) -> Tensor:
    """Features `[rows, width]` on their first two principal components, float32 `[rows, 2]`: the map of a cloud of
    points that keeps most of its variance. A component that does not exist is 0; the largest entry of each direction is
    positive, so that the same features give the same map."""
    centred = features.double() - features.double().mean(dim=0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    kept = min(2, len(values))
    sign = right[:kept].gather(1, right[:kept].abs().argmax(dim=1, keepdim=True))[:, 0].sign()
    found = torch.zeros(len(features), 2)
    found[:, :kept] = (left[:, :kept] * values[:kept] * sign).float()
    return found
