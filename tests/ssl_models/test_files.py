"""Writes are whole or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ssl_models import files


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError), files.whole_file(path) as partial:
        partial.write_text(3)  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".rows.partial"
    left.mkdir()
    (left / "part-00000.parquet").write_bytes(b"half")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "old").touch()
    with files.whole_folder(tmp_path / "rows") as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["rows", "new"]


def test_a_folder_that_failed_leaves_the_former_one(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with pytest.raises(RuntimeError, match="stop"), files.whole_folder(tmp_path / "rows"):
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_json_has_no_nan_and_a_refused_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": "\u00e9"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert path.read_text(encoding="utf-8") == '{\n "a": "\u00e9"\n}\n'


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 3)
    (tmp_path / "a").write_bytes(b"12345678")
    assert files.checksum(tmp_path / "a") == hashlib.blake2b(b"12345678", digest_size=16).hexdigest()
