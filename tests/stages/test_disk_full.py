"""A data stage that finds no room on the disk says so in one sentence, and leaves nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import tokenize
from stages.files import tables

WITHOUT_ROOM = """
import resource, sys
sys.argv = [sys.argv[1], "tiny"]
import importlib
from stages import params
stage = importlib.import_module("stages." + sys.argv[0]).run
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # a file of more bytes meets what a full disk is
params.main(stage)
"""


@pytest.mark.parametrize("stage", ["tokenize", "shard"])
def test_no_room_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, stage: str, write_corpus: Any, run_stages: Any, little_documents: Any
) -> None:
    write_corpus(tmp_path, little_documents())
    if stage == "shard":
        run_stages(tmp_path, tokenize.run)
    root = {"PYTHONPATH": str(Path(tables.__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1", "PRETEXT_WORKERS": "1"}
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT_ROOM, stage],
        cwd=tmp_path,
        env={**os.environ, **root},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    (error,) = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert said.returncode == 2
    assert error.startswith(f"error: {stage}@tiny: the file is larger than the system allows")
    assert "Traceback" not in said.stderr
    assert not [path for path in (tmp_path / "data" / stage).rglob("*") if path.is_file()]
