"""A trained model as a function from what users have (texts, encoded pictures, frames, paths of them) to features.

The same code serves the registered model and checks it: rows are made as the tokenize and shard stages make them, so
that features are the probe's. `stages/registry/pyfunc_model.py` hands it to MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_models import artifact
from ssl_models.data.encoding import Encoding
from ssl_models.objectives.shared.text import TextObjective
from ssl_models.tools.encode import Encoder
from ssl_models.tools.generate import generate
from stages.modalities.image import pictures

BATCH = 64
"""Rows encoded at once."""
COLUMNS = {"text": "text", "image": "image", "image_text": "image", "video": "video"}
"""By modality, the column of the input: texts, the bytes of an encoded picture, or of a tar of them, one a frame."""
PATH = "path"
"""The column that may stand in its place: files to read."""
MODEL_FOLDER = "model"
"""Under this name a registered model keeps the folder that pretrain wrote."""
LIKELIEST = 50


class Served:
    """A model folder, opened. `every`: of a video's frames, as the corpus's tokenize stage takes them."""

    def __init__(self, folder: Path, feature: str, every: int = 1) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.objective = artifact.load(folder).to(device)
        self.feature, self.every, self.device = feature, every, device
        self.encoding = Encoding.load(folder / artifact.ENCODING)

    @property
    def column(self) -> str:
        """The input's column beside PATH."""
        return COLUMNS[self.encoding.modality]

    @property
    def generates(self) -> bool:
        """Whether the model can write text."""
        return (
            isinstance(self.objective, TextObjective) and self.objective.transformer.architecture.structure != "encoder"
        )

    def rows(self, frame: Any) -> list[dict[str, Any]]:
        """The rows of a pandas frame; ValueError where it has no column that the model reads. MLflow has dropped the
        columns that it does not know by then."""
        if not {self.column, PATH} & set(frame.columns):
            example = json.dumps({"dataframe_records": [{self.column: "..."}]})
            raise ValueError(f"the input has neither a column {self.column!r} nor {PATH!r}: send {example}")
        rows: list[dict[str, Any]] = frame.to_dict("records")
        return rows

    def read(self, rows: Sequence[dict[str, Any]]) -> list[Any]:
        """The text or the bytes of each row, from its file where it names one; ValueError where it has neither."""
        found = []
        for number, row in enumerate(rows):
            content, path = row.get(self.column), row.get(PATH)
            if isinstance(content, str | bytes):
                found.append(content)
            elif isinstance(path, str):
                found.append(self._content(Path(path)))
            else:
                raise ValueError(f"row {number}: has neither {self.column!r} nor {PATH!r}")
        return found

    def _content(self, path: Path) -> str | bytes:
        try:
            return path.read_text(encoding="utf-8") if self.column == "text" else path.read_bytes()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: is not UTF-8") from None
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None

    def features(self, rows: Sequence[dict[str, Any]], feature: str | None = None) -> NDArray[np.float32]:
        """Features `[rows, width]`, of the probe's choice where none is named."""
        contents, name = self.read(rows), feature or self.feature
        if isinstance(self.objective, TextObjective):
            encode: Any = Encoder(self.objective, name)
        else:
            encode = lambda part: self._pixels(part, name)  # noqa: E731
        parts = [encode(contents[at : at + BATCH]).numpy() for at in range(0, len(contents), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def _pixels(self, contents: list[bytes], name: str) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([self._decoded(content) for content in contents]))
        with torch.inference_mode():
            found = self.objective.features({"pixels": pixels.to(self.device)})
        if name not in found:
            raise ValueError(f"the model has no feature {name!r} (features: {', '.join(found)})")
        return found[name].float().cpu()

    def _decoded(self, content: bytes) -> NDArray[np.uint8]:
        shape = (self.encoding.height, self.encoding.width, self.encoding.channels)
        try:
            if self.encoding.modality != "video":
                return pictures.decode(content, *shape)
            frames = pictures.frames(content)[:: self.every][: self.encoding.frames]
            if len(frames) < self.encoding.frames:
                raise ValueError(f"a video needs {self.encoding.frames} frames, this one has {len(frames)}")
            return np.stack([pictures.decode(frame, *shape) for frame in frames])
        except pictures.PictureError as error:
            raise ValueError(str(error)) from None

    def generate(self, rows: Sequence[dict[str, Any]], tokens: int, temperature: float, seed: int) -> list[str]:
        """What the model writes for each prompt; ValueError where it cannot write."""
        if not isinstance(self.objective, TextObjective) or not self.generates:
            raise ValueError(f"{type(self.objective).__name__} does not write text")
        return [
            generate(self.objective, prompt, limit=tokens, temperature=temperature, likeliest=LIKELIEST, seed=seed)
            for prompt in self.read(rows)
        ]
