"""A full disk is one sentence, whoever met it first."""

from __future__ import annotations

import errno
import shutil
import sqlite3

import pytest

from ssl_models import disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "data/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_one_sentence(error: Exception) -> None:
    said = disk.full(error, "ingest@mine")
    assert said is not None and said.startswith("ingest@mine: ") and "make room" in said and "\n" not in said
    wrapped = ValueError("the model could not be written")
    wrapped.__cause__ = error
    assert disk.full(wrapped, "ingest@mine") == said


def test_another_error_is_none() -> None:
    assert disk.full(OSError(errno.EIO, "Input/output error"), "x") is None
    circle = ValueError("a")
    circle.__cause__ = circle
    assert disk.full(circle, "x") is None
