"""`manifest.json`: what a folder of shards holds. Written by the shard stage, read by `shards`; no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from ssl_models.config import Strict

FILE = "manifest.json"
PROBE_COLUMNS = frozenset({"label", "test", "group", "id"})
"""What rows of the probe split have beside the columns of the other splits."""


class Column(Strict):
    """Values of one row: `dtype` as NumPy names it, `shape` empty for a single number. With `codec`, the file holds
    encoded rows of any length, and these are the values that they decode to."""

    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"]
    shape: tuple[int, ...] = ()
    codec: Literal["jpeg"] | None = None


class Shard(Strict):
    """One Arrow IPC file of one record batch; `file` is relative to the manifest, `blake2b` covers its bytes."""

    file: str
    rows: int = Field(ge=1)
    blake2b: str


class SplitManifest(Strict):
    """One of `train`, `validation`, `probe`. An empty split has no shards."""

    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    shards: tuple[Shard, ...] = ()

    @model_validator(mode="after")
    def _rows_add_up(self) -> SplitManifest:
        if self.rows != sum(shard.rows for shard in self.shards):
            raise ValueError("rows is not the sum over the shards")
        return self


class Manifest(Strict):
    """`manifest.json`: what the shards hold. `length` is the tokens in a row, 0 where there are none."""

    modality: Literal["text", "image", "video", "image_text"]
    columns: dict[str, Column]
    splits: dict[str, SplitManifest]
    labels: tuple[str, ...] = ()
    length: int = 0

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of `folder`; FileNotFoundError, or ValueError where it is none."""
        path = folder / FILE
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(step) for step in first["loc"])
            raise ValueError(f"{path}: {key}: {first['msg']}; run the shard stage again") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is not valid JSON ({error}); run the shard stage again") from None
