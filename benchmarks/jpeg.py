"""Bytes of a row and rows read a second: pictures kept as JPEG (`tokenize: {jpeg: 90}`) beside uint8 pixels.

    python -m benchmarks.jpeg [--pictures 1000] [--size 224] [--quality 90] [--batch 64] [--folder PHOTOGRAPHS]

Without a folder of photographs, pictures are random crops of the two that scikit-learn carries. They go through the
real tokenize and shard stages, and are read in the order of training, by one process on all cores, after one round that
fills the caches of the kernel. Results: benchmarks/results/jpeg.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ssl_models.data.shards import Shards, Split, batch_indices
from stages import params, shard, tokenize
from stages.files import tables
from stages.modalities.image import ingest, pictures

RESULTS = Path(__file__).parent / "results" / "jpeg.json"
LEAST = 256
"""Side of the smallest crop, in pixels of a photograph of 640x427."""


def crop(number: int, photographs: list[Image.Image]) -> bytes:
    """A random square of one of the photographs, as JPEG."""
    random = np.random.default_rng(number)
    photograph = photographs[number % len(photographs)]
    side = int(random.integers(LEAST, min(photograph.size) + 1))
    left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
    return pictures.as_jpeg(pictures.array(photograph.crop((left, top, left + side, top + side))), 95)


def corpus(name: str, contents: list[bytes], options: dict[str, Any]) -> Split:
    """The rows of training of pictures, encoded with these options, in the working folder."""
    entry = {"modality": "image", "ingest": {"reader": "image_folder", "source": "."}}
    entry |= {"dedup": {}, "tokenize": options, "shard": {}}
    Path("params.yaml").write_text(json.dumps({"corpora": {name: entry}}))
    params.load_params.cache_clear()
    rows = [{"id": tables.content_id({"image": data}), "image": data} for data in contents]
    schema = tables.rows_schema(ingest.FIELDS)
    tables.write_parquet(tables.address("dedup", name) / "rows/part-00000.parquet", pa.Table.from_pylist(rows, schema))
    tokenize.run(name)
    shard.run(name)
    return Shards.open(tables.address("shard", name) / "shards").split("train")


def rate(split: Split, batch: int, seed: int) -> tuple[float, float]:
    """Rows a second, and rows a second of processor time (which neighbours disturb less), over one epoch."""
    steps = max(1, len(split) // batch)
    start, busy = time.perf_counter(), time.process_time()
    for step in range(steps):
        split.rows(batch_indices(seed, step, batch, len(split)))
    return steps * batch / (time.perf_counter() - start), steps * batch / (time.process_time() - busy)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--pictures", type=int, default=1000)
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--quality", type=int, default=90)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="of photographs (.jpg)")
    given = arguments.parse_args()
    files = sorted(given.folder.rglob("*.jpg"))[: given.pictures] if given.folder else []
    carried = Path(str(importlib.util.find_spec("sklearn.datasets").submodule_search_locations[0]), "images")
    photographs = [Image.open(carried / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    contents = [path.read_bytes() for path in files] or [crop(n, photographs) for n in range(given.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        kinds = {"uint8": {"size": given.size}, "jpeg": {"size": given.size, "jpeg": given.quality}}
        splits = {name: corpus(name, contents, options) for name, options in kinds.items()}
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for turn in range(given.rounds + 1):
            for name, split in splits.items():
                rates[name].append(rate(split, given.batch, turn))
        size = {
            name: Shards.open(tables.address("shard", name) / "shards").manifest.splits["train"].bytes for name in kinds
        }
        rows = {name: len(split) for name, split in splits.items()}
        os.chdir("/")
    result = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "pictures": len(contents),
        "size": given.size,
        "quality": given.quality,
        "results": {
            name: {
                "bytes a row": round(size[name] / rows[name]),
                "rows/s": round(statistics.median(wall for wall, _ in rates[name][1:])),
                "rows a processor second": round(statistics.median(busy for _, busy in rates[name][1:])),
            }
            for name in kinds
        },
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
