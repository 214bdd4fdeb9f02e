"""Continue a text, or restore a corrupted one: `python -m ssl_models.tools.generate MODEL "prompt"`.

MODEL is a folder that `pretrain` wrote. A causal model continues the prompt; an encoder-decoder reads it, special
tokens written out (`<extra_id_0>`, `<mask>`), and writes its target.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from ssl_models import artifact
from ssl_models.data import vocabulary
from ssl_models.objectives.shared.denoising import Denoising
from ssl_models.objectives.shared.sampling import continuation
from ssl_models.objectives.shared.text import TextObjective

MODELS = "data/pretrain/NAME/model"
MOST_TOKENS = 1_000_000
"""Most that the command line asks for."""
SEEDS = (-(2**63), 2**64 - 1)
"""The least and the greatest that torch takes."""


class Written(NamedTuple):
    """What a model wrote."""

    text: str
    cut: int | None
    """Tokens after which the model's context ended the text; None where something else did."""


def generate(
    objective: TextObjective, prompt: str, *, limit: int, temperature: float, likeliest: int, seed: int
) -> str:
    """The prompt and its continuation, or what an encoder-decoder writes. ValueError where the model cannot."""
    return write(objective, prompt, limit=limit, temperature=temperature, likeliest=likeliest, seed=seed).text


@torch.no_grad()
def write(
    objective: TextObjective, prompt: str, *, limit: int, temperature: float, likeliest: int, seed: int
) -> Written:
    """The same as `generate`, and where the context ended it. ValueError where the model cannot write, the prompt is
    not Unicode or does not fit, or memory does not suffice for `limit` tokens."""
    if limit < 1:
        raise ValueError(f"{limit} tokens to write are fewer than 1")
    model, encoding = objective.transformer, objective.encoding
    tokenizer, context = tokenizer_of(objective), model.architecture.context
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt is not UTF-8: write it in that encoding") from None
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids], dtype=torch.long)
    start = objective.prompt(ids).to(model.tokens.weight.device)
    restores, most = isinstance(objective, Denoising), limit
    if model.architecture.positions == "learned":
        room = context - (start.shape[1] - ids.shape[1]) - (not restores)
        if ids.shape[1] > room:
            raise ValueError(
                f"the prompt has {ids.shape[1]} tokens, at most {room} fit into the model's context of {context}: "
                "shorten it"
            )
        most = min(limit, context - (1 if restores else start.shape[1]))
    memory = None
    if isinstance(objective, Denoising):
        memory = model.encode(start)
        start = start.new_full((1, 1), objective.begin)
    try:
        written = continuation(
            model,
            start,
            limit=most,
            end=encoding.eos,
            vocabulary=encoding.vocabulary,
            temperature=temperature,
            likeliest=likeliest,
            generator=torch.Generator().manual_seed(seed),
            memory=memory,
        )[0].tolist()
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise ValueError(f"memory does not suffice for {most} tokens: ask for fewer") from None
    kept = [token for token in written if token not in (encoding.eos, encoding.bos)]
    text = str(tokenizer.decode(kept if memory is not None else [*ids[0].tolist(), *kept], skip_special_tokens=False))
    return Written(text, most if most < limit and len(written) == most and written[-1] != encoding.eos else None)


def tokenizer_of(objective: TextObjective) -> Tokenizer:
    """The tokenizer that travels with the model. ValueError where it is missing or broken."""
    path = objective.encoding.folder / vocabulary.FILE
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself for a broken file
        raise ValueError(f"{path}: is no tokenizer that can be read: {error}") from None


def open_text_model(folder: Path) -> TextObjective:
    """The language model of a folder, on the GPU where there is one. ValueError where it is none."""
    try:
        (folder / artifact.PRETEXT).stat()
    except (FileNotFoundError, NotADirectoryError):
        lacks = f"has no {artifact.PRETEXT}" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder}: {lacks}; MODEL is a folder that training wrote: {MODELS}") from None
    except OSError:
        pass  # `artifact.load` says why
    objective = artifact.load(folder)
    if not isinstance(objective, TextObjective):
        raise ValueError(f"{folder}: is no language model")
    return objective.to("cuda" if torch.cuda.is_available() else "cpu")


def _writer(folder: Path) -> TextObjective:
    """The language model of a folder, which writes. ValueError where it does not."""
    objective = open_text_model(folder)
    if type(objective).prompt is TextObjective.prompt:
        raise ValueError(
            f"{folder}: this model reads text and does not write any; decoders (gpt2, llama) and encoder-decoders "
            "(t5, bart) do"
        )
    return objective


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return number

    return read


def _temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Print what the model writes."""
    parser = argparse.ArgumentParser(
        prog="python -m ssl_models.tools.generate", description="What a language model writes."
    )
    parser.add_argument("model", type=Path, help=f"the folder {MODELS}")
    parser.add_argument("prompt", help="the text to continue, or to restore")
    parser.add_argument("--tokens", type=_whole(1, MOST_TOKENS), default=128, help="most tokens to write (default 128)")
    parser.add_argument("--temperature", type=_temperature, default=0.8, help="0: always the likeliest (default 0.8)")
    parser.add_argument(
        "--top-k", type=_whole(1, sys.maxsize), default=50, help="draw among so many likeliest (default 50)"
    )
    parser.add_argument("--seed", type=_whole(*SEEDS), default=0)
    given = parser.parse_args(arguments)
    try:
        written = write(
            _writer(given.model),
            given.prompt,
            limit=given.tokens,
            temperature=given.temperature,
            likeliest=given.top_k,
            seed=given.seed,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if written.cut is not None:
        print(f"note: the model's context ends after {written.cut} of {given.tokens} tokens", file=sys.stderr)
    print(written.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
