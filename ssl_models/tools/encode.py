"""Features of a file of texts: `python -m ssl_models.tools.encode MODEL FILE` writes Parquet of `id` and `features`.

FILE is Parquet, CSV (or TSV) or JSON lines with a column of texts, or plain text of one document a line; its ending
says which. A row's `id` is its own where the file has a column of that name that is neither empty nor null, else the
content's, as the ingest stage computes it. Texts are encoded as the probe's were: one document a row, cut to the
model's length.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from ssl_models.objectives.shared.text import TextObjective
from ssl_models.tools.generate import open_text_model, tokenizer_of

BATCH = 64
PLAIN, DELIMITERS, JSON_LINES = ("", ".txt"), {".csv": ",", ".tsv": "\t"}, (".jsonl", ".ndjson", ".json")
FIELD = 2**31 - 1
"""Most characters of a field of a CSV file."""


def _text(value: object, place: str, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {column!r} is not a text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: {column!r} is not Unicode: it holds half of a surrogate pair") from None
    return value


def _document(row: dict[str, Any], place: str, column: str) -> tuple[str, str]:
    """`(id, text)` of a row that has the column."""
    text, own = _text(row[column], place, column), row.get("id")
    return identity(text) if own is None or own == "" else _text(str(own), place, "id"), text


def identity(text: str) -> str:
    """32 hex digits: BLAKE2b-128 of the text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def documents(file: Path, column: str) -> Iterator[tuple[str, str]]:
    """`(id, text)` of every row of `file`, of at least one. ValueError names the file, and the row that cannot be read;
    the one of an ending that is not known comes before the first row is asked for."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _read(file, _parquet(file, column))
    if suffix in DELIMITERS:
        return _read(file, _csv(file, column, DELIMITERS[suffix]))
    if suffix in JSON_LINES:
        return _read(file, _json_lines(file, column))
    if suffix in PLAIN:
        return _read(file, ((identity(line), line) for _, line in _lines(file)))
    known = ", ".join([".parquet", *DELIMITERS, *JSON_LINES])
    raise ValueError(f"{file}: files that end in {file.suffix} are not read; {known} are, and .txt, a document a line")


def _read(file: Path, rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    empty = True
    try:
        for row in rows:
            empty = False
            yield row
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if empty:
        raise ValueError(f"{file}: there is no text to encode")


def _check_columns(place: str, column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise ValueError(f"{place}: has no column {column!r} (columns: {', '.join(names)}); name one with --column")
    for name in ("id", column):
        if names.count(name) > 1:
            raise ValueError(f"{place}: has {names.count(name)} columns {name!r}: rename all but one")


def _csv(file: Path, column: str, delimiter: str) -> Iterator[tuple[str, str]]:
    header: list[str] | None = None
    for place, row in _csv_rows(file, delimiter):
        if header is None:
            header = row
            _check_columns(place, column, header)
        elif len(row) != len(header):
            raise ValueError(
                f"{place}: has another number of fields than the header ({len(row)}, not {len(header)}); "
                "quote a field that holds a delimiter"
            )
        else:
            yield _document(dict(zip(header, row, strict=True)), place, column)


def _csv_rows(file: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(the place where it begins, fields) of every row that is not blank."""
    csv.field_size_limit(FIELD)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            before = rows.line_num
            try:
                row = next(rows, None)
            except UnicodeDecodeError:
                raise ValueError(f"{file}: is not UTF-8 after line {rows.line_num}") from None
            except csv.Error as error:
                unclosed = "unexpected end of data" in str(error)
                reason = "a quote is not closed before the end of the file" if unclosed else f"invalid CSV ({error})"
                raise ValueError(f"{file}:{before + 1}: {reason}") from None
            if row is None:
                return
            if row:
                yield f"{file}:{before + 1}", row


def _parquet(file: Path, column: str) -> Iterator[tuple[str, str]]:
    with pq.ParquetFile(file) as content:
        names = content.schema_arrow.names
        _check_columns(str(file), column, names)
        wanted = [name for name in ("id", column) if name in names]
        number = 0
        for batch in content.iter_batches(BATCH, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield _document(row, f"{file}, row {number}", column)


def _json_lines(file: Path, column: str) -> Iterator[tuple[str, str]]:
    for place, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{place}: is not JSON; one object a line is read") from None
        except RecursionError:
            raise ValueError(f"{place}: is JSON that is nested too deeply") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: is not a JSON object; one object a line is read")
        if column not in row:
            raise ValueError(f"{place}: has no {column!r}; name the field with --column")
        yield _document(row, place, column)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of every line, without its end and without a byte order mark."""
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield f"{file}:{number}", content.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError:
                raise ValueError(f"{file}:{number}: is not UTF-8") from None


class Encoder:
    """A language model as a function from texts to one of its named features."""

    def __init__(self, objective: TextObjective, feature: str | None) -> None:
        """`feature`: default the first that the objective names. ValueError where it names none of this kind."""
        self.objective, self.feature, self.cut = objective, feature, 0
        self.tokenizer: Tokenizer = tokenizer_of(objective)
        self.tokenizer.encode_special_tokens = True  # a special token's name in a document is text

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Features float32 `[texts, width]` on the CPU."""
        encoding, device = self.objective.encoding, next(self.objective.parameters()).device
        tokens = torch.full((len(texts), encoding.length), encoding.pad)
        for row, found in enumerate(self.tokenizer.encode_batch(texts, add_special_tokens=False)):
            ids = [*found.ids, encoding.eos]
            self.cut += len(ids) > encoding.length
            ids = ids[: encoding.length]
            tokens[row, : len(ids)] = torch.tensor(ids)
        with torch.inference_mode():
            features = self.objective.features({"tokens": tokens.to(device)})
        self.feature = self.feature or next(iter(features))
        if self.feature not in features:
            raise ValueError(f"the model has no feature {self.feature!r} (features: {', '.join(features)})")
        return features[self.feature].float().cpu()


def encode(encoder: Encoder, rows: Iterator[tuple[str, str]], output: Path) -> int:
    """Write `output`, whole or not at all, and not where there are no rows; returns their number. ValueError where it
    cannot be written."""
    partial, writer, count = output.with_name(f".{output.name}.partial"), None, 0
    try:
        for batch in tqdm(_batches(rows), unit="batch", disable=None):
            features = encoder([text for _, text in batch])
            width = features.shape[1]
            values = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().reshape(-1)), width)
            table = pa.table({"id": pa.array([number for number, _ in batch]), "features": values})
            if writer is None:
                named = table.schema.with_metadata({"feature": str(encoder.feature)})
                writer = pq.ParquetWriter(partial, named)
            writer.write_table(table.cast(writer.schema))
            count += len(batch)
        if writer is not None:
            writer.close()
            partial.replace(output)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written: {error.strerror or error}") from None
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)
    return count


def _batches(rows: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def main(arguments: list[str] | None = None) -> int:
    """Encode the file named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ssl_models.tools.encode", description="Features of a file of texts."
    )
    parser.add_argument("model", type=Path, help="the folder data/pretrain/NAME/model")
    parser.add_argument("file", type=Path, help="texts: .parquet, .csv, .tsv, .jsonl, or .txt of one document a line")
    parser.add_argument("--output", type=Path, help="default: FILE with the ending .features.parquet")
    parser.add_argument("--column", default="text", help="column of Parquet or CSV, field of JSON (default text)")
    parser.add_argument("--feature", help="mean, last, cls, layerN.mean (default: the model's first)")
    given = parser.parse_args(arguments)
    output = given.output or given.file.with_suffix(".features.parquet")
    try:
        if not given.file.is_file():
            raise ValueError(f"{given.file}: there is no such file")
        if output.resolve() == given.file.resolve():
            raise ValueError(f"{output}: would replace the file that is read")
        rows = documents(given.file, given.column)
        encoder = Encoder(open_text_model(given.model), given.feature)
        count = encode(encoder, rows, output)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    length = encoder.objective.encoding.length
    shortened = f"; {encoder.cut} were longer than {length} tokens and were cut" if encoder.cut else ""
    print(f"{output}: {encoder.feature!r} of {count} texts{shortened}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
