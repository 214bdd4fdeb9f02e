"""Mutated inputs for every reader of foreign data: `python -m tests.stages.readers.fuzz --inputs 10000 READER ...`.

A reader may answer with records and rejects, or with one sentence (UserError); anything else that it raises, more
memory than `MEMORY`, or more than `SECONDS` for one input is a fault. Each input is a pure function of (seed, number),
so that a fault is seen again by `--first NUMBER --inputs 1`. A pass takes the whole way of the ingest stage, which
counts that no row is lost: records and rejects are written as Parquet and read back.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stages import ingest, params
from stages.modalities.image import pictures
from stages.params import UserError
from stages.readers import Options

MEMORY = 2**31
"""Bytes of address space that an input may add to what the process has before it; far above what any should."""
SECONDS = 20
"""For one input, at most."""
MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"\xff\xfe", b"\xfe\xff")
"""How files begin that are compressed or UTF-16, and so one reject."""
Files = dict[str, bytes]
Make = Callable[[random.Random], Files]
TOKENS = (
    *(
        b'"',
        b"'",
        b",",
        b"\n",
        b"\r\n",
        b"\0",
        b"{",
        b"}",
        b"[",
        b"\\",
        b"\\ud800",
        b"null",
        b"1e999",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(
        b"../",
        b"/etc/passwd",
        b"file:///etc/passwd",
        b"9" * 5000,
        b"[" * 2000,
        b"\x00" * 512,
        b"\x1f\x8b\x08",
        b"\x28\xb5\x2f\xfd",
    ),
    *(b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"0000000", b"77777777777"),
)
"""What parsers look at."""


def mutated(content: bytes, draw: random.Random) -> bytes:
    """`content` with a few bits turned, runs cut, doubled, overwritten, or tokens written into it."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(found) + 1)
        length = draw.choice((1, 2, 8, 64, 512))
        match draw.randrange(7):
            case 0 if found:
                found[at % len(found)] ^= 1 << draw.randrange(8)
            case 1:
                found[at : at + length] = draw.randbytes(length)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length] * draw.choice((1, 2, 50))
            case 4:
                del found[at:]
            case 5:
                token = draw.choice(TOKENS)
                found[at : at + draw.choice((0, len(token)))] = token
            case _:
                other = draw.randrange(len(found) + 1)
                found[at : at + length] = found[other : other + length]
    return bytes(found)


# ---- what is mutated ------------------------------------------------------------------------------------------------


def words(draw: random.Random) -> str:
    """A line of text."""
    return " ".join(
        draw.choice(("stir", "the", "soup", "é", "日本", "x,y", 'a "b"', "")) for _ in range(draw.randint(1, 9))
    )


def packed(name: str, content: bytes, draw: random.Random) -> Files:
    """A file, plain or in one of the compressions."""
    kinds: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    suffix = draw.choice(("", "", "", *kinds))
    return {name + suffix: kinds[suffix](content)}


def picture(draw: random.Random) -> tuple[str, bytes]:
    """The suffix and the bytes of a small picture in some format, grey or in colour."""
    shape = (draw.randint(1, 12), draw.randint(1, 12))
    random_pixels = np.frombuffer(draw.randbytes(shape[0] * shape[1] * 4), np.uint8).reshape(*shape, 4)
    made = pictures.Image.fromarray(random_pixels, "RGBA")
    name, suffix, mode = draw.choice(
        [
            ("PNG", "png", "RGBA"),
            ("PNG", "png", "I;16"),
            ("PNG", "png", "P"),
            ("JPEG", "jpg", "RGB"),
            ("JPEG", "jpg", "CMYK"),
            ("GIF", "gif", "P"),
            ("BMP", "bmp", "RGB"),
            ("TIFF", "tif", "RGB"),
            ("TIFF", "tif", "I;16"),
            ("WEBP", "webp", "RGBA"),
            ("PPM", "ppm", "RGB"),
            ("JPEG2000", "jp2", "RGB"),
        ]
    )
    made = made.convert("I").convert("I;16") if mode == "I;16" else made.convert("RGB").convert(mode)
    stream = io.BytesIO()
    made.save(stream, name)
    return suffix, stream.getvalue()


def of_jsonl(draw: random.Random) -> Files:
    rows = [{"text": words(draw), "label": draw.choice(("a", 1, None, 2.5)), "more": [1, {"x": []}]} for _ in range(20)]
    return packed("a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows), draw)


def of_csv(draw: random.Random) -> Files:
    rows = ["text,label"]
    for _ in range(20):
        quoted = words(draw).replace('"', '""') + draw.choice(("", "\n", "\n\n"))
        rows.append(f'"{quoted}",{draw.choice("abc")}')
    return packed(draw.choice(("a.csv", "a.tsv")), "\r\n".join(rows).encode(), draw)


def of_text(draw: random.Random) -> Files:
    content = "\n".join(words(draw) + draw.choice(("", "\n")) for _ in range(20)).encode()
    return packed("deep/a.txt", content, draw) | packed("b.txt", content, draw)


def of_parquet(draw: random.Random) -> Files:
    rows = draw.choice((1, 40, 200))
    columns: dict[str, Any] = {
        "text": [words(draw) for _ in range(rows)],
        "label": [draw.choice("abc") for _ in range(rows)],
    }
    columns["image"] = [{"bytes": picture(draw)[1], "path": None} for _ in range(rows)] if rows == 1 else ["x"] * rows
    stream = io.BytesIO()
    codec = draw.choice(("snappy", "zstd", "none", "gzip", "lz4", "brotli"))
    version = draw.choice(("1.0", "2.0"))
    pq.write_table(
        pa.table(columns), stream, row_group_size=draw.choice((16, 1000)), compression=codec, data_page_version=version
    )
    return {"a.parquet": stream.getvalue()}


def of_image_folder(draw: random.Random) -> Files:
    files = {}
    for number in range(3):
        suffix, content = picture(draw)
        files[f"{draw.choice('ab')}/{number}.{suffix}"] = content
    if draw.random() < 0.3:
        files["metadata.csv"] = b"file_name,label,text\n" + b"".join(f"{name},x,a caption\n".encode() for name in files)
    return files


def of_table(draw: random.Random) -> Files:
    suffix, content = picture(draw)
    name = f"pictures/1.{suffix}"
    rows = [(name, words(draw).replace('"', "'"), "a") for _ in range(8)]
    if draw.random() < 0.5:
        table = "".join(json.dumps({"image": image, "text": text, "kind": kind}) + "\n" for image, text, kind in rows)
        return {"t.jsonl": table.encode(), name: content}
    table = "image,text,kind\n" + "".join(f'{image},"{text}",{kind}\n' for image, text, kind in rows)
    return {"t.csv": table.encode(), name: content}


def of_frames(draw: random.Random) -> Files:
    suffix, content = picture(draw)
    return {f"{draw.choice('ab')}/film/{number:03d}.{suffix}": content for number in range(draw.randint(2, 9))}


def of_video(draw: random.Random) -> Files:
    import av

    name, codec, form = draw.choice(
        [
            ("a.mp4", "mpeg4", "yuv420p"),
            ("a.mp4", "libx264", "yuv420p"),
            ("a.avi", "mjpeg", "yuvj420p"),
            ("a.webm", "libvpx", "yuv420p"),
            ("a.mkv", "ffv1", "yuv420p"),
            ("a.gif", "gif", "rgb8"),
            ("a.mpg", "mpeg2video", "yuv420p"),
        ]
    )
    stream = io.BytesIO()
    stream.name = name
    with av.open(stream, "w", format={"a.mkv": "matroska", "a.mpg": "mpeg"}.get(name, name[2:])) as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 32, 16, form
        for _ in range(draw.choice((3, 9))):
            pixels = np.frombuffer(draw.randbytes(32 * 16 * 3), np.uint8).reshape(16, 32, 3)
            for packet in video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
    return {name: stream.getvalue()}


def of_tar(draw: random.Random) -> Files:
    stream = io.BytesIO()
    form = draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for number in range(4):
            suffix, content = picture(draw)
            longer = "x" * draw.choice((0, 0, 120)) if form != tarfile.USTAR_FORMAT else ""
            parts = {suffix: content, "txt": words(draw).encode(), "cls": b"3", "json": b'{"a": 1}'}
            for extension, part in parts.items():
                member = tarfile.TarInfo(f"{number:04d}{longer}.{extension}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    return packed("a.tar", stream.getvalue(), draw)


def of_builders(draw: random.Random) -> Files:
    return draw.choice((of_csv, of_jsonl, of_parquet, of_image_folder))(draw)


READERS: dict[str, tuple[str, Make, list[dict[str, Any]]]] = {
    "jsonl": ("text", of_jsonl, [{"label": "label"}, {"max_document_bytes": 50}]),
    "csv": ("text", of_csv, [{"label": "label"}, {"max_document_bytes": 50}, {"encoding": "utf-8", "delimiter": ";"}]),
    "text": ("text", of_text, [{}, {"unit": "line"}, {"unit": "paragraph", "max_document_bytes": 50}]),
    "parquet": ("text", of_parquet, [{"label": "label"}]),
    "image_folder": ("image", of_image_folder, [{}, {"max_pixels": 100}]),
    "image_caption_table": (
        "image_text",
        of_table,
        [{"text": "text", "label": "kind"}, {"text": "text", "outside": True}],
    ),
    "frame_folders": ("video", of_frames, [{"frames": 2}, {"frames": 3, "every": 2}]),
    "video": ("video", of_video, [{"frames": 2}, {"frames": 2, "rate": 5.0}]),
    "webdataset": ("image_text", of_tar, [{}, {"text": "json.a", "max_document_bytes": 500}]),
    "hf_datasets": ("text", of_builders, [{"label": "label"}]),
}
"""Readers of foreign data: their modality, what is mutated, and options to read it with."""


def inputs(reader: str, seed: int, number: int) -> tuple[Files, dict[str, Any]]:
    """The files and options of one input: one or two files are mutated, or none."""
    draw = random.Random(f"{reader}/{seed}/{number}")
    _, make, options = READERS[reader]
    files = make(draw)
    for name in draw.sample(sorted(files), min(len(files), draw.choice((0, 1, 1, 1, 2)))):
        files[name] = mutated(files[name], draw)
    return files, draw.choice(options)


# ---- the run --------------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """An input took too long. No reader may take it for damage."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Hang where the block takes longer."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ingested(name: str, folder: Path, files: Files, given: dict[str, Any]) -> str:
    """Write the files and take them through reader and modality; what came of it: rows, rejects or a sentence."""
    source = folder / "source"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    modality = READERS[name][0]
    module = params.find("stages.readers", name, "reader")
    check = params.find("stages.modalities", modality, "modality").__name__ + ".ingest"
    options: Options = module.Options(**given)
    out = folder / "out"
    out.mkdir()
    try:
        plan = module.plan(str(source), options)
        outcomes = [
            ingest.ingest_partition(pair, reader=module.__name__, modality=check, options=options, folder=out)
            for pair in enumerate(plan)
        ]
    except UserError as error:
        return "one sentence" if "\n" not in str(error) else "a sentence of several lines"
    rows = sum(pq.read_metadata(path).num_rows for outcome in outcomes for path in outcome.pieces)
    rejects = [row for outcome in outcomes for path in outcome.reject_pieces for row in pq.read_table(path).to_pylist()]
    assert rows == sum(outcome.rows for outcome in outcomes), "records were lost"
    assert sum(row["rows"] for row in rejects) == sum(outcome.rejects for outcome in outcomes), "rejects were lost"
    assert all(row["rows"] >= 1 and row["source"] and row["reason"] for row in rejects), "a reject says nothing"
    assert not any("root:" in row["excerpt"] for row in rejects), "a reject shows another file"
    if name == "jsonl" and "a.jsonl" in files and not files["a.jsonl"].startswith(MAGIC):
        lines = [line for line in files["a.jsonl"].split(b"\n") if line and not line.isspace()]
        assert rows + len(rejects) == max(1, len(lines)) or not lines, "a line was lost"
    return "rows" if not rejects else "rows and rejects" if rows else "rejects"


def run(name: str, count: int, seed: int = 0, first: int = 0, seconds: float = SECONDS) -> tuple[Counter[str], float]:
    """What came of `count` inputs, and the longest seconds of one; AssertionError, with its number, at a fault."""
    found: Counter[str] = Counter()
    longest = 0.0
    for number in range(first, first + count):
        files, options = inputs(name, seed, number)
        with tempfile.TemporaryDirectory(prefix="pretext-fuzz-") as folder:
            start = time.monotonic()
            try:
                with in_time(seconds), redirect_stderr(io.StringIO()):
                    found[ingested(name, Path(folder), files, options)] += 1
            except (Exception, Hang) as error:
                raise AssertionError(f"{name}, seed {seed}, input {number}: {type(error).__name__}: {error}") from error
            longest = max(longest, time.monotonic() - start)
    return found, longest


def main() -> None:
    """Run the readers named on the command line, or all."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported: a mutated folder must not be looked for there
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=1000, help="mutated inputs per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    chosen = parser.parse_args()
    for name in chosen.readers or READERS:
        run(name, 3, chosen.seed, seconds=600)  # libraries are loaded before memory is counted
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
        start = time.monotonic()
        found, longest = run(name, chosen.inputs, chosen.seed, chosen.first)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        shown = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
        seconds = time.monotonic() - start
        print(
            f"{name}: {sum(found.values())} inputs in {seconds:.0f} s, the longest {longest:.1f} s: {shown}; ", end=""
        )
        print(f"peak of the process {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
