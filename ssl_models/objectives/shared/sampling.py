"""What a language model writes, one token at a time, with cached keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_models.models.transformer import Transformer

COLDEST = 1e-6
"""The least temperature to draw at: below, the logits' rounding would decide, and their quotient overflow."""


@torch.no_grad()
def continuation(
    model: Transformer,
    tokens: Tensor,
    *,
    limit: int,
    end: int,
    vocabulary: int,
    temperature: float = 1.0,
    likeliest: int = 0,
    generator: torch.Generator | None = None,
    memory: Tensor | None = None,
    memory_padding: Tensor | None = None,
) -> Tensor:
    """At most `limit` ids after `tokens` `[batch, tokens]`: int64 `[batch, written]`, `end` after a row's end.

    Draws among the `likeliest` ids (0: all) below `vocabulary` with a CPU `generator`, so that a seed means the same on
    every device; a `temperature` below `COLDEST` takes the likeliest. `memory` is an encoder's.
    """
    cache = model.cache(tokens.shape[1] + limit)
    ended = torch.zeros(len(tokens), 1, dtype=torch.bool, device=tokens.device)
    written: list[Tensor] = []
    step = tokens
    for _ in range(limit):
        hidden = model.decode(step, memory=memory, memory_padding=memory_padding, cache=cache)
        logits = model.logits(hidden[:, -1])[:, :vocabulary].float().cpu()
        drawn = choose(logits, temperature, likeliest, generator).to(tokens.device)
        step = drawn.masked_fill(ended, end)
        written.append(step)
        ended = ended | (step == end)
        if ended.all():
            break
    return torch.cat(written, dim=1) if written else tokens[:, :0]


def choose(logits: Tensor, temperature: float, likeliest: int, generator: torch.Generator | None) -> Tensor:
    """An id per row of `logits` `[batch, vocabulary]`: int64 `[batch, 1]`."""
    if temperature < COLDEST:
        return logits.argmax(1, keepdim=True)
    count = min(likeliest or logits.shape[1], logits.shape[1])
    top, ids = logits.topk(count)
    return ids.gather(1, torch.multinomial((top / temperature).softmax(1), 1, generator=generator))
