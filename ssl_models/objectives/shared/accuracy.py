"""How often the right answer has the best score, where ties are broken at random: the expectation, so that nothing is
drawn.

An encoder that collapsed scores everything alike. Taking the first of a tie, or counting every tie as right, would make
its accuracy a matter of the answers' order, or perfect; the expectation is that of guessing. A score that is not a
number makes its row wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor


def correct(scores: Tensor, targets: Tensor) -> Tensor:
    """Rows whose target has the best score: float32 scalar of `scores` `[..., answers]` and `targets` int64 `[...]`,
    of which one below zero is never right. A target that ties with n others counts 1 / (n + 1)."""
    own = scores.gather(-1, targets.clamp(min=0)[..., None])
    best = (scores <= own).all(dim=-1) & (targets >= 0)
    return (best / (scores == own).sum(dim=-1).clamp(min=1)).sum()


def recalled(scores: Tensor, right: Tensor, places: int) -> Tensor:
    """Rows that have one of their right answers among the `places` best: float32 scalar of `scores` `[rows, answers]`
    and `right` bool of the same shape, with at least one right answer in each row.

    Where the best right answer of a row ties with w wrong ones and r - 1 right ones, and p places are left for them, it
    counts 1 - C(w, p) / C(w + r, p).
    """
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    left = places - (~(scores <= best)).sum(dim=1)
    tied = scores == best
    wrong, either = (tied & ~right).sum(dim=1), tied.sum(dim=1)
    missed = torch.ones(len(scores), device=scores.device)
    for place in range(places):
        share = (wrong - place).clamp(min=0) / (either - place).clamp(min=1)
        missed = torch.where((place < left) & (either > 0), missed * share, missed)
    return (1 - missed).sum()
