"""Small encodings and rows of text for the tests of language objectives."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from ssl_models import objectives
from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Objective

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<cls>", "<sep>"]
PRESETS = {
    "next_token": "gpt2",
    "masked_language": "bert",
    "span_corruption": "t5",
    "text_infilling": "bart",
}
SMALL = {"layers": 2, "width": 32, "heads": 4}
TEXT = (
    "The quick brown fox jumps over the lazy dog. Does it rain? It does! Never mind the weather, said Ann.\n"
    "A second line, with numbers 12 and 345. She said 'stop.' Then he left: naïve café, 東京 too.\n"
)


def plain(vocabulary: int = 120, length: int = 64, sentinels: int = 40, **roles: int) -> Encoding:
    """An encoding whose ids are not text: seven special ones below, sentinels above."""
    top = tuple(range(vocabulary - 1, vocabulary - 1 - sentinels, -1))
    named = {"pad": 0, "bos": 1, "eos": 2, "mask": 4, "cls": 5, "sep": 6} | roles
    return Encoding(
        modality="text",
        folder=Path("there/is/none"),
        length=length,
        vocabulary=vocabulary,
        sentinels=top,
        special=(*range(7), *top),
        **named,
    )


def bpe(folder: Path, length: int = 64) -> Encoding:
    """Byte-level BPE trained on `TEXT`, saved into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return _saved(tokenizer, trainer, folder, length)


def unigram(folder: Path, length: int = 64) -> Encoding:
    """A Unigram model with a metaspace, as SentencePiece has it, trained on `TEXT`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _saved(tokenizer, trainer, folder, length)


def _saved(tokenizer: Tokenizer, trainer: object, folder: Path, length: int) -> Encoding:
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(40))])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return plain(tokenizer.get_vocab_size(), length).model_copy(update={"folder": folder})


def encode(encoding: Encoding, text: str) -> list[int]:
    """Ids of `text`."""
    tokenizer = Tokenizer.from_file(str(encoding.folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def padded(rows: list[list[int]], encoding: Encoding) -> Tensor:
    """Rows of ids, cut or padded to the encoding's length."""
    return torch.tensor([(row + [encoding.pad] * encoding.length)[: encoding.length] for row in rows])


def random_rows(encoding: Encoding, rows: int, seed: int = 0, document: int = 20) -> Tensor:
    """Packed rows of random ordinary ids, with an `eos` about every `document` tokens."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.tensor([index for index in range(encoding.vocabulary) if index not in encoding.special])
    tokens = ordinary[torch.randint(len(ordinary), (rows, encoding.length), generator=generator)]
    ends = torch.rand(tokens.shape, generator=generator) < 1 / document
    return tokens.masked_fill(ends, encoding.eos)


def build(
    name: str, encoding: Encoding, preset: str | None = None, backbone: dict | None = None, **options
) -> Objective:
    """A small objective by its module's name, from a fixed seed."""
    torch.manual_seed(0)
    kind = objectives.find(name)
    return kind(
        Backbone(preset=preset or PRESETS[name], **(SMALL | (backbone or {}))), kind.Options(**options), encoding
    )


def keys(rows: int, step: int = 0, seed: int = 0) -> Tensor:
    """Keys of samples 0..rows-1."""
    return keyed.keys(seed, step, torch.arange(rows))
