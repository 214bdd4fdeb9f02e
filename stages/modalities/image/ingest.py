"""Pictures in the ingest stage: the bytes as they are, once they are known to decode in full."""

from __future__ import annotations

import pyarrow as pa

from stages import readers
from stages.modalities.image import pictures
from stages.readers import Record

FIELDS = (pa.field("image", pa.binary()),)


def check(record: Record, options: readers.Options) -> str | None:
    """The reason to reject `record`, or None. The whole picture is decoded, if at a small scale: only that tells
    truncation."""
    data = record.payload.get("image")
    if not isinstance(data, bytes):
        return "row has no picture: name its column in ingest.image"
    if not data:
        return "empty picture"
    limit = options.max_pixels if isinstance(options, readers.Pictures) else readers.DEFAULT_MAX_PIXELS
    return pictures.check(data, limit)
