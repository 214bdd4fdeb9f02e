"""Pairs in the ingest stage: a picture that decodes, and a caption that says something."""

from __future__ import annotations

from stages import readers
from stages.modalities.image import ingest as image
from stages.modalities.text import ingest as text
from stages.readers import Record

FIELDS = (*image.FIELDS, *text.FIELDS)


def check(record: Record, options: readers.Options) -> str | None:
    """The reason to reject `record`, or None: the caption's first, as it costs nothing to look at."""
    if record.payload.get("text") is None:
        return "picture has no caption: name its column or file in ingest.text"
    return text.check(record, options) or image.check(record, options)
