"""Megabytes of text encoded a second: the tokenize stage's engine, `tokenizers`, and tiktoken, with the same BPE.

    python -m benchmarks.encode [--peer PYTHON] [--megabytes 10] [--rounds 3] [--vocabulary 8192]

Text is the Python source of the packages installed here. Odd files train the tokenizer and even ones are timed, so that
no cache has seen them; each round is a new process per program, in turns, on one core, and the ratio is of medians.
`--peer` names the Python of an environment with tiktoken. Ids are compared. Results: benchmarks/results/encode.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "encode.json"
COMMON = """
import hashlib, json, sys, time
from pathlib import Path
import array
folder = Path(sys.argv[1])
texts = [json.loads(line) for line in (folder / "texts").open(encoding="utf-8")]
def report(seconds, ids):
    digest = hashlib.blake2b(array.array("I", ids).tobytes()).hexdigest()
    print(json.dumps({"seconds": seconds, "tokens": len(ids), "ids": digest}))
"""
OURS = """
import pyarrow as pa
from ssl_models.data.encoding import Encoding
from stages.modalities.text import tokenize
encoder = tokenize.Encoder(Encoding.load(folder), tokenize.Options())
batches = [pa.record_batch({"text": texts[at : at + tokenize.BATCH]}) for at in range(0, len(texts), tokenize.BATCH)]
start = time.perf_counter()
found = [encoder.encode(batch)[0] for batch in batches]
seconds = time.perf_counter() - start
assert not encoder.counts["slow"]
report(seconds, [token for tokens in found for token in tokens.flatten().to_pylist()])
"""
TOKENIZERS = """
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.encode_special_tokens = True
start = time.perf_counter()
found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
report(time.perf_counter() - start, [token for encoded in found for token in encoded.ids])
"""
TIKTOKEN = r"""
import tiktoken
model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
other = [byte for byte in range(256) if byte not in printable]
byte_of = {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(other)}
special = {"<pad>", "<s>", "</s>", "<unk>", "<mask>", "<cls>", "<sep>"}
ranks = {bytes(byte_of[c] for c in piece): rank for piece, rank in model["vocab"].items() if piece not in special}
pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
encoding = tiktoken.Encoding("benchmark", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
start = time.perf_counter()
found = encoding.encode_ordinary_batch(texts, num_threads=1)
report(time.perf_counter() - start, [token for ids in found for token in ids])
"""


def write_corpus(folder: Path, megabytes: float, vocabulary: int) -> float:
    """Train a tokenizer on one half of the text and write the other half; the megabytes of the latter."""
    import pyarrow as pa

    from stages.files import tables
    from stages.modalities.text import tokenize

    halves: list[list[str]] = [[], []]
    sizes = [0, 0]
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        half = sizes.index(min(sizes))
        try:
            halves[half].append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        sizes[half] += len(halves[half][-1].encode())
        if min(sizes) > megabytes * 1e6:
            break
    part = folder / "part-00000.parquet"
    tables.write_parquet(part, pa.table({"id": [str(n) for n in range(len(halves[0]))], "text": halves[0]}))
    tokenize.fit([part], tokenize.Options(vocabulary=vocabulary), folder).save(folder)
    (folder / "texts").write_text("".join(json.dumps(text) + "\n" for text in halves[1]), encoding="utf-8")
    return sizes[1] / 1e6


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--peer", help="Python of an environment with tiktoken")
    arguments.add_argument("--megabytes", type=float, default=10)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--vocabulary", type=int, default=8192)
    given = arguments.parse_args()
    programs = {"ours": (sys.executable, OURS), "tokenizers": (sys.executable, TOKENIZERS)}
    if given.peer:
        programs["tiktoken"] = (given.peer, TIKTOKEN)
    core = min(os.sched_getaffinity(0))
    one_core = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    ids: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        megabytes = write_corpus(Path(folder), given.megabytes, given.vocabulary)
        for _ in range(given.rounds):
            for name, (python, program) in programs.items():
                command = ["taskset", "-c", str(core), python, "-c", COMMON + program, folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_core, timeout=600)
                report = json.loads(done.stdout)
                seconds[name].append(report["seconds"])
                ids[name] = report["ids"]
    rates = {name: megabytes / statistics.median(taken) for name, taken in seconds.items()}
    results = {
        name: {
            "MB/s": round(rate, 1),
            "ours is faster by": round(rates["ours"] / rate, 2),
            "same ids": ids[name] == ids["tokenizers"],
        }
        for name, rate in rates.items()
    }
    for name, result in results.items():
        print(name, result)
    content = {
        "machine": f"{platform.processor() or platform.machine()}, one core",
        "date": datetime.date.today().isoformat(),
        "megabytes": round(megabytes, 1),
        "vocabulary": given.vocabulary,
        "rounds": given.rounds,
        "results": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
