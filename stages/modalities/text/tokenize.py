"""Text to token ids: train a tokenizer on the corpus, or take one that exists, and encode with the fastest engine.

A trained tokenizer is byte-level BPE with GPT-2's pre-tokeniser, or a Unigram model as SentencePiece has it (Kudo 2018)
over whitespace-marked words; both give every text back exactly. It reserves the special tokens of every objective, so
that one corpus serves all models: `<pad>` ... at the bottom, and T5's 100 sentinels at the top of the vocabulary,
`<extra_id_0>` highest. Text is never read as a special token: a document that says `</s>` is just text.

Ids come from `fastokens` where a sample of each partition agrees with `tokenizers`, else from `tokenizers` itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ssl_models.config import Strict
from ssl_models.data.encoding import Encoding
from stages.params import UserError

BATCH = 2048
"""Documents encoded at once."""
TOKENIZER = "tokenizer.json"
SENTINEL_NAMES = tuple(f"<extra_id_{number}>" for number in range(100))
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<cls>", "<sep>")
LEAST_VOCABULARY = len(SPECIAL) + 256 + len(SENTINEL_NAMES)
SAMPLE_BYTES = 64 * 2**10
"""Text of each partition on which the fast engine must agree with `tokenizers`, and the decoder with the text."""

SPACE = "\u2581"
WORDS = rf"\n+|{SPACE}+(?={SPACE})|{SPACE}?[^{SPACE}\n]+|{SPACE}"
"""What the Unigram model's pre-tokeniser calls a word."""
PRINTABLE = "".join(map(chr, range(ord("!"), ord("~") + 1)))
NEVER = -1000.0
"""Log-probability of a token that text must not match."""

ROLES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "bos": ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"),
    "eos": ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("<cls>", "[CLS]", "<s>"),
    "sep": ("<sep>", "[SEP]", "</s>"),
}
"""What an imported tokenizer may call the token of each role, where its folder does not say."""
INSTEAD = {
    "eos": ("sep", "pad"),
    "pad": ("eos",),
    "bos": ("cls", "eos"),
    "cls": ("bos",),
    "sep": ("eos",),
    "mask": ("unk", "pad"),
}
"""The roles, in order, whose token serves where an imported tokenizer has none for a role."""


class Options(Strict):
    """`corpora.NAME.tokenize` of a text corpus."""

    algorithm: Literal["bpe", "unigram"] = Field(default="bpe", description="byte-pair encoding, or a unigram model")
    vocabulary: int = Field(default=8192, le=2**31, description="ids, special ones included")
    train_bytes: int = Field(default=64 * 2**20, ge=1, description="of text to train on, at most: a fixed sample")
    tokenizer: Path | None = Field(default=None, description="a tokenizer.json, or its folder, to use as it is")

    @model_validator(mode="after")
    def _alphabet_fits(self) -> Options:
        least = LEAST_VOCABULARY + (len(PRINTABLE) if self.algorithm == "unigram" else 0)
        if self.vocabulary < least:
            raise ValueError(f"vocabulary must be at least {least}: bytes, special tokens and sentinels")
        return self

    @model_validator(mode="after")
    def _imported_or_trained(self) -> Options:
        if self.tokenizer is not None and (given := self.model_fields_set - {"tokenizer"}):
            raise ValueError(f"an existing tokenizer is used as it is: remove {', '.join(sorted(given))}")
        return self


def fit(partitions: Sequence[Path], options: Options, folder: Path, special: Sequence[str] = SPECIAL) -> Encoding:
    """Train or import the tokenizer, and write `tokenizer.json` into `folder`. `special`: `SPECIAL` in any order."""
    if options.tokenizer is not None:
        tokenizer, named = _imported(options.tokenizer)
    else:
        tokenizer, named = _trained(_sample(partitions, options.train_bytes), options, special), {}
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / TOKENIZER), pretty=False)
    return described(tokenizer, named, str(options.tokenizer or "tokenizer"))


def expected(options: Options, folder: Path) -> Encoding | None:
    """The encoding that `fit` will make, as far as `options` tell; None of an imported tokenizer."""
    if options.tokenizer is not None:
        return None
    size = options.vocabulary
    sentinels = tuple(range(size - 1, size - 1 - len(SENTINEL_NAMES), -1))
    roles = {name: SPECIAL.index(ROLES[name][0]) for name in ("pad", "bos", "eos", "mask", "cls", "sep")}
    special = (*range(len(SPECIAL)), *sentinels)
    sizes = {"modality": "text", "vocabulary": size, "sentinels": sentinels, "special": special}
    return Encoding.model_validate(sizes | roles)


def fields(encoding: Encoding) -> list[pa.Field]:
    """`tokens`: one list of ids per document, without any special token."""
    return [pa.field("tokens", pa.list_(pa.uint16() if encoding.vocabulary <= 2**16 else pa.uint32()))]


def metrics(counts: Mapping[str, int], encoding: Encoding) -> dict[str, Any]:
    """Tokens, bytes a token, documents without a token (`empty`), the engine, and `exact_decodes`: the share of the
    checked documents that the decoder gives back exactly."""
    return {
        "tokens": counts["tokens"],
        "bytes_per_token": round(counts["bytes"] / max(counts["tokens"], 1), 4),
        "vocabulary": encoding.vocabulary,
        "empty": counts["empty"],
        "engine": "tokenizers" if counts["slow"] else "fastokens",
        "exact_decodes": round(counts["exact"] / max(counts["checked"], 1), 6),
    }


Encoded = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
"""All ids of some documents in a row, and where each document's begin: one entry more than documents."""
Engine = Callable[[list[str]], Encoded]


class Encoder:
    """Encodes the documents of one partition."""

    COLUMNS = ("text",)

    def __init__(self, encoding: Encoding, options: Options) -> None:
        self.counts: Counter[str] = Counter()
        self._type = fields(encoding)[0].type
        self._path = encoding.folder / TOKENIZER
        self._engine: Engine | None = None

    def encode(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The one column `tokens` of `rows`."""
        texts = rows.column("text").to_pylist()
        if self._engine is None:
            self._engine = self._checked(_first(texts, SAMPLE_BYTES))
        ids, offsets = self._engine(texts)
        lengths = np.diff(offsets)
        self.counts["tokens"] += len(ids)
        self.counts["empty"] += int((lengths == 0).sum())
        self.counts["bytes"] += pc.sum(pc.binary_length(rows.column("text"))).as_py() or 0
        values = pa.array(ids.astype(self._type.value_type.to_pandas_dtype()))
        return [pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=self._type)]

    def _checked(self, sample: list[str]) -> Engine:
        """The fast engine where it agrees with the reference on `sample`, else the reference."""
        tokenizer = Tokenizer.from_file(str(self._path))
        reference = reference_engine(tokenizer)
        ids, offsets = reference(sample)
        spans = [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]
        decoded = tokenizer.decode_batch(spans, skip_special_tokens=False)
        self.counts["checked"] += len(sample)
        self.counts["exact"] += sum(text == back for text, back in zip(sample, decoded, strict=True))
        fast = fast_engine(self._path)
        if fast is not None:
            fast_ids, fast_offsets = fast(sample)
            if np.array_equal(ids, fast_ids) and np.array_equal(offsets, fast_offsets):
                return fast
            _warn("fastokens disagrees with tokenizers on a sample")
        self.counts["slow"] += 1
        return reference


def fast_engine(path: Path) -> Engine | None:
    """`fastokens` on the `tokenizer.json` at `path`; None, with a warning, where it is not installed or refuses it."""
    try:
        import fastokens
    except ImportError:
        _warn("fastokens is not installed")
        return None
    try:
        tokenizer = fastokens.Tokenizer.from_file(str(path))
    except Exception as error:  # of no common type
        _warn(f"fastokens cannot read this tokenizer ({error})")
        return None

    def encode(texts: list[str]) -> Encoded:
        ids, offsets = tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    return encode


def _warn(reason: str) -> None:
    print(f"warning: {reason}: encoding with tokenizers, many times slower", file=sys.stderr)


def reference_engine(tokenizer: Tokenizer) -> Engine:
    """`tokenizers`, which defines what is right."""
    tokenizer.encode_special_tokens = True  # a special token's name in a document is text

    def encode(texts: list[str]) -> Encoded:
        ids = [encoded.ids for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return np.fromiter((token for row in ids for token in row), np.uint32, int(offsets[-1])), offsets

    return encode


def described(tokenizer: Tokenizer, named: Mapping[str, str], place: str) -> Encoding:
    """The encoding of a tokenizer whose folder calls the token of a role by the names in `named`."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    roles = {}
    for role, names in ROLES.items():
        candidates = [ids[name] for name in (named.get(role), *names) if name in ids]
        if candidates:
            roles[role] = candidates[0]
    for role, others in INSTEAD.items():
        if role not in roles and (candidates := [roles[other] for other in others if other in roles]):
            roles[role] = candidates[0]
    if "eos" not in roles:
        raise UserError(f"{place}: has no end-of-document token; name one as `eos_token` in special_tokens_map.json")
    roles.setdefault("mask", roles["pad"])
    sentinels: list[int] = []
    while (name := f"<extra_id_{len(sentinels)}>") in ids:
        sentinels.append(ids[name])
    declared = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    return Encoding(
        modality="text",
        vocabulary=max(ids.values()) + 1,
        sentinels=tuple(sentinels),
        special=tuple(sorted({*roles.values(), *sentinels, *declared})),
        pad=roles["pad"],
        bos=roles["bos"],
        eos=roles["eos"],
        mask=roles["mask"],
        cls=roles["cls"],
        sep=roles["sep"],
    )


def _first(texts: list[str], size: int) -> list[str]:
    """The first documents, of about `size` characters in all; a longer first one is cut."""
    sample, room = [], size
    for text in texts:
        sample.append(text[:room])
        room -= len(text)
        if room <= 0:
            break
    return sample


def _sample(partitions: Sequence[Path], limit: int) -> Iterator[str]:
    """Documents of about `limit` bytes in all, chosen by a hash of their id: the same ones in every run."""
    total = 0
    for path in partitions:
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            total += pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0
    threshold = min(1.0, limit / max(total, 1)) * 2**64
    room = limit
    for path in partitions:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["id", "text"]):
            for identity, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                draw = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
                if room > 0 and (draw < threshold or room == limit):  # the first document always: never no text at all
                    yield text[:room]
                    room -= len(text.encode())


def _trained(texts: Iterator[str], options: Options, special: Sequence[str]) -> Tokenizer:
    """A tokenizer of at most `options.vocabulary` ids (fewer where the text has no more to merge)."""
    train = _bpe if options.algorithm == "bpe" else _unigram
    tokenizer = train(texts, options.vocabulary - len(SENTINEL_NAMES), special)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_special_tokens(list(reversed(SENTINEL_NAMES)))
    return tokenizer


def _bpe(texts: Iterator[str], vocabulary: int, special: Sequence[str]) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019). GPT-2's pattern parts words from punctuation, so no merge spells `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterator[str], vocabulary: int, special: Sequence[str]) -> Tokenizer:
    """Unigram over words marked with U+2581 for the space before them. Unknown characters are spelled in bytes.

    No pre-tokeniser keeps a document's `<s>` or `<0x0A>` from matching the token of that name, so these tokens get a
    probability below that of any spelling by characters, and every character of their names is a piece. Runs of spaces
    stay together but for the last, which belongs to the word: indented code would otherwise cost a token per space.
    """
    from stages.modalities.text import unigram  # numba takes a second to load

    words: Counter[str] = Counter()
    for text in texts:
        words.update(re.findall(WORDS, text.replace(" ", SPACE)))
    unmatched = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = unigram.train(words, vocabulary - len(unmatched), always=PRINTABLE)
    reserved = {*unmatched, *SENTINEL_NAMES}  # text may hold a name often enough to make it a piece
    scored = [*((name, NEVER) for name in unmatched), *(piece for piece in pieces if piece[0] not in reserved)]
    tokenizer = Tokenizer(models.Unigram(scored, special.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _imported(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer at `path` (a file, or a Hugging Face folder) and what its folder calls each role."""
    file = path / TOKENIZER if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower type
        mend = "give a tokenizer.json, or a folder that has one (save_pretrained of a fast tokenizer writes it)"
        raise UserError(f"tokenizer: {file}: cannot be read ({error}); {mend}") from None
    return tokenizer, _named(file.parent)


def _named(folder: Path) -> dict[str, str]:
    """Names of special tokens by role, from the configuration files of a Hugging Face folder."""
    named = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer: {folder / name}: cannot be read ({error})") from None
        for role in ROLES:
            token = content.get(f"{role}_token") if isinstance(content, dict) else None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[role] = token
    return named
