"""Text in the ingest stage: one column, and what makes a document worth keeping."""

from __future__ import annotations

import pyarrow as pa

from stages.readers import Options, Record

FIELDS = (pa.field("text", pa.string()),)


def check(record: Record, options: Options) -> str | None:
    """The reason to reject `record`, or None."""
    text = record.payload.get("text")
    if not isinstance(text, str):
        return "text is not a string"
    if not text or text.isspace():
        return "empty text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text is not valid Unicode (a lone surrogate)"
    return None
