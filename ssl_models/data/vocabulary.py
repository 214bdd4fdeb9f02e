"""What a text objective knows of its tokenizer: one value per id, as tensors that follow the model to its device.

Read from `tokenizer.json` itself, in any of the forms that Hugging Face tokenizers write (byte-level BPE, Unigram or
BPE with a metaspace, WordPiece), so that training needs no tokenizer library. Without that file ids are not text: every
id counts as a word of its own, and its bytes are unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_models.data.encoding import Encoding

FILE = "tokenizer.json"
_METASPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_STOP = re.compile(r"[.!?。！？]+[\"'”’)\]]*$")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019): printable Latin-1 stands for itself, the
    others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _kinds(part: Any) -> set[str]:
    """The `type` of a tokenizer's component and of everything nested in it."""
    if isinstance(part, dict):
        return {str(part.get("type"))}.union(*(_kinds(value) for value in part.values()))
    if isinstance(part, list):
        return set().union(*(_kinds(value) for value in part))
    return set()


def pieces(tokenizer: dict[str, Any], size: int) -> list[bytes]:
    """The text each of `size` ids stands for, as UTF-8, of a parsed `tokenizer.json`; special ids stand for none.

    A leading space belongs to a piece where the tokenizer writes it there; a WordPiece that begins a word gets one.
    """
    model = tokenizer["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, score], the id is the place
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    byte_level = "ByteLevel" in _kinds(tokenizer.get("pre_tokenizer")) | _kinds(tokenizer.get("decoder"))
    continuing = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    alphabet = _byte_alphabet()
    found = [b""] * size
    for piece, index in vocabulary.items():
        if index >= size:
            continue
        if byte_level and all(character in alphabet for character in piece):
            found[index] = bytes(alphabet[character] for character in piece)
        elif continuing:
            found[index] = (piece.removeprefix(continuing) if piece.startswith(continuing) else f" {piece}").encode()
        elif raw := _BYTE.fullmatch(piece):
            found[index] = bytes([int(raw[1], 16)])
        else:
            found[index] = piece.replace(_METASPACE, " ").encode("utf-8", "replace")
    for added in tokenizer.get("added_tokens", []):
        if added["id"] < size:
            found[added["id"]] = b"" if added["special"] else added["content"].encode()
    return found


class Vocabulary(nn.Module):
    """One value per id, `[vocabulary]` each; buffers that no checkpoint holds.

    `special`: no ordinary token; `ordinary` `[ordinary ids]` lists the others. `lengths`: bytes of text. `opens`,
    `closes`: white space at the beginning, at the end. `stops`: ends as a sentence does. `breaks`: holds a line break.
    """

    special: Tensor
    ordinary: Tensor
    lengths: Tensor
    opens: Tensor
    closes: Tensor
    stops: Tensor
    breaks: Tensor

    def __init__(self, encoding: Encoding) -> None:
        """Reads `tokenizer.json` beside `encoding.json`; ValueError where it is broken."""
        super().__init__()
        self.size = encoding.vocabulary
        self.path = encoding.folder / FILE
        self.known = self.path.is_file()
        special = torch.zeros(self.size, dtype=torch.bool)
        named = {encoding.pad, encoding.bos, encoding.eos, encoding.mask, encoding.cls, encoding.sep}
        special[[index for index in named.union(encoding.special, encoding.sentinels) if index < self.size]] = True
        texts = self._texts() if self.known else [b" "] * self.size
        text = [piece.decode("utf-8", "replace") for piece in texts]
        flags = {
            "special": special,
            "ordinary": (~special).nonzero().flatten(),
            "lengths": torch.tensor([len(piece) for piece in texts]).masked_fill(special, 0),
            "opens": torch.tensor([piece[:1].isspace() for piece in text]),
            "closes": torch.tensor([piece[-1:].isspace() for piece in text]),
            "stops": torch.tensor([_STOP.search(piece.rstrip()) is not None for piece in text]),
            "breaks": torch.tensor(["\n" in piece for piece in text]),
        }
        for name, values in flags.items():
            self.register_buffer(name, values, persistent=False)
        if not len(self.ordinary):
            raise ValueError(f"the encoding of {self.size} ids has no ordinary token")

    def _texts(self) -> list[bytes]:
        try:
            return pieces(json.loads(self.path.read_text(encoding="utf-8")), self.size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is no tokenizer that can be read: {error!r}") from None

    def bag(self, tokens: Tensor) -> Tensor:
        """How often each ordinary id occurs in `tokens` `[batch, length]`: sparse float `[batch, vocabulary]`."""
        row, column = (~self.special[tokens]).nonzero(as_tuple=True)
        index = torch.stack([row, tokens[row, column]])
        counts = torch.ones(index.shape[1], device=tokens.device)
        return torch.sparse_coo_tensor(index, counts, (len(tokens), self.size), check_invariants=False).coalesce()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special ones by their names; numbers where ids are not text."""
        if not self.known:
            return " ".join(str(index) for index in ids)
        from tokenizers import Tokenizer  # needed for a reviewer's examples alone

        text: str = Tokenizer.from_file(str(self.path)).decode(list(ids), skip_special_tokens=False)
        return text
