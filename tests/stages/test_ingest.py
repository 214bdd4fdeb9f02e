"""Ingest as a user runs it: rows, rejects, exact accounting, one sentence where it cannot go on."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stages import ingest, params
from stages.files import sources, streams, tables
from stages.params import UserError
from stages.readers import Reject, jsonl


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRETEXT_WORKERS", "1")
    (tmp_path / "raw").mkdir()
    return tmp_path


def run(later: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Ingest the corpus `mine` with these options (of `later` stages, too); its metrics."""
    entry = {"reader": "jsonl", "source": "raw", "max_reject_fraction": 1.0, **options}
    corpus = {
        "modality": "text",
        "ingest": entry,
        "dedup": {},
        "tokenize": {},
        "shard": {"sequence": 32},
        **(later or {}),
    }
    Path("params.yaml").write_text(json.dumps({"corpora": {"mine": corpus}}))
    params.load_params.cache_clear()
    ingest.run("mine")
    return json.loads(Path("data/ingest/mine/report.json").read_text())


def rows() -> list[dict[str, Any]]:
    found = tables.partitions(Path("data/ingest/mine/rows"))
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def rejects() -> dict[str, str]:
    """Reason by place."""
    table = pq.read_table("data/ingest/mine/rejects.parquet")
    return {row["source"]: row["reason"] for row in table.to_pylist()}


def line(text: Any, **more: Any) -> bytes:
    return json.dumps({"text": text, **more}).encode() + b"\n"


def test_every_fault_of_json_lines_is_a_reject_with_its_place(project: Path) -> None:
    faults = {
        b"nope\n": "invalid JSON",
        b"[1]\n": "line is not a JSON object (it is a list)",
        line(3): "column 'text' is not a string (it is a number)",
        line(None): "null in column 'text'",
        line(" \t"): "empty text",
        line(""): "empty text",
        b'{"body": "x"}\n': "no column 'text'",
        b'{"text": "\xff"}\n': "invalid UTF-8",
        b'{"text": "\\ud800"}\n': "text is not valid Unicode",
        line("x", label=["a"]): "column 'label' is neither a string nor a number",
        line("x" * 101): "document is longer than max_document_bytes (101 bytes, not 100)",
        line("x" * 10_000): "line is too long",
    }
    Path("raw/a.jsonl").write_bytes(line("good", label="a") + b"".join(faults) + b"\n" + line("last"))
    metrics = run(label="label", max_document_bytes=100)
    found = rejects()
    for number, reason in enumerate(faults.values(), start=2):
        place = f"raw/a.jsonl:{number}"
        assert found[place].startswith(reason)
    assert [row["text"] for row in rows()] == ["good", "last"]
    assert (metrics["rows_in"], metrics["rows_out"], metrics["rejects"]) == (len(faults) + 2, 2, len(faults))
    assert metrics["labels"] == 1


def test_rows_say_what_they_are_and_where_they_came_from(project: Path) -> None:
    Path("raw/a.jsonl").write_bytes(line("one", label=3, author="x"))
    run(label="label", group="author")
    (row,) = rows()
    assert row == {
        "id": tables.content_id({"text": "one"}),
        "text": "one",
        "label": "3",
        "source": "raw/a.jsonl:1",
        "group": "x",
    }


def test_an_empty_field_or_nan_is_no_label(project: Path) -> None:
    values = [1, 2.5, True, "a b", "", None, float("nan")]
    Path("raw/a.jsonl").write_bytes(b"".join(line(f"row {number}", label=v) for number, v in enumerate(values)))
    run(label="label")
    assert [row["label"] for row in rows()] == ["1", "2.5", "True", "a b", None, None, None]


def test_what_is_no_file_is_named_and_an_empty_folder_is_said_to_be(project: Path) -> None:
    with pytest.raises(UserError, match=r"source: raw: there is no file in it"):
        run(reader="text")
    os.mkfifo("raw/pipe.jsonl")
    with pytest.raises(UserError, match=r"raw/pipe\.jsonl: cannot be read: it is neither a file nor a folder"):
        run()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_rows_before_a_truncation_are_kept_and_the_rest_is_one_reject(project: Path, suffix: str) -> None:
    content = b"".join(line(f"document {number} {number * 7919 % 1009}") for number in range(20_000))
    packed = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    Path(f"raw/a.jsonl{suffix}").write_bytes(packed)
    assert run()["rows_out"] == 20_000
    Path(f"raw/a.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    metrics = run()
    assert 0 < metrics["rows_out"] < 20_000
    assert 1 <= metrics["rejects"] < 1000  # those of the block that was cut
    assert rejects() == {
        f"raw/a.jsonl{suffix}:{metrics['rows_out'] + 1}": f"truncated {streams.COMPRESSIONS[suffix].name} data"
    }


def test_files_that_are_not_what_their_names_say_are_rejects(project: Path) -> None:
    Path("raw/a.jsonl").write_bytes(line("good"))
    Path("raw/b.jsonl.gz").write_bytes(line("plain"))
    Path("raw/c.jsonl").write_bytes(gzip.compress(line("packed")))
    Path("raw/d.jsonl").write_bytes(b"")
    Path("raw/e.jsonl.gz").write_bytes(b"")
    metrics = run()
    assert metrics["rows_in"] == 5 and metrics["rows_out"] == 1
    assert "not gzip" in rejects()["raw/b.jsonl.gz:1"]
    assert "file is gzip data" in rejects()["raw/c.jsonl:1"]
    assert rejects()["raw/d.jsonl"] == rejects()["raw/e.jsonl.gz"] == "empty file"


def test_a_document_of_50_mb_is_rejected_with_its_size(project: Path) -> None:
    with Path("raw/a.jsonl").open("wb") as file:
        file.write(line("good"))
        file.write(b'{"text": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + line("after"))
    metrics = run()
    assert (metrics["rows_out"], metrics["rejects"]) == (2, 1)
    assert "50000012 bytes" in rejects()["raw/a.jsonl:2"]


def test_too_many_rejects_end_the_stage_and_leave_the_rejects(project: Path) -> None:
    Path("raw/a.jsonl").write_bytes(line("good") + b"bad\n" * 2 + line(1))
    with pytest.raises(UserError, match=r"3 of 4 rows were rejected.*invalid JSON \(2\).*rejects\.parquet"):
        run(max_reject_fraction=0.5)
    assert len(rejects()) == 3
    assert [path.name for path in Path("data/ingest/mine").iterdir()] == ["rejects.parquet"]


@pytest.mark.parametrize(
    ("options", "content", "sentence"),
    [
        (
            {"source": "nowhere"},
            line("x"),
            "params.yaml: corpora.mine.ingest.source: there is no file or folder nowhere",
        ),
        ({"source": "raw/*.csv"}, line("x"), "no file matches it"),
        ({"files": "*.csv"}, line("x"), "none of its 1 files match"),
        ({"text": "body"}, line("x", id=1), r"no column 'body' \(1\); its columns are: id, text"),
        ({"label": "kind"}, line("x", id=1), r"no row has a label 'kind'; its columns are: id, text"),
        ({"group": "film"}, line("x", id=1), r"ingest\.group: no row has a group 'film'; its columns are: id, text"),
        ({}, json.dumps({"text": "x"}).encode("utf-16"), r"file is UTF-16: convert it to UTF-8 first \(1\)"),
        ({}, b"\n\n", "there is not one row in it"),
        ({"txt": "a"}, line("x"), r"corpora\.mine\.ingest\.txt: no such key"),
        ({"later": {"tokenize": {"vocabulary": 300}}}, line("x"), r"mine\.tokenize: vocabulary must be at least 363"),
        ({"later": {"shard": {"sequence": 4}}}, line("x"), r"corpora\.mine\.shard\.sequence: must be greater"),
        ({"reader": "xml"}, line("x"), r"corpora\.mine\.ingest\.reader: there is no 'xml'"),
        ({"source": "s4://bucket"}, line("x"), "s4://bucket"),
    ],
)
def test_what_cannot_go_on_is_one_sentence(
    project: Path, options: dict[str, Any], content: bytes, sentence: str
) -> None:
    Path("raw/a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        run(**options)
    assert "\n" not in str(caught.value)
    assert not Path("data/ingest/mine/rows").exists()


def test_a_file_that_may_not_be_read_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("raw/secret.jsonl").write_bytes(line("x"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    with pytest.raises(UserError, match=r"raw/secret\.jsonl: cannot be read: Permission denied"):
        run()


def test_sources_may_be_globs_files_and_urls(project: Path) -> None:
    import fsspec

    Path("raw/a.jsonl").write_bytes(line("a"))
    Path("raw/b.jsonl").write_bytes(line("b"))
    assert run(source="raw/*.jsonl")["rows_out"] == 2
    assert run(source="raw/b.jsonl")["rows_out"] == 1
    memory = fsspec.filesystem("memory")
    memory.pipe("/ingest/x/a.jsonl.gz", gzip.compress(line("a")))
    memory.pipe("/ingest/x/b.jsonl", line("b"))
    for source in ("memory://ingest/x", "memory://ingest/x/*", "memory://ingest/x/a.jsonl.gz"):
        assert run(source=source)["rows_out"] == (1 if source.endswith("gz") else 2)
    assert rows()[0]["source"] == "memory:///ingest/x/a.jsonl.gz:1"


@pytest.mark.slow
def test_one_worker_and_two_write_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PARTITION_BYTES", 1000)
    for number in range(5):
        Path(f"raw/{number}.jsonl").write_bytes(b"bad\n" + b"".join(line(f"{number} {row}") for row in range(500)))
    monkeypatch.setattr(jsonl, "split_lines", lambda file: sources.split_lines(file, size=1000))
    written = []
    for workers in ("1", "2"):
        monkeypatch.setenv("PRETEXT_WORKERS", workers)
        monkeypatch.setattr(jsonl, "partitions", lambda files, split: sources.partitions(files, split, size=1000))
        assert run()["rows_in"] == 5 * 501
        paths = [*tables.partitions(Path("data/ingest/mine/rows")), Path("data/ingest/mine/rejects.parquet")]
        written.append({str(path): path.read_bytes() for path in paths})
    assert len(written[0]) > 10
    assert written[0] == written[1]


@given(st.lists(st.one_of(st.text(), st.integers(), st.none(), st.binary(max_size=20)), max_size=20))
def test_rows_in_are_rows_out_and_rejects(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    lines = [value.replace(b"\n", b"") + b"x\n" if isinstance(value, bytes) else line(value) for value in values]
    file.write_bytes(line("so that no first bytes look like those of a compressed file") + b"".join(lines))
    options = jsonl.Options()
    found = [item for part in jsonl.plan(str(file), options) for item in jsonl.read(part, options)]
    assert len(found) == 1 + len(values)


def test_importing_the_stage_is_light() -> None:
    code = (
        "import sys, time, stages.ingest\n"
        "print(*[name for name in ('torch', 'mlflow', 'fsspec', 'pandas') if name in sys.modules], time.process_time())"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
        for _ in range(3)
    ]
    assert min(float(seconds) for seconds in said) < 0.5  # processor time: neighbours do not count


def test_an_error_is_one_line_and_status_2(project: Path) -> None:
    root = Path(ingest.__file__).parents[1]
    Path("params.yaml").write_text("corpora: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.ingest", "mine"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(root)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: corpora.mine: there is no such corpus")
    assert done.stderr.count("\n") == 1


def test_the_limit_counts_the_rows_that_a_reject_stands_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("raw/a.jsonl").write_bytes(line("a") + line("b"))
    lost = Reject("raw/a.jsonl:3", "damaged", rows=97)
    real = jsonl.read
    monkeypatch.setattr(jsonl, "read", lambda partition, options: [*real(partition, options), lost])
    with pytest.raises(UserError, match=r"97 of 99 rows were rejected .*damaged \(97\)"):
        run(max_reject_fraction=0.5)
    metrics = run(max_reject_fraction=0.99)
    assert (metrics["rows_in"], metrics["rows_out"], metrics["rejects"]) == (99, 2, 97)
    assert pq.read_table("data/ingest/mine/rejects.parquet").column("rows").to_pylist() == [97]
