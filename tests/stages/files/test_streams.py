"""Connections that fail, bombs, and whose files are read: what every reader has from `stages/files/streams.py`."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import json
import lzma
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stages.files import streams
from stages.params import UserError
from stages.readers import Record, Reject, csv, hf_datasets, image_caption_table, jsonl, parquet, video, webdataset


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by ranges. The next `resets` answers of more than a header end in their middle."""

    content: bytes = b""
    resets: int = 0
    status: int = 200


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def _answer(self, body: bool) -> None:
        content, status = self.server.content, self.server.status
        if status != 200:
            self.send_error(status)
            return
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        start, end = int(asked[0] or 0), min(int(asked[2] or len(content) - 1), len(content) - 1)
        self.send_response(206 if asked[0] else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - start))
        if asked[0]:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.end_headers()
        if body and self.server.resets and end - start > 1000:
            self.server.resets -= 1
            self.wfile.write(content[start : (start + end) // 2])
            self.connection.close()
        elif body:
            self.wfile.write(content[start : end + 1])

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(streams, "PAUSE", 0.0)
    with Server(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def url(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def read(reader: Any, source: str, **options: Any) -> list[Record | Reject]:
    chosen = reader.Options(**options)
    return [item for part in reader.plan(source, chosen) for item in reader.read(part, chosen)]


def table(rows: int) -> bytes:
    stream = io.BytesIO()
    draw = random.Random(0)
    texts = [f"{number} {draw.randbytes(30).hex()}" for number in range(rows)]
    pq.write_table(pa.table({"text": texts}), stream, row_group_size=rows // 10)
    return stream.getvalue()


def lines(rows: int) -> bytes:
    draw = random.Random(0)
    return b"".join(json.dumps({"text": f"{n} {draw.randbytes(30).hex()}"}).encode() + b"\n" for n in range(rows))


CASES = {"a.parquet": (parquet, table(20_000)), "a.jsonl.gz": (jsonl, gzip.compress(lines(20_000)))}


@pytest.mark.parametrize("name", CASES)
def test_a_connection_that_is_made_again_loses_no_row(server: Server, name: str) -> None:
    reader, server.content = CASES[name]
    server.resets = 3
    found = read(reader, url(server, name))
    assert server.resets == 0
    assert [type(item) for item in found] == [Record] * 20_000


@pytest.mark.parametrize("name", CASES)
def test_a_connection_that_stays_away_stops_the_stage(server: Server, name: str) -> None:
    reader, server.content = CASES[name]
    server.resets = 10**6
    with pytest.raises(UserError, match=rf"/{name}: the connection failed 5 times in a row .*: run the stage again"):
        read(reader, url(server, name))


@pytest.mark.parametrize(
    ("status", "sentence"), [(503, "failed 5 times"), (403, r"cannot be read \(ClientResponseError: 403")]
)
def test_a_server_that_refuses_is_not_a_missing_picture(
    server: Server, tmp_path: Path, status: int, sentence: str
) -> None:
    server.status = status
    (tmp_path / "t.csv").write_text(f"image\n{url(server, 'a.png')}\n")
    with pytest.raises(UserError, match=sentence):
        read(image_caption_table, str(tmp_path / "t.csv"), outside=True)
    server.status = 404
    (missing,) = read(image_caption_table, str(tmp_path / "t.csv"), outside=True)
    assert isinstance(missing, Reject) and missing.reason.startswith("there is no such picture")


class Failing(io.BytesIO):
    """A file on a disk or mount that fails in its middle."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 5000:
            raise OSError(5, "Input/output error")
        return super().read(min(size or 0, 4000) if size and size > 0 else size)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.tar", "a.mp4"])
def test_a_disk_that_fails_stops_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = {"a.parquet": table(2000), "a.jsonl": lines(2000), "a.tar": tar(), "a.mp4": film(9)}[name]
    assert len(content) > 5000
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(streams, "_local", lambda path: (Failing(content), len(content)))
    reader = {"a.parquet": parquet, "a.jsonl": jsonl, "a.tar": webdataset, "a.mp4": video}[name]
    with pytest.raises(UserError, match=rf"/{name}: cannot be read: Input/output error"):
        read(reader, str(tmp_path / name))


def film(frames: int) -> bytes:
    import av
    import numpy as np

    draw = np.random.default_rng(0)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(draw.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def tar(name: str = "0001.txt", size: int = 9000) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size = size
        archive.addfile(member, io.BytesIO(bytes(size)))
    return stream.getvalue()


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("slow")])
def test_a_data_set_of_a_hub_goes_on_where_its_connection_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(streams, "PAUSE", 0.0)
    failures = [error] * 3

    class Shard:
        features = None
        num_shards = 1

        def __init__(self, first: int = 0) -> None:
            self.first = first

        def shard(self, **_: int) -> Shard:
            return self

        def skip(self, number: int) -> Shard:
            return Shard(number)

        def __iter__(self) -> Iterator[dict[str, str]]:
            for number in range(self.first, 1000):
                if number % 300 == 250 and failures:
                    raise failures.pop()
                yield {"text": str(number)}

    monkeypatch.setattr(hf_datasets, "_loaded", lambda source, options: Shard())
    found = read(hf_datasets, str(tmp_path))
    assert [item.payload["text"] for item in found if isinstance(item, Record)] == [str(n) for n in range(1000)]
    failures.extend([error] * 100)
    with pytest.raises(UserError, match="the connection failed 5 times in a row"):
        read(hf_datasets, str(tmp_path))


# ---- rows that a reject stands for ----------------------------------------------------------------------------------


def test_damage_stands_for_the_rows_that_follow_it(tmp_path: Path) -> None:
    content = bytearray(table(20_000))
    column = pq.read_metadata(io.BytesIO(bytes(content))).row_group(4).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(content)
    *_, last = read(parquet, str(tmp_path / "a.parquet"))
    assert isinstance(last, Reject) and last.rows == 12_000
    packed = bytearray(gzip.compress(lines(20_000)))
    packed[len(packed) // 4 :] = b"\xff" * (len(packed) - len(packed) // 4)
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    *good, last = read(jsonl, str(tmp_path / "a.jsonl.gz"))
    assert isinstance(last, Reject) and 0.95 * 20_000 < len(good) + last.rows < 1.05 * 20_000


# ---- bombs ----------------------------------------------------------------------------------------------------------


def block_bomb(size: int) -> bytes:
    """Zstandard: blocks of 4 bytes, each of which becomes 128 KiB."""
    frame = bytearray(b"\x28\xb5\x2f\xfd\x00\x58")  # a window of 2 MiB
    while len(frame) < size:
        frame += ((1 << 1) | ((128 * 2**10) << 3)).to_bytes(3, "little") + b"x"
    return bytes(frame + b"\x01\x00\x00")


def bombs() -> dict[str, bytes]:
    wide = lzma.compress(b"x" * 1000, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**30}])
    dictionary = io.BytesIO()
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * 80_000_000]))
    pq.write_table(pa.table({"text": text}), dictionary, compression="zstd")
    return {
        "small.jsonl.zst": block_bomb(2_000),
        "large.jsonl.zst": block_bomb(20_000),
        "window.jsonl.zst": zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
        )
        .compressobj()
        .compress(b"x" * 10)
        + b"\x28\xb5\x2f\xfd\x04\xa0"
        + bytes(40),
        "zeros.jsonl.gz": gzip.compress(bytes(300_000_000), 1),
        "lines.jsonl.xz": lzma.compress(b"\n" * 300_000_000, preset=0),
        "wide.jsonl.xz": wide,
        "values.jsonl": b'{"text": "x", "more": [' + b"[]," * 9_000_000 + b"[]]}\n",
        "quotes.csv": b'text\nx"y,"open\n' + b'",x"y,"\n' * 200_000,
        "name.tar.gz": gzip.compress(tar("x" * 300_000_000), 1),
        "dictionary.parquet": dictionary.getvalue(),
    }


READ = """
import importlib, resource, sys, time
reader = importlib.import_module("stages.readers." + sys.argv[1])
options = reader.Options()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
for path in sys.argv[2:]:
    rows = 0
    for part in reader.plan(path, options):
        for found in reader.read(part, options):
            rows += 1
            assert not hasattr(found, "payload"), path
    assert rows, path
    print(path.rpartition("/")[2], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_bomb_is_a_reject_within_a_stated_memory(tmp_path: Path) -> None:
    for name, content in bombs().items():
        (tmp_path / name).write_bytes(content)
    for reader, pattern in (
        ("jsonl", "*.jsonl*"),
        ("csv", "*.csv"),
        ("webdataset", "*.tar.gz"),
        ("parquet", "*.parquet"),
    ):
        paths = sorted(map(str, tmp_path.glob(pattern)))
        said = subprocess.run(
            [sys.executable, "-c", READ, reader, *paths], capture_output=True, text=True, timeout=120, check=False
        )
        assert said.returncode == 0, said.stderr
        assert len(said.stdout.splitlines()) == len(paths)
        assert all(int(line.split()[1]) < 600 for line in said.stdout.splitlines()), said.stdout


def test_expansion_is_bounded_however_small_the_steps(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(block_bomb(20_000))
    (found,) = read(jsonl, str(tmp_path / "a.jsonl.zst"))
    assert isinstance(found, Reject) and found.reason.startswith("zstd data grow more than 1000 times")


def test_output_that_is_cut_into_pieces_is_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 30_000
    for name, kind in streams.COMPRESSIONS.items():
        pack = {"gzip": gzip.compress, "zstd": zstandard.compress, "xz": lzma.compress, "bzip2": bz2.compress}
        packed = pack[kind.name](content)
        (tmp_path / f"a{name}").write_bytes(packed + packed)
        pieces = list(streams.Content(str(tmp_path / f"a{name}")))
        assert b"".join(pieces) == content * 2
        assert max(map(len, pieces)) <= 2**23


# ---- other people's files -------------------------------------------------------------------------------------------


def test_a_row_shows_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_text("root: what nobody should see")
    (tmp_path / "tables").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").write_text("root: nor this")
    (tmp_path / "tables/linked").symlink_to(tmp_path / "elsewhere")
    names = [
        str(secret),
        "../secret.png",
        f"file://{secret}",
        "http://127.0.0.1:9/x.png",
        "a/../../secret.png",
        "linked/1.png",
    ]
    (tmp_path / "tables/t.csv").write_text("image\n" + "\n".join(names) + "\n")
    found = read(image_caption_table, str(tmp_path / "tables/t.csv"))
    assert {item.reason for item in found if isinstance(item, Reject)} == {
        "picture is not below the folder of the table (`outside: true` in ingest takes any)"
    }
    assert len(found) == len(names)


def test_what_did_not_decode_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "secret \xff"}\nsecret \xff\n')
    (tmp_path / "a.csv").write_bytes(b"text\nsecret \xff\n")
    for reader, name in ((jsonl, "a.jsonl"), (csv, "a.csv")):
        assert {item.excerpt for item in read(reader, str(tmp_path / name)) if isinstance(item, Reject)} == {""}


def test_a_film_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "other.mp4").write_bytes(film(40))
    (tmp_path / "a.avi").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/other.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "b.avi").write_text("ffconcat version 1.0\nfile other.mp4\n")
    for name in ("a.avi", "b.avi"):
        (found,) = read(video, str(tmp_path / name))
        assert isinstance(found, Reject) and found.reason.startswith("not a video that can be decoded")


def test_a_link_to_a_folder_is_refused_and_one_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.jsonl").write_bytes(lines(1))
    (tmp_path / "data/a.jsonl").symlink_to(tmp_path / "other/a.jsonl")
    assert len(read(jsonl, str(tmp_path / "data"))) == 1
    (tmp_path / "data/linked").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"data/linked: is a link to a folder, in which DVC would see no change"):
        read(jsonl, str(tmp_path / "data"))
