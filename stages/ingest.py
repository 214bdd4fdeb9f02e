"""Ingest: any source becomes Parquet partitions of rows with an id, a label, a source and a group.

Nothing is lost silently: what cannot be read is in `rejects.parquet` with its place and reason, and past
`ingest.max_reject_fraction` the stage fails. Run as `python -m stages.ingest NAME`.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_models.files import remove, whole_file, whole_folder
from ssl_models.tracking.execution import METRICS, REPORT
from stages import check, engine, params
from stages.files import tables
from stages.params import UserError
from stages.readers import Options, Partition, Record, Reject, excerpt, too_long
from stages.results import provenance

Check = Callable[[Record, Options], str | None]
"""A modality's reason to reject a record, or None, given the reader's options."""
NAMES = 20
"""Columns that an error sentence lists at most."""


@dataclass
class Ingested:
    """What became of a partition: `pieces` of rows and of rejects, in order, and what was counted: rows, rejected rows,
    rows with a group, labels, rejected rows by reason."""

    rows: int = 0
    rejects: int = 0
    pieces: list[Path] = field(default_factory=list)
    reject_pieces: list[Path] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    grouped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Ingested) -> None:
        """Count another partition in."""
        self.rows += other.rows
        self.rejects += other.rejects
        self.pieces += other.pieces
        self.reject_pieces += other.reject_pieces
        self.labels |= other.labels
        self.grouped += other.grouped
        self.reasons += other.reasons


@provenance.measured("ingest")
def run(name: str) -> None:
    """Read `corpora.NAME` into `data/ingest/NAME/`."""
    corpus = params.corpus(name)
    if wrong := list(check.corpus(name, corpus)):  # of any stage: told now, not after hours of reading
        raise UserError("\n".join(wrong))
    at = f"corpora.{name}.ingest"
    reader = params.find("stages.readers", corpus.ingest.reader, f"{at}.reader")
    options: Options = params.options(reader.Options, corpus.ingest.options, at)
    modality = params.find("stages.modalities", corpus.modality, f"corpora.{name}.modality").__name__ + ".ingest"

    folder = tables.address("ingest", name)
    for numbers in (METRICS, REPORT):
        remove(folder / numbers)
    try:
        plan: list[Partition] = reader.plan(corpus.ingest.source, options)
    except UserError as error:  # a reader knows its options, not the corpus they stand in
        place = f"{params.PARAMS}: corpora.{name}." if str(error).startswith("ingest.") else ""
        raise UserError(f"{place}{error}") from None
    total = Ingested()
    with whole_folder(folder / "rows") as rows:
        numbered = list(enumerate(plan))
        work = partial(ingest_partition, reader=reader.__name__, modality=modality, options=options, folder=rows)
        for outcome in engine.map(work, numbered, label=f"ingest {name}"):
            total.add(outcome)
        rejects = _merge_rejects(total.reject_pieces, folder / "rejects.parquet")
        _refuse_if_poor(total, corpus.ingest.max_reject_fraction, at, folder / "rejects.parquet", reader, plan, options)
        for index, piece in enumerate(total.pieces):
            piece.rename(rows / tables.part(index))
    tables.write_metrics(
        folder,
        rows_in=total.rows + total.rejects,
        rows_out=sum(pq.read_metadata(path).num_rows for path in tables.partitions(folder / "rows")),
        rejects=rejects,
        bytes_in=sum(partition.size for partition in plan),
        partitions=len(total.pieces),
        labels=len(total.labels),
    )
    _report(total, name)


def ingest_partition(
    numbered: tuple[int, Partition], reader: str, modality: str, options: Options, folder: Path
) -> Ingested:
    """Write the rows and rejects of one partition into `folder`, as files that the driver renames."""
    index, partition = numbered
    check: Check = importlib.import_module(modality).check
    schema = tables.rows_schema(importlib.import_module(modality).FIELDS)
    records = importlib.import_module(reader).read(partition, options)
    return write(records, check, schema, options, folder, f"{index:05d}")


def write(
    records: Iterable[Record | Reject], check: Check, schema: pa.Schema, options: Options, folder: Path, stem: str
) -> Ingested:
    """Write what a reader found and the modality finds good."""
    rows = tables.PartWriter(folder, schema, f"rows-{stem}")
    rejects = tables.PartWriter(folder, tables.REJECTS, f"rejects-{stem}")
    outcome = Ingested()
    for item in records:
        reject = item if isinstance(item, Reject) else _refusal(item, check, options)
        if reject is not None:
            values = {"source": reject.source, "reason": reject.reason, "excerpt": reject.excerpt}
            printable = {key: _printable(value) for key, value in values.items()}
            rejects.append({**printable, "rows": reject.rows}, size=len(reject.excerpt))
            outcome.reasons[reject.reason.partition(" (")[0]] += reject.rows
            outcome.rejects += reject.rows
        elif isinstance(item, Record):
            place = {"label": item.label, "source": _printable(item.source), "group": item.group}
            rows.append({"id": tables.content_id(item.payload), **item.payload, **place}, size=_size(item))
            if item.label is not None:
                outcome.labels.add(item.label)
            outcome.grouped += item.group is not None
    rows.close()
    rejects.close()
    outcome.rows, outcome.pieces = rows.rows, rows.paths
    outcome.reject_pieces = rejects.paths
    return outcome


def _size(record: Record) -> int:
    """Bytes of the payload, text as UTF-8."""
    return sum(len(value.encode() if isinstance(value, str) else value) for value in record.payload.values())


def _refusal(record: Record, check: Check, options: Options) -> Reject | None:
    """The Reject that `record` becomes, or None where it is good."""
    payload = next(iter(record.payload.values()))
    reason = check(record, options)
    if reason is None and not all(_is_unicode(name) for name in (record.label, record.group) if name is not None):
        reason = "label or group is not valid Unicode (a lone surrogate)"
    if reason is not None:
        return Reject(record.source, reason, _beginning(payload))
    size = _size(record)
    limit = options.max_document_bytes
    return too_long(record.source, size, limit, _beginning(payload)) if size > limit else None


def _beginning(payload: str | bytes) -> str:
    """An excerpt of text; nothing of what did not decode to a picture, which may be any file."""
    return excerpt(payload) if isinstance(payload, str) else ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    """`text` with bytes that are no Unicode, as in names of files, written as escapes."""
    return text if _is_unicode(text) else text.encode("utf-8", "backslashreplace").decode()


def _merge_rejects(pieces: list[Path], path: Path) -> int:
    """One `rejects.parquet` out of the workers' pieces, which are removed; empty where there are none. How many rows of
    the source they stand for."""
    rows = 0
    with whole_file(path) as whole, tables.parquet_writer(whole, tables.REJECTS) as writer:
        for piece in pieces:
            rejects = pq.read_table(piece)
            writer.write_table(rejects, row_group_size=tables.ROW_GROUP)
            rows += sum(rejects.column("rows").to_pylist())
            piece.unlink()
    return rows


def _most_frequent(reasons: Counter[str]) -> str:
    """The reason most rejects have, the first in the alphabet of several."""
    reason, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    return f"{reason} ({count})"


def _refuse_if_poor(
    total: Ingested,
    most: float,
    at: str,
    rejects: Path,
    reader: ModuleType,
    plan: list[Partition],
    options: Options,
) -> None:
    """UserError where there is nothing to go on with, or more was rejected than the user allows."""
    rows = total.rows + total.rejects
    if not rows:
        raise UserError(f"{params.PARAMS}: {at}.source: there is not one row in it")
    known = ""
    present = {"label": len(total.labels), "group": total.grouped}
    lacking = [key for key, rows in present.items() if getattr(options, key, None) is not None and not rows]
    if (not total.rows or lacking) and hasattr(reader, "columns"):
        names = reader.columns(plan[0], options)
        shown = ", ".join(names[:NAMES]) + (", ..." if len(names) > NAMES else "")
        known = f"; its columns are: {shown}" if names else ""
    if not total.rows:
        raise UserError(
            f"{params.PARAMS}: {at}: every row was rejected, all {rows}; the most frequent reason: "
            f"{_most_frequent(total.reasons)}{known}; each with its reason is in {rejects}"
        )
    for key in lacking:
        raise UserError(f"{params.PARAMS}: {at}.{key}: no row has a {key} {getattr(options, key)!r}{known}")
    if total.rejects > most * rows:
        raise UserError(
            f"{params.PARAMS}: {at}.max_reject_fraction: {total.rejects} of {rows} rows were rejected "
            f"({total.rejects / rows:.1%}, at most {most:.1%} may be); the most frequent reason: "
            f"{_most_frequent(total.reasons)}; each with its reason is in {rejects}"
        )


def _report(total: Ingested, name: str) -> None:
    print(f"ingest {name}: {total.rows} rows, {total.rejects} rejects", file=sys.stderr)
    for reason, count in total.reasons.most_common(5):
        print(f"  {count} x {reason}", file=sys.stderr)


if __name__ == "__main__":
    params.main(run)
