"""Megabytes a second of near-duplicate detection, one core: ours, datasketch and rensa on the same documents.

    python -m benchmarks.dedup [--peer PYTHON] [--megabytes 20] [--rounds 3]

`--peer` names the Python of an environment with datasketch and rensa; without it, only ours runs. All use word 5-grams
and 100 hashes in 20 bands of 5. "signatures" is text to signatures, "end to end" goes on to clusters; neither counts
start-up, compilation or reading. Programs run in turns, the ratio is of medians. Ours also verifies every candidate
with the exact Jaccard, which the peers leave to their caller. Results go to benchmarks/results/dedup.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "dedup.json"
NEAR = 0.2  # share of documents that repeat an earlier one with one word in fifty changed
COMMON = """
import json, sys, time
texts = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
def shingles(text):
    words = text.lower().split()
    return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
def report(start, signed):
    print(json.dumps({"signatures": signed - start, "end to end": time.perf_counter() - start}))
"""
PROGRAMS = {
    "ours": """
import numpy as np, pyarrow as pa, tempfile
from pathlib import Path
from stages.files import tables
from stages.grouping.clusters import gather
from stages.modalities.text import dedup
options = dedup.Options()
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "part-00000.parquet")
    ids = [tables.content_id({"text": text}) for text in texts]
    tables.write_parquet(path, pa.table({"id": ids, "text": texts}))
    labelled = np.zeros(len(texts), bool)
    warm = dedup.cluster(gather([dedup.sketch(path, options)], labelled), options)
    start = time.perf_counter()
    sketch = dedup.sketch(path, options)
    signed = time.perf_counter()
    dedup.cluster(gather([sketch], labelled), options)
    report(start, signed)
""",
    "datasketch": """
from datasketch import MinHash, MinHashLSH
start = time.perf_counter()
signatures = []
for text in texts:
    signature = MinHash(num_perm=100)
    signature.update_batch([shingle.encode() for shingle in shingles(text)])
    signatures.append(signature)
signed = time.perf_counter()
index, kept = MinHashLSH(num_perm=100, params=(20, 5)), {}
for row, signature in enumerate(signatures):
    found = index.query(signature)
    kept[row] = min((kept[other] for other in found), default=row)
    index.insert(row, signature)
report(start, signed)
""",
    "rensa": """
from rensa import RMinHash, RMinHashLSH
start = time.perf_counter()
signatures = []
for text in texts:
    signature = RMinHash(num_perm=100, seed=0)
    signature.update(list(shingles(text)))
    signatures.append(signature)
signed = time.perf_counter()
index, kept = RMinHashLSH(threshold=0.8, num_perm=100, num_bands=20), {}
for row, signature in enumerate(signatures):
    found = index.query(signature)
    kept[row] = min((kept[other] for other in found), default=row)
    index.insert(row, signature)
report(start, signed)
""",
}


def write_documents(path: Path, megabytes: float) -> float:
    """Documents of 50 to 1500 words with Zipf-like frequencies, one JSON string a line; their megabytes."""
    draw = random.Random(0)
    letters = "etaoinshrdlu"
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(30000)]
    weights = [1 / rank for rank in range(1, 30001)]
    documents: list[list[str]] = []
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            if documents and draw.random() < NEAR:
                words = [draw.choice(vocabulary) if draw.random() < 0.02 else word for word in draw.choice(documents)]
            else:
                words = draw.choices(vocabulary, weights, k=draw.randint(50, 1500))
            documents.append(words)
            text = " ".join(words)
            size += len(text)
            file.write(json.dumps(text) + "\n")
    return size / 1e6


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--peer", help="Python of an environment with datasketch and rensa")
    arguments.add_argument("--megabytes", type=float, default=20)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    pythons = {"ours": sys.executable} | ({"datasketch": given.peer, "rensa": given.peer} if given.peer else {})
    core = min(os.sched_getaffinity(0))
    one_core = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    rates: dict[str, dict[str, list[float]]] = {name: {"signatures": [], "end to end": []} for name in pythons}
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder, "documents.jsonl")
        megabytes = write_documents(documents, given.megabytes)
        for _ in range(given.rounds):
            for name, python in pythons.items():
                command = ["taskset", "-c", str(core), python, "-c", COMMON + PROGRAMS[name], str(documents)]
                output = subprocess.run(command, env=one_core, check=True, capture_output=True, text=True, timeout=600)
                for what, seconds in json.loads(output.stdout).items():
                    rates[name][what].append(megabytes / seconds)
    medians = {name: {what: statistics.median(r) for what, r in rate.items()} for name, rate in rates.items()}
    table = {
        name: {what: {"MB/s": round(m, 1), "ratio": round(m / medians["ours"][what], 4)} for what, m in rate.items()}
        for name, rate in medians.items()
    }
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    result = {
        "machine": f"{processor.split(': ')[1]}, {platform.machine()}, one core",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "megabytes": round(megabytes, 1),
        "rounds": given.rounds,
        "results": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
