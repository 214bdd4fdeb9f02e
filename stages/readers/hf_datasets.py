"""Any data set that `datasets` opens, streamed: of the Hugging Face Hub, of a local folder, or saved to disk by it.

DVC watches `source` for change. For a local data set it is the folder; for one of the Hub, which no path stands for, it
is any file that says which one is meant (requirements.lock will do), and `dataset` and `revision` name it. Pictures are
taken as they were encoded; a class is known by its name. `dataset` may also be a builder (`imagefolder`, `csv`, ...),
which reads the files of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from stages import sources
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, parquet

MODALITIES = frozenset({"text", "image", "image_text"})
BUILDERS = frozenset({"arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset"})
"""What `datasets` calls its readers of local files."""


class Options(parquet.Options):
    """Which data set, and which of its columns are what."""

    dataset: str | None = Field(default=None, description="a name on the Hub; default: the source is a local folder")
    config: str | None = Field(default=None, description="of a data set that has several")
    split: str = Field(default="train")
    revision: str | None = Field(default=None, description="a commit of the data set: without one, it may change")


def plan(source: str, options: Options) -> list[Partition]:
    """A partition for each shard of the data set."""
    count = _loaded(source, options).num_shards
    return [Partition((File(source, 0),), shard, count) for shard in range(count)]


def _loaded(source: str, options: Options) -> Any:
    """The streamed data set, its pictures not decoded; UserError where it cannot be had."""
    import datasets  # a second, for this reader only

    datasets.disable_progress_bars()
    name = options.dataset or source
    folder = source if name in BUILDERS else None
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(name)
            saved = saved[options.split] if isinstance(saved, datasets.DatasetDict) else saved
            found = saved.to_iterable_dataset(num_shards=max(1, len(saved.cache_files)))
        else:
            found = datasets.load_dataset(
                name, options.config, data_dir=folder, split=options.split, revision=options.revision, streaming=True
            )
        for column, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # network, names, builders: of no common type
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"ingest.dataset: {name}: cannot be loaded ({type(error).__name__}: {detail})") from None
    return found


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every row; a Reject for what follows damage."""
    (file,) = partition.files
    assert partition.end is not None  # every partition of the plan has one
    shard = _loaded(file.path, options).shard(num_shards=partition.end, index=partition.start)
    names = _class_names(shard, options.label)
    place = f"{options.dataset or file.path}/{options.split}/{partition.start}"
    number = 0
    try:
        for number, row in enumerate(shard, start=1):
            whole = _with_bytes(_named(row, options, names), options, f"{place}:{number}")
            yield whole if isinstance(whole, Reject) else parquet.record(whole, options, f"{place}:{number}")
    except Exception as error:  # each builder has its own
        detail = (str(error) or type(error).__name__).splitlines()[0]
        yield Reject(f"{place}:{number + 1}", f"damaged, or the connection failed ({type(error).__name__}: {detail})")


def _class_names(shard: Any, label: str | None) -> list[str] | None:
    feature = (shard.features or {}).get(label)
    return getattr(feature, "names", None)


def _named(row: dict[str, Any], options: Options, names: list[str] | None) -> dict[str, Any]:
    """`row` with the class by its name instead of its number; -1 is none."""
    label = row.get(options.label) if options.label is not None else None
    if names is None or not isinstance(label, int):
        return row
    return {**row, str(options.label): names[label] if 0 <= label < len(names) else None}


def _with_bytes(row: dict[str, Any], options: Options, place: str) -> dict[str, Any] | Reject:
    """`row` with the picture's bytes where it has the path of a file only, as of `imagefolder`."""
    picture = row.get(options.image) if options.image is not None else None
    if not isinstance(picture, dict) or picture.get("bytes") is not None or not picture.get("path"):
        return row
    try:
        content = sources.whole(str(picture["path"]), options.max_document_bytes)
    except UserError as error:
        return Reject(place, str(error))
    return content if isinstance(content, Reject) else {**row, str(options.image): content}


def columns(partition: Partition, options: Options) -> list[str]:
    """Names of the columns, where the data set knows them."""
    return sorted(_loaded(partition.files[0].path, options).features or {})
