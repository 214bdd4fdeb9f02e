"""A full disk is no defect of a program: one sentence says it, whichever library met it first.

Python and Arrow say so by `errno`; safetensors, torch, SQLite and `shutil.copytree` in words only.
"""

from __future__ import annotations

import errno
import os

FULL = {
    errno.ENOSPC: "there is no room left on the disk",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than the system allows (ulimit -f)",
}
WORDS = {os.strerror(number): text for number, text in FULL.items()} | {"disk is full": FULL[errno.ENOSPC]}
"""The same as libraries write it into their messages; the last is SQLite's."""


def full(error: BaseException, writing: str) -> str | None:
    """One sentence about a full disk, where `error`, or what caused it, is one; else None. `writing` says what was not
    written."""
    cause: BaseException | None = error
    for _ in range(10):  # causes may go in a circle
        if cause is None:
            return None
        reason = FULL.get(cause.errno or 0) if isinstance(cause, OSError) else None
        reason = reason or next((text for words, text in WORDS.items() if words in str(cause)), None)
        if reason is not None:
            place = f" ({cause.filename})" if isinstance(cause, OSError) and cause.filename else ""
            return f"{writing}: {reason}{place}: make room, or set TMPDIR where that is what is full, and run it again"
        cause = cause.__cause__ or cause.__context__
    return None
