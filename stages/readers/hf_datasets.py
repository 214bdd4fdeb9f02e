"""Any data set that `datasets` opens, streamed: of the Hugging Face Hub, of a local folder, or saved to disk by it.

DVC watches `source` for change. For a local data set it is the folder; for one of the Hub, which no path stands for, it
is any file that says which one is meant (requirements.lock will do), and `dataset` and `revision` name it. Pictures are
taken as they were encoded; a class is known by its name. `dataset` may also be a builder (`imagefolder`, `csv`, ...),
which reads the files of the source. A row may name a picture by its path where that is the data set's own; any other is
for `outside` to allow. A connection that fails is made again, and at last ends the stage.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from stages import readers
from stages.files import streams
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, parquet

MODALITIES = frozenset({"text", "image", "image_text"})
BUILDERS = frozenset({"arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset"})
"""What `datasets` calls its readers of local files."""
NETWORK = frozenset(
    "aiohttp.ClientError botocore.BotoCoreError botocore.HTTPClientError fsspec.FSTimeoutError "  # noqa: SIM905
    "httpcore.NetworkError httpx.HTTPError requests.RequestException urllib3.HTTPError".split()
)
"""What libraries of networks raise, by their names: none of them need be installed."""
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})
"""What the system says of a disk or network that fails."""


class Options(parquet.Options):
    """Which data set, and which of its columns are what."""

    dataset: str | None = Field(default=None, description="a name on the Hub; default: the source is a local folder")
    config: str | None = Field(default=None, description="of a data set that has several")
    split: str = Field(default="train", description="of the data set")
    outside: bool = Field(default=False, description="take pictures by paths and URLs outside of the data set, too")
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

    def load() -> Any:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(name)
            saved = saved[options.split] if isinstance(saved, datasets.DatasetDict) else saved
            return saved.to_iterable_dataset(num_shards=max(1, len(saved.cache_files)))
        return datasets.load_dataset(
            name, options.config, data_dir=folder, split=options.split, revision=options.revision, streaming=True
        )

    def attempt() -> Any:
        try:
            return load()
        except Exception as error:  # names, builders: of no common type
            if is_transport(error):
                raise
            detail = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"ingest.dataset: {name}: cannot be loaded ({type(error).__name__}: {detail})") from None

    found = streams.persistent(attempt, f"ingest.dataset: {name}")
    for column, feature in (found.features or {}).items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    return found


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every row; a Reject for what follows damage."""
    (file,) = partition.files
    place = f"{options.dataset or file.path}/{options.split}/{partition.start}"
    names: list[str] | None = None
    rows: Iterator[dict[str, Any]] | None = None
    number = 0

    def following() -> dict[str, Any] | None:
        """The next row, by a new connection where the one before has failed; None after the last."""
        nonlocal names, rows
        if rows is None:
            shard = _shard(partition, options)
            names, rows = _class_names(shard, options.label), iter(shard.skip(number) if number else shard)
        try:
            return next(rows, None)
        except Exception as error:
            rows = None
            if is_transport(error):
                raise
            raise streams.DamageError(streams.detail(error)) from None

    try:
        while (row := streams.persistent(following, place)) is not None:
            number += 1
            whole = _with_bytes(_named(row, options, names), options, file.path, f"{place}:{number}")
            yield whole if isinstance(whole, Reject) else parquet.record(whole, options, f"{place}:{number}")
    except streams.DamageError as damage:
        rest = max(1, _count(partition, options) - number)
        yield Reject(f"{place}:{number + 1}", f"damaged, or not what its name says ({damage})", rows=rest)


def _shard(partition: Partition, options: Options) -> Any:
    (file,) = partition.files
    assert partition.end is not None  # every partition of the plan has one
    return _loaded(file.path, options).shard(num_shards=partition.end, index=partition.start)


def _count(partition: Partition, options: Options) -> int:
    """Rows of a shard, as the data set knows them: its share of the split, and 0 where it does not."""
    assert partition.end is not None
    loaded = _loaded(partition.files[0].path, options)
    split = ((loaded.info.splits if loaded.info else None) or {}).get(options.split)
    return 0 if split is None else -(-int(split.num_examples or 0) // partition.end)


def is_transport(error: BaseException | None) -> bool:
    """Whether a connection failed, and not what came over it. Each builder wraps errors of its own around its cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
        if isinstance(error, ConnectionError | TimeoutError) or kinds & NETWORK:
            return True
        if isinstance(error, OSError) and error.errno in BROKEN:
            return True
        error = error.__cause__ or error.__context__
    return False


def _class_names(shard: Any, label: str | None) -> list[str] | None:
    feature = (shard.features or {}).get(label)
    return getattr(feature, "names", None)


def _named(row: dict[str, Any], options: Options, names: list[str] | None) -> dict[str, Any]:
    """`row` with the class by its name instead of its number; -1 is none."""
    label = row.get(options.label) if options.label is not None else None
    if names is None or not isinstance(label, int):
        return row
    return {**row, str(options.label): names[label] if 0 <= label < len(names) else None}


def _with_bytes(row: dict[str, Any], options: Options, source: str, place: str) -> dict[str, Any] | Reject:
    """`row` with the picture's bytes where it has the path of a file only, as of `imagefolder`."""
    picture = row.get(options.image) if options.image is not None else None
    if not isinstance(picture, dict) or picture.get("bytes") is not None or not picture.get("path"):
        return row
    path = str(picture["path"])
    if not options.outside and not _is_own(path, source, options.dataset):
        return Reject(place, "picture is not a file of the data set (`outside: true` in ingest takes any)")
    try:
        content = streams.whole(path, options.max_document_bytes, place)
    except streams.MissingError:
        return Reject(place, f"there is no such picture ({readers.excerpt(path)})")
    return content if isinstance(content, Reject) else {**row, str(options.image): content}


def _is_own(path: str, source: str, dataset: str | None) -> bool:
    """Whether a row names a file of its own data set: below the local source, or in the repository on the Hub."""
    if streams.is_url(path):
        return dataset not in BUILDERS and path.startswith((f"hf://datasets/{dataset}@", f"hf://datasets/{dataset}/"))
    try:
        return (dataset is None or dataset in BUILDERS) and Path(path).resolve().is_relative_to(Path(source).resolve())
    except (OSError, ValueError):
        return False


def columns(partition: Partition, options: Options) -> list[str]:
    """Names of the columns, where the data set knows them."""
    return sorted(_loaded(partition.files[0].path, options).features or {})
