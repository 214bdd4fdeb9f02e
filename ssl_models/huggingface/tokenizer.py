"""The tokenizer's files of a Hugging Face folder: `tokenizer.json` as it is, and the names of its special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.files import read_json

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
ROLES = ("pad", "bos", "eos", "mask", "cls", "sep")


def names(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Special tokens by id, from the content of `tokenizer.json`."""
    return {token["id"]: token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")}


def _vocabulary(path: Path) -> tuple[dict[str, int], dict[int, str]]:
    """Ordinary tokens' ids by piece, and added tokens' pieces by id; ValueError where `path` is no tokenizer."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower type
        raise ValueError(f"{path}: cannot be read: {error}") from None
    added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
    return tokenizer.get_vocab(with_added_tokens=False), added


def same_ids(one: Path, other: Path) -> bool:
    """Whether two `tokenizer.json` mean the same tokens by their ids. Either may have added tokens that the other
    lacks. ValueError where one cannot be read."""
    if one.read_bytes() == other.read_bytes():
        return True
    (pieces, added), (others, also) = _vocabulary(one), _vocabulary(other)
    return pieces == others and all(added[number] == also[number] for number in added.keys() & also.keys())


def roles(folder: Path) -> dict[str, str]:
    """What a Hugging Face folder calls the token of each role; empty where it does not say."""
    found = {}
    for name in (CONFIG, "special_tokens_map.json"):
        try:
            content = read_json(folder / name)
        except ValueError:
            continue
        for role in (*ROLES, "unk"):
            token = content.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[role] = token
    return found


def _unknown(tokenizer: dict[str, Any]) -> tuple[str | None, int | None]:
    """The token for unknown text, and its id."""
    model = tokenizer["model"]
    piece, index = model.get("unk_token"), model.get("unk_id")
    if piece is None and index is not None:
        piece = model["vocab"][index][0]
    elif piece is not None and isinstance(model["vocab"], dict):
        index = model["vocab"].get(piece)
    return piece, index


def configuration(
    encoding: Encoding, tokenizer: dict[str, Any], context: int, carried: dict[str, str]
) -> dict[str, Any]:
    """`tokenizer_config.json`: a generic class, so that `tokenizer.json` alone decides the ids, and special tokens by
    role. A role that the encoding filled with another's id is left out, unless `carried` names its token."""
    named = names(tokenizer)
    unknown, index = _unknown(tokenizer)
    if index is None:
        index = next((number for number, piece in named.items() if piece == carried.get("unk")), None)
    content: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    taken: set[int] = set()
    for role in ROLES:
        number: int = getattr(encoding, role)
        if role == "mask" and index is not None:
            taken.add(index)
        if number in named and (number not in taken or role in ("bos", "eos")):
            content[f"{role}_token"] = named[number]
            taken.add(number)
    if unknown is not None:
        content["unk_token"] = unknown
    for role, piece in carried.items():
        if piece in named.values():
            content.setdefault(f"{role}_token", piece)
    extra = [named[number] for number in encoding.sentinels if number in named]
    if extra:
        content["extra_special_tokens"] = extra
    return content


def ending(tokenizer: dict[str, Any], number: int) -> dict[str, Any]:
    """The content of `tokenizer.json`, such that every text ends with the special token `number`. One that adds tokens
    of its own accord is left alone."""
    end = names(tokenizer).get(number)
    if end is None or tokenizer.get("post_processor") is not None:
        return tokenizer
    last = {"SpecialToken": {"id": end, "type_id": 0}}
    sequences = [{"Sequence": {"id": part, "type_id": 0}} for part in "AB"]
    return tokenizer | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequences[0], last],
            "pair": [sequences[0], last, sequences[1], last],
            "special_tokens": {end: {"id": end, "ids": [number], "tokens": [end]}},
        }
    }


def save_tokenizer(
    encoding: Encoding, context: int, folder: Path, *, ends: bool = False, source: Path | None = None
) -> None:
    """Write the tokenizer's files into `folder`, if the encoding has a tokenizer. `ends`: texts end with `eos`.
    `source`: a Hugging Face folder with the same tokenizer, whose names of special tokens are carried over."""
    file = encoding.folder / FILE
    if not file.is_file():
        return
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    if ends:
        content = json.dumps(ending(tokenizer, encoding.eos), ensure_ascii=False)
        (folder / FILE).write_text(content, encoding="utf-8")
    elif file.resolve() != (folder / FILE).resolve():
        shutil.copyfile(file, folder / FILE)
    carried = roles(source) if source is not None else {}
    text = json.dumps(configuration(encoding, tokenizer, context, carried), indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
