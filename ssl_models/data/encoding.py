"""How a corpus was encoded: the contract between the tokenize stage and every model that eats its rows.

`data/tokenize/<corpus>/encoding/` holds `encoding.json` (this class), and beside it `tokenizer.json` (text) or
`codebook.safetensors` (where a visual codebook was asked for). The shard stage copies the folder beside the shards,
adding the `length` of a row; from there it travels with the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FILE = "encoding.json"


class Encoding(BaseModel):
    """Text fields are empty for pictures and the other way round; `image_text` has both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Literal["text", "image", "video", "image_text"]
    folder: Path = Field(default=Path(), exclude=True, description="where it was read from")

    length: int = Field(default=0, description="tokens in a row; raw tokens, before an objective adds its own")
    vocabulary: int = Field(default=0, description="ids 0..vocabulary-1, special ones included")
    pad: int = 0
    bos: int = 0
    eos: int = Field(default=0, description="ends every document, also inside packed rows")
    mask: int = 0
    cls: int = 0
    sep: int = 0
    sentinels: tuple[int, ...] = Field(default=(), description="T5's, first span's first: ids descend")
    special: tuple[int, ...] = Field(default=(), description="every id that is no ordinary token, the above included")

    frames: int = Field(default=1, description="video: frames in a row")
    channels: int = 0
    height: int = 0
    width: int = 0
    mean: tuple[float, ...] = Field(default=(), description="per channel, of pixels in [0, 1], over the corpus")
    std: tuple[float, ...] = ()
    codec: Literal["jpeg"] | None = Field(default=None, description="of a row's pixels in the shards; none: uint8")
    codebook: int = Field(default=0, description="entries in codebook.safetensors; 0: none")

    def save(self, folder: Path) -> None:
        """Write `encoding.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls_, folder: Path) -> Encoding:  # noqa: N804 - `cls` is a field
        """Read `encoding.json` from `folder`; FileNotFoundError, or ValueError where it is none."""
        path = folder / FILE
        text = path.read_bytes()
        try:
            return cls_.model_validate({**json.loads(text), "folder": folder})
        except (ValueError, TypeError):
            raise ValueError(f"{path}: is not what the tokenize stage wrote") from None
