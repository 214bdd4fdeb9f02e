"""Shard a corpus: `python -m stages.shard CORPUS`. Encoded documents become fixed-width, shuffled, memory-mapped rows.

Documents are first copied, one after another, into a flat file per column, from which rows are gathered in any order:
so memory holds about 100 bytes per document and one shard, and nothing per token, whatever the size of the corpus (the
disk holds three copies of the tokens for a while). Each module `stages/modalities/<modality>/shard.py` has

    class Options(stages.grouping.splits.Fractions)          # `corpora.NAME.shard`
    COLUMNS: tuple[str, ...]                        # columns of tokenize's rows that it reads
    PACKED: bool                                    # pack documents into rows of train and validation
    def described(encoding, options) -> Encoding    # the encoding as a model will see it
    def columns(encoding) -> dict[str, Column]      # dtype and shape of a row
    def values(rows: pa.RecordBatch, encoding) -> dict[str, Ragged]  # of each document; none: it is left out

Where documents are not packed, each is one row, cut or padded with `encoding.pad` to the width of its column; rows of a
column with a codec are whole, each of its own length.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_models.data.encoding import Encoding
from ssl_models.data.manifest import FILE, Column, Manifest, Shard, SplitManifest
from ssl_models.files import checksum, whole_folder, write_json
from ssl_models.training.progress import Progress
from stages import params
from stages.files import tables
from stages.grouping import splits
from stages.params import UserError
from stages.results import provenance

SHARD_BYTES = 256 * 2**20
BATCH, BATCH_BYTES = 1024, 2**25
"""Documents read at once, and bytes of rows that they may fill."""
UNLABELLED = -1
SPLITS = {
    "train": (splits.TRAIN,),
    "validation": (splits.VALIDATION,),
    "probe": (splits.PROBE_TRAIN, splits.PROBE_TEST),
}
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
Values = dict[str, Array | list[bytes]]
"""Some rows of every column: `[rows, width]`, `[rows]`, or the bytes of each row of a column with a codec."""


@dataclass(frozen=True)
class Spool:
    """One column of all documents, flat on disk: document `i` is `values[ends[i - 1]:ends[i]]`."""

    values: Array
    ends: Ints

    def lengths(self) -> Ints:
        """Numbers in each document."""
        return np.diff(self.ends, prepend=0)

    def document(self, number: int) -> Array:
        """The numbers of one document."""
        return self.values[self.ends[number - 1] if number else 0 : self.ends[number]]


@dataclass(frozen=True)
class Documents:
    """Every document of the corpus: its columns on disk, the first 64 bits of its id, its group's number and its class,
    -1 for none."""

    spools: dict[str, Spool]
    id: Ints
    group: Ints
    label: Ints
    labels: tuple[str, ...]

    @property
    def some(self) -> Mask:
        """Which documents have a value in every column; the others are left out."""
        some: Mask = np.logical_and.reduce([spool.lengths() > 0 for spool in self.spools.values()])
        return some

    @property
    def labelled(self) -> Mask:
        """Which documents have a class."""
        labelled: Mask = self.label != UNLABELLED
        return labelled


@provenance.measured("shard")
def run(name: str) -> None:
    """Split, shuffle and write the rows of corpus `name`, with manifest, encoding and metrics."""
    corpus = params.corpus(name)
    modality = params.find(f"stages.modalities.{corpus.modality}", "shard", f"corpora.{name}.modality")
    options = params.options(modality.Options, corpus.shard, f"corpora.{name}.shard")
    tokenized = tables.address("tokenize", name)
    partitions = tables.partitions(tokenized / "rows")
    encoding = modality.described(Encoding.load(tokenized / "encoding"), options)
    output = tables.address("shard", name)
    with whole_folder(output / "shards") as folder:
        shutil.copytree(tokenized / "encoding", folder / "encoding")
        encoding.save(folder / "encoding")
        scratch = folder / "scratch"
        scratch.mkdir()
        columns = modality.columns(encoding)
        documents = _spooled(partitions, modality, encoding, options.seed, scratch, name)
        split_of = _assigned(documents, columns, modality.PACKED, options)
        writer = _Writer(folder, columns, encoding.pad, options.seed, f"corpora.{name}.shard.sequence")
        written = {}
        for split, codes in SPLITS.items():
            mine = np.isin(split_of, codes) & documents.some
            if split == "probe":
                test = split_of == splits.PROBE_TEST
                mine &= documents.labelled
                if options.group_rows is not None:
                    few = np.flatnonzero(mine)
                    mine[few[splits.beyond(documents.group[few], documents.id[few], options.group_rows)]] = False
                written[split] = writer.fixed(split, mine, documents, test)
                tested = int((mine & test).sum())
            elif modality.PACKED:
                written[split] = writer.pack(split, mine, documents)
            else:
                written[split] = writer.fixed(split, mine, documents)
        shutil.rmtree(scratch)
        manifest = Manifest(
            modality=corpus.modality,
            columns={
                **columns,
                "label": Column(dtype="int32"),
                "test": Column(dtype="uint8"),
                "group": Column(dtype="int64"),
                "id": Column(dtype="int64"),
            },
            splits=written,
            labels=documents.labels,
            length=encoding.length,
        )
        write_json(folder / FILE, manifest.model_dump(mode="json"))
    kept = sum(writer.documents.values())
    tables.write_metrics(
        output,
        rows_in=len(documents.group),
        rows_out=kept,
        rejects=len(documents.group) - kept,
        bytes_in=sum(path.stat().st_size for path in partitions),
        **_metrics(documents, split_of, manifest, writer, tested),
    )


def _spooled(
    partitions: list[Path], modality: Any, encoding: Encoding, seed: int, scratch: Path, name: str
) -> Documents:
    """Copy the columns of every document to flat files; remember its lengths, group and label."""
    columns = modality.columns(encoding)
    lengths: dict[str, list[Ints]] = {column: [] for column in columns}
    ids: list[Ints] = [np.zeros(0, np.int64)]
    keys: list[npt.NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
    codes: list[Ints] = [np.zeros(0, np.int64)]
    seen: dict[str, int] = {}
    files = {column: (scratch / column).open("wb") for column in columns}
    batch_rows = max(1, min(BATCH, BATCH_BYTES // _row_bytes(columns)))
    try:
        with Progress(f"shard {name}", len(partitions)) as progress:
            for path in partitions:
                source = pq.ParquetFile(path)
                for batch in source.iter_batches(batch_rows, columns=["id", "label", "group", *modality.COLUMNS]):
                    for column, ragged in modality.values(batch, encoding).items():
                        files[column].write(np.ascontiguousarray(ragged.values, columns[column].dtype).data)
                        lengths[column].append(ragged.lengths)
                    ids.append(_ids(batch.column("id").to_pylist()))
                    keys.append(splits.keys(pc.coalesce(batch.column("group"), batch.column("id")).to_pylist(), seed))
                    names = batch.column("label").to_pylist()
                    codes.append(np.array([_code(seen, label) for label in names], np.int64))
                progress.advance()
    finally:
        for file in files.values():
            file.close()
    if sum(map(len, keys)) == 0:
        raise UserError(f"corpora.{name}: there are no rows to shard")
    spools = {column: _mapped(scratch / column, columns[column].dtype, lengths[column]) for column in columns}
    labels = tuple(sorted(seen))
    place = {label: number for number, label in enumerate(labels)}
    rank = np.array([place[label] for label in seen] + [UNLABELLED], np.int64)
    group = np.unique(np.concatenate(keys), return_inverse=True)[1]
    return Documents(spools, np.concatenate(ids), group.astype(np.int64), rank[np.concatenate(codes)], labels)


def _ids(names: list[str]) -> Ints:
    """The first 16 of the 32 hex digits of each id, as int64."""
    return np.array([int(name[:16], 16) for name in names], np.uint64).view(np.int64)


def _code(seen: dict[str, int], label: str | None) -> int:
    return UNLABELLED if label is None else seen.setdefault(label, len(seen))


def _mapped(path: Path, dtype: str, lengths: list[Ints]) -> Spool:
    ends = np.cumsum(np.concatenate(lengths))
    empty = path.stat().st_size == 0
    values: Array = np.zeros(0, dtype) if empty else np.memmap(path, dtype, mode="r")
    return Spool(values, ends)


def _assigned(
    documents: Documents, columns: Mapping[str, Column], packed: bool, fractions: splits.Fractions
) -> npt.NDArray[np.uint8]:
    """The split of each document, by its group."""
    some = documents.some
    count = int(documents.group.max()) + 1
    first = next(iter(documents.spools))
    sizes = documents.spools[first].lengths() if packed else some.astype(np.int64)
    usable = some & documents.labelled
    classes = len(documents.labels)
    pairs, rows = np.unique(documents.group[usable] * max(classes, 1) + documents.label[usable], return_counts=True)
    groups = splits.Groups(
        rows=np.bincount(documents.group, some, count).astype(np.int64),
        size=np.bincount(documents.group, sizes, count).astype(np.int64),
        label_pairs=np.stack([pairs // max(classes, 1), pairs % max(classes, 1), rows], axis=1),
        classes=classes,
    )
    least = math.prod(columns[first].shape) if packed else 1
    return splits.assign(groups, fractions, least)[documents.group]


class _Writer:
    """Writes splits as Arrow files and counts what went where."""

    def __init__(self, folder: Path, columns: dict[str, Column], pad: int, seed: int, key: str) -> None:
        self.folder, self.columns, self.pad, self.seed, self.key = folder, columns, pad, seed, key
        self.documents: dict[str, int] = {}
        self.tokens = self.tokens_dropped = 0

    def pack(self, split: str, chosen: Mask, documents: Documents) -> SplitManifest:
        """Documents in a random order, cut into rows, and these in a random order. The last tokens are dropped, unless
        validation would have no row: then they are padded to one."""
        ((column, spool),) = documents.spools.items()
        width = self.columns[column].shape[0]
        random = self._random(split)
        mine = random.permutation(np.flatnonzero(chosen))
        lengths = spool.lengths()[mine]
        total = int(lengths.sum())
        if split == "train" and total < width:
            raise UserError(
                f"{self.key}: the {total} tokens to train on do not fill one row of {width}: "
                "give the corpus more text, or a shorter sequence"
            )
        rows, rest = divmod(total, width)
        scratch = self.folder / "scratch" / split
        with scratch.open("wb") as file:
            for document in mine:
                file.write(spool.document(int(document)).data)
            if rest and rows == 0:
                file.write(np.full(width - rest, self.pad, spool.values.dtype).data)
                rows, rest = 1, 0
        self.documents[split] = int((np.cumsum(lengths) - lengths < rows * width).sum())
        self.tokens += total - rest
        self.tokens_dropped += rest
        if rows == 0:
            return SplitManifest(rows=0, bytes=0)
        packed = np.memmap(scratch, spool.values.dtype, mode="r", shape=(rows, width))
        turn = random.permutation(rows)
        row_bytes = _row_bytes(self.columns)
        return self._write(split, rows, lambda start, end: {column: packed[turn[start:end]]}, row_bytes)

    def fixed(self, split: str, chosen: Mask, documents: Documents, test: Mask | None = None) -> SplitManifest:
        """One document a row, in a random order; in the probe, where `test` tells its parts apart, with its class and
        the numbers of its group and of itself."""
        mine = self._random(split).permutation(np.flatnonzero(chosen))
        self.documents[split] = len(mine)

        def gather(start: int, end: int) -> Values:
            numbers = mine[start:end]
            rows: Values = {}
            for name, column in self.columns.items():
                if column.codec:
                    rows[name] = [documents.spools[name].document(int(document)).tobytes() for document in numbers]
                    continue
                rows[name] = table = np.full((len(numbers), math.prod(column.shape)), self.pad, column.dtype)
                for row, document in zip(table, numbers, strict=True):
                    values = documents.spools[name].document(int(document))[: len(row)]
                    row[: len(values)] = values
            if test is not None:
                rows["label"] = documents.label[numbers].astype(np.int32)
                rows["test"] = test[numbers].astype(np.uint8)
                rows["group"] = documents.group[numbers]
                rows["id"] = documents.id[numbers]
            return rows

        return self._write(split, len(mine), gather, self._mean_row_bytes(mine, documents))

    def _mean_row_bytes(self, mine: Ints, documents: Documents) -> int:
        """Bytes of a row, where columns with a codec have rows of different lengths."""
        encoded = [name for name, column in self.columns.items() if column.codec]
        fixed = _row_bytes({name: column for name, column in self.columns.items() if name not in encoded})
        return fixed + sum(int(documents.spools[name].lengths()[mine].sum()) for name in encoded) // max(1, len(mine))

    def _random(self, split: str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, list(SPLITS).index(split)])))

    def _write(self, split: str, rows: int, gather: Callable[[int, int], Values], row_bytes: int) -> SplitManifest:
        """Write rows 0..rows-1 of `gather(start, end)` as files of about `SHARD_BYTES`, read each back, sum it."""
        per_file = max(1, SHARD_BYTES // max(1, row_bytes))
        shards, size = [], 0
        for number, start in enumerate(range(0, rows, per_file)):
            table = _table(gather(start, min(rows, start + per_file)))
            path = self.folder / split / tables.part(number, "arrow")
            tables.write_ipc(path, table)
            if not pa.ipc.open_file(pa.memory_map(str(path))).read_all().equals(table):
                raise UserError(f"{path}: what was read back is not what was written: check the disk")
            shards.append(Shard(file=f"{split}/{path.name}", rows=table.num_rows, blake2b=checksum(path)))
            size += path.stat().st_size
        return SplitManifest(rows=rows, bytes=size, shards=tuple(shards))


def _row_bytes(columns: Mapping[str, Column]) -> int:
    """Bytes of one row, decoded."""
    return sum(np.dtype(column.dtype).itemsize * math.prod(column.shape) for column in columns.values())


def _table(columns: Values) -> pa.Table:
    """Arrays `[rows, width]` as FixedSizeList columns and `[rows]` as plain ones, without a copy; bytes as binary."""
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Array | list[bytes]) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, pa.large_binary())
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _metrics(
    documents: Documents, split_of: npt.NDArray[np.uint8], manifest: Manifest, writer: _Writer, tested: int
) -> dict[str, Any]:
    """What was split how, and why documents were left out; warns of what the splits lack."""
    empty = int((~documents.some).sum())
    unlabelled = int((np.isin(split_of, SPLITS["probe"]) & documents.some & ~documents.labelled).sum())
    left_out = len(documents.group) - sum(writer.documents.values())
    usable = documents.some & documents.labelled
    beyond = int((np.isin(split_of, SPLITS["probe"]) & usable).sum()) - writer.documents["probe"]
    in_part = [set(documents.label[(split_of == code) & usable].tolist()) for code in SPLITS["probe"]]
    both = in_part[0] & in_part[1]
    _warn(manifest, [label for number, label in enumerate(documents.labels) if number not in both])
    return {
        **{
            split: {
                "rows": manifest.splits[split].rows,
                "documents": writer.documents[split],
                "groups": len(np.unique(documents.group[np.isin(split_of, codes)])),
            }
            for split, codes in SPLITS.items()
        },
        "left_out": {
            "empty": empty,
            "unlabelled_in_probe_groups": unlabelled,
            "beyond_group_rows": beyond,
            "in_dropped_tokens": left_out - empty - unlabelled - beyond,
        },
        "tokens": writer.tokens,
        "tokens_dropped": writer.tokens_dropped,
        "classes": len(documents.labels),
        "classes_in_both_parts": len(both),
        "probe_test_rows": tested,
    }


def _warn(manifest: Manifest, lacking: list[str]) -> None:
    """Say on stderr what the probe and validation lack, where groups are too few."""
    if not manifest.splits["validation"].rows:
        print("warning: there are no validation rows: the corpus is one group", file=sys.stderr)
    if manifest.labels and not manifest.splits["probe"].rows:
        print("warning: the probe is empty: it needs two labelled groups beside train and validation", file=sys.stderr)
    elif lacking:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        print(f"warning: {len(lacking)} classes are not in both parts of the probe: {shown}", file=sys.stderr)


if __name__ == "__main__":
    params.main(run)
