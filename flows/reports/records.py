"""The numbers that stages have written: in the working tree, and at a commit to compare them with."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ssl_models.layout import numbers

Numbers = dict[str, float]
"""Of nested metrics, by their path: `pretrained.accuracy`."""


def parse(text: str) -> Numbers:
    """The numbers of a JSON text; none where it is no JSON."""
    try:
        return numbers(json.loads(text))
    except ValueError:
        return {}


def current(path: Path | str) -> Numbers:
    """The numbers in a file of the working tree; none where it is missing."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except OSError:
        return {}


def committed(paths: Sequence[str], revision: str = "HEAD") -> dict[str, Numbers]:
    """The numbers in the same files at a revision, read by one git process; none outside git."""
    request = "".join(f"{revision}:./{path}\n" for path in paths)
    asked = subprocess.run(["git", "cat-file", "--batch"], input=request.encode(), capture_output=True, check=False)
    contents: dict[str, Numbers] = {}
    answer = io.BytesIO(asked.stdout)
    for path in paths:
        header = answer.readline().split()
        if len(header) == 3 and header[1] == b"blob":
            contents[path] = parse(answer.read(int(header[2])).decode("utf-8", "replace"))
            answer.readline()
    return contents
