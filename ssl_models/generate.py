"""Continue a text, or restore a corrupted one: `python -m ssl_models.generate MODEL "prompt"`.

MODEL is a folder that `pretrain` wrote. A causal model continues the prompt; an encoder-decoder reads it, special
tokens written out (`<extra_id_0>`, `<mask>`), and writes its target.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ssl_models import artifact, vocabulary
from ssl_models.denoising import Denoising
from ssl_models.sampling import continuation
from ssl_models.text import TextObjective


@torch.no_grad()
def generate(
    objective: TextObjective, prompt: str, *, limit: int, temperature: float, likeliest: int, seed: int
) -> str:
    """The prompt and its continuation, or what an encoder-decoder writes. ValueError where the model cannot."""
    model, encoding = objective.transformer, objective.encoding
    tokenizer = tokenizer_of(objective)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids], dtype=torch.long)
    start = objective.prompt(ids).to(model.tokens.weight.device)
    memory = None
    if isinstance(objective, Denoising):
        memory = model.encode(start)
        start = start.new_full((1, 1), objective.begin)
    if model.architecture.positions == "learned":
        limit = min(limit, model.architecture.context - start.shape[1])
    if limit < 1:
        raise ValueError(f"a prompt of {ids.shape[1]} tokens fills the model's context of {model.architecture.context}")
    written = continuation(
        model,
        start,
        limit=limit,
        end=encoding.eos,
        vocabulary=encoding.vocabulary,
        temperature=temperature,
        likeliest=likeliest,
        generator=torch.Generator().manual_seed(seed),
        memory=memory,
    )[0].tolist()
    kept = [token for token in written if token not in (encoding.eos, encoding.bos)]
    return str(tokenizer.decode(kept if memory is not None else [*ids[0].tolist(), *kept], skip_special_tokens=False))


def tokenizer_of(objective: TextObjective) -> Tokenizer:
    """The tokenizer that travels with the model. ValueError where it is missing or broken."""
    path = objective.encoding.folder / vocabulary.FILE
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself for a broken file
        raise ValueError(f"{path}: is no tokenizer that can be read: {error}") from None


def open_text_model(folder: Path) -> TextObjective:
    """The language model of a folder, on the GPU where there is one. ValueError where it is none."""
    objective = artifact.load(folder)
    if not isinstance(objective, TextObjective):
        raise ValueError(f"{folder}: is no language model")
    return objective.to("cuda" if torch.cuda.is_available() else "cpu")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Print what the model writes."""
    parser = argparse.ArgumentParser(prog="python -m ssl_models.generate", description="What a language model writes.")
    parser.add_argument("model", type=Path, help="the folder data/pretrain/NAME/model")
    parser.add_argument("prompt", help="the text to continue, or to restore")
    parser.add_argument("--tokens", type=_count, default=128, help="most tokens to write (default 128)")
    parser.add_argument("--temperature", type=_temperature, default=0.8, help="0: always the likeliest (default 0.8)")
    parser.add_argument("--top-k", type=_count, default=50, help="draw among so many likeliest (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        text = generate(
            open_text_model(given.model),
            given.prompt,
            limit=given.tokens,
            temperature=given.temperature,
            likeliest=given.top_k,
            seed=given.seed,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
