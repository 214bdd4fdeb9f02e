"""What it is worth that the tokenizer was fitted on the test rows, too: `python -m docs.held_out_encoding CORPUS`.

It fits the tokenizer of a text corpus twice, on everything, as the tokenize stage does, and without the documents of
the probe's test part, and compares what both make of these: bytes a token, and the accuracy of a linear classifier on
counts of their tokens (TF-IDF), as the probe's `raw_input` has it, but at one strength: what the slice would choose
differs by luck, and by more than what is asked here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array
from tokenizers import Tokenizer

from ssl_models.data.shards import Shards
from ssl_models.probing.intervals import paired
from ssl_models.probing.logistic import fit
from ssl_models.probing.probe import standardise
from stages import linear_probe, params
from stages.files import tables
from stages.modalities.text import tokenize

STRENGTH = 1.0
"""Of both classifiers (scikit-learn's C)."""


def main(name: str) -> None:
    """Print the comparison for one corpus whose stages have run."""
    corpus, config = params.corpus(name), params.load_params().probe
    chosen = params.options(tokenize.Options, corpus.tokenize, f"corpora.{name}.tokenize")
    shards = Shards.open(tables.address("shard", name) / "shards")
    selected = linear_probe.select(shards, config)
    if isinstance(selected, str):
        sys.exit(f"error: {name}: {selected}")
    split, task = selected
    ids = np.concatenate([file["id"] for file in split.files])[task.rows].view(np.uint64)
    wanted = {f"{number:016x}": place for place, number in enumerate(ids.tolist())}
    held_out = [begin for begin, place in wanted.items() if task.test[place]]
    partitions = tables.partitions(tables.address("dedup", name) / "rows")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rest = []
        for path in partitions:
            table = pq.read_table(path)
            beginnings = pc.utf8_slice_codeunits(table["id"], 0, 16)
            rest.append(folder / path.name)
            pq.write_table(table.filter(pc.invert(pc.is_in(beginnings, pa.array(held_out)))), rest[-1])
        rows = pa.concat_tables([pq.read_table(path, columns=["id", "text"]) for path in partitions]).to_pylist()
        texts = {wanted[row["id"][:16]]: row["text"] for row in rows if row["id"][:16] in wanted}
        correct = []
        for said, parts in (("everything", partitions), ("all but the test rows", rest)):
            tokenize.fit(parts, chosen, folder)
            tokenizer = Tokenizer.from_file(str(folder / tokenize.TOKENIZER))
            batch = tokenizer.encode_batch([texts[place] for place in range(len(texts))], add_special_tokens=False)
            found = [encoding.ids for encoding in batch]
            tested = [place for place in range(len(found)) if task.test[place]]
            rate = sum(len(texts[place].encode()) for place in tested) / sum(len(found[place]) for place in tested)
            counts = standardise(_counts(found, tokenizer), ~task.test)
            classifier = fit(counts[~task.test], task.trained, STRENGTH)
            correct.append(classifier.predict(counts[task.test]) == task.tested)
            print(f"fitted on {said}: {rate:.4f} bytes a token, accuracy {correct[-1].mean():.4f}", flush=True)
    gain = paired(*correct, task.tested_groups)
    print(f"worth of having seen them: {gain.mean:+.4f} (95 % interval {gain.low:+.4f} to {gain.high:+.4f})")


def _counts(found: list[list[int]], tokenizer: Tokenizer) -> csr_array:
    ends = np.cumsum([0, *map(len, found)])
    ids = np.concatenate([np.array(row, np.int64) for row in found])
    counts = csr_array((np.ones(len(ids), np.float32), ids, ends), shape=(len(found), tokenizer.get_vocab_size() + 1))
    counts.sum_duplicates()
    return counts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m docs.held_out_encoding CORPUS")
    main(sys.argv[1])
