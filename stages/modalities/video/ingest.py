"""Video in the ingest stage: a clip, as a bundle of encoded frames each of which decodes in full."""

from __future__ import annotations

import pyarrow as pa

from stages import readers
from stages.modalities.image import pictures
from stages.readers import Record

FIELDS = (pa.field("video", pa.binary()),)


def check(record: Record, options: readers.Options) -> str | None:
    """The reason to reject `record`, or None."""
    data = record.payload.get("video")
    if not isinstance(data, bytes):
        return "row has no video"
    limit = options.max_pixels if isinstance(options, readers.Pictures) else readers.DEFAULT_MAX_PIXELS
    try:
        frames = pictures.frames(data)
    except pictures.PictureError as error:
        return str(error)
    for number, frame in enumerate(frames, start=1):
        reason = pictures.check(frame, limit)
        if reason is not None:
            return f"a frame cannot be used (frame {number}: {reason})"
    return None
