"""The losses that couple a whole batch, as pure functions of its embeddings: one per paper, each a mean or a sum as
stated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, arXiv 2002.05709, equation 1).

    `first` and `second` `[N, width]` are two views of the same N samples. Each of the 2N embeddings has to find its
    other view among the 2N - 1 others by cosine similarity; the mean over all 2N.
    """
    both = functional.normalize(torch.cat([first, second]), dim=1)
    logits = both @ both.T / temperature
    logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf)
    targets = torch.arange(len(both), device=both.device).roll(len(first))
    return functional.cross_entropy(logits, targets)


def vicreg(first: Tensor, second: Tensor) -> Tensor:
    """Variance-invariance-covariance (Bardes et al. 2021, arXiv 2105.04906) with weights 25, 25 and 1; the variance
    term is the mean of the two views', as in Meta's code. `first` and `second` `[N, width]`, N > 1."""
    invariance = functional.mse_loss(first, second)
    variance, covariance = first.new_zeros(()), first.new_zeros(())
    for view in (first, second):
        variance = variance + functional.relu(1 - torch.sqrt(view.var(dim=0) + 1e-4)).mean() / 2
        square = torch.cov(view.T) ** 2
        covariance = covariance + (square.sum() - square.diagonal().sum()) / view.shape[1]
    return 25 * invariance + 25 * variance + covariance


def barlow_twins(first: Tensor, second: Tensor, redundancy: float = 0.0051) -> Tensor:
    """Cross-correlation of the two views `[N, width]` drawn to the identity (Zbontar et al. 2021, arXiv 2103.03230);
    `redundancy` weighs its off-diagonal."""
    correlation = _standardised(first).T @ _standardised(second) / len(first)
    on = ((correlation.diagonal() - 1) ** 2).sum()
    off = (correlation**2).sum() - (correlation.diagonal() ** 2).sum()
    return on + redundancy * off


def _standardised(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True)


def clip(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Contrastive language-image loss (Radford et al. 2021, arXiv 2103.00020, figure 3): mean of the cross-entropies of
    image to text and text to image. `image`, `text` `[N, width]`, normalised here; `scale` multiplies the cosines."""
    logits = scale * functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def siglip(
    image: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | float, right: Tensor | None = None
) -> Tensor:
    """Sigmoid loss (Zhai et al. 2023, arXiv 2303.15343, equation 1): every pair of the N x N is judged by itself; the
    sum over pairs divided by N. `scale` and `bias` are t and b of the paper; `right` bool `[N, N]` says which texts
    describe which images, by default each its own."""
    cosine = functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T
    if right is None:
        right = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    sign = 2 * right.to(cosine.dtype) - 1
    return -functional.logsigmoid(sign * (scale * cosine + bias)).sum() / len(cosine)
