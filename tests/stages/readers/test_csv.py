"""CSV: quotes that span lines, rows of the wrong length, bytes that do not decode, large files in pieces."""

from __future__ import annotations

import csv as standard
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.files import sources
from stages.params import UserError
from stages.readers import Partition, Record, Reject, csv


def read(path: Path, **options: Any) -> list[Record | Reject]:
    chosen = csv.Options(**options)
    return [item for part in csv.plan(str(path), chosen) for item in csv.read(part, chosen)]


def texts(found: list[Record | Reject]) -> list[str]:
    return [str(item.payload["text"]) for item in found if isinstance(item, Record)]


def reasons(found: list[Record | Reject]) -> dict[str, str]:
    return {item.source.rpartition(":")[2]: item.reason for item in found if isinstance(item, Reject)}


def test_quoted_fields_hold_line_ends_and_quotes(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbftext,label\r\n"a\n\n""b"", c",x\r\n\r\n5" pipe,y\nlast,\n')
    found = read(file, label="label")
    assert texts(found) == ['a\n\n"b", c', '5" pipe', "last"]
    assert [(item.source.rpartition(":")[2], item.label) for item in found if isinstance(item, Record)] == [
        ("2", "x"),
        ("6", "y"),
        ("7", None),
    ]


def test_faulty_rows_are_rejects_at_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'text,label\none\n1,2,3\n\xff,x\n"a"b,c\ngood,x\n"open,x\nrest,y\n')
    found = read(file)
    assert texts(found) == ["good"]
    said = reasons(found)
    assert said["2"] == "row has another number of fields than the header (1, not 2)"
    assert said["3"] == "row has another number of fields than the header (3, not 2)"
    assert said["4"] == "invalid utf-8"
    assert said["5"].startswith("invalid CSV")
    assert said["7"] == "a quote is not closed before the end of the file"


def test_a_field_past_the_limit_is_one_reject(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('text\n"' + "word\n" * 1000 + 'end"\nafter\n')
    found = read(file, max_document_bytes=100)
    assert texts(found) == ["after"]
    assert reasons(found)["2"].startswith("row is too long (5006 bytes")


def test_delimiter_and_encoding_are_options(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes("text\tlabel\ncafé\tä\n".encode("latin-1"))
    for delimiter in ("\t", None):  # a tab is the default of .tsv
        (record,) = read(file, delimiter=delimiter, encoding="latin-1", label="label")
        assert isinstance(record, Record)
        assert (record.payload["text"], record.label) == ("café", "ä")
    for delimiter in ("", "\n", '"', ", "):
        with pytest.raises(ValueError, match="must be one character, neither a quote nor a line end"):
            csv.Options(delimiter=delimiter)
    with pytest.raises(ValueError, match="no text encoding"):
        csv.Options(encoding="klingon")
    with pytest.raises(ValueError, match="convert the files to UTF-8"):
        csv.Options(encoding="utf-16")


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    with pytest.raises(UserError, match="2 columns 'text'"):
        read(tmp_path / "a.csv")


def test_a_large_file_is_cut_only_where_no_quote_could_hide_a_line_end(tmp_path: Path) -> None:
    plain, quoted = tmp_path / "a.csv", tmp_path / "b.csv"
    plain.write_text("text,n\n" + "".join(f"word {number},1\n" for number in range(999)))
    quoted.write_text('text,n\n"a",1\n' + "b,2\n" * 999)
    options = csv.Options()
    (file,) = sources.listing(str(plain))
    pieces = sources.split_lines(file, unless=b'"', size=1000)
    assert len(pieces) > 5
    whole = list(csv.read(Partition((file,)), options))
    assert [item for piece in pieces for item in csv.read(piece, options)] == whole
    assert len(sources.split_lines(sources.listing(str(quoted))[0], unless=b'"', size=1000)) == 1


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\x00")), st.text("ab\n\"', ")), max_size=8
    )
)
def test_what_the_standard_library_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    buffer = io.StringIO(newline="")
    writer = standard.writer(buffer)
    writer.writerows([("text", "other"), *rows])
    file = tmp_path_factory.mktemp("any") / "a.csv"
    file.write_bytes(buffer.getvalue().encode())
    assert texts(read(file)) == [text for text, _ in rows]
