"""Tokenize a corpus: `python -m stages.tokenize CORPUS`. Partitions of payload become partitions of what a model eats.

The modality's module first fits an encoding to the whole corpus (a tokenizer, the mean and deviation of pixels), then
encodes each partition on its own. Row order, `id`, `label` and `group` pass through here and are never the modality's
to change. Each module `stages/modalities/<modality>/tokenize.py` has

    class Options(Strict)                                   # `corpora.NAME.tokenize`
    BATCH: int                                              # rows encoded at once: a row group of the output
    def fit(partitions, options, folder) -> Encoding        # may write further files into `folder`
    def fields(encoding) -> list[pa.Field]                  # columns of an encoded row
    class Encoder:                                          # one per partition
        COLUMNS: list[str]                                  # payload columns it reads
        counts: Counter[str]                                # numbers to be summed over the partitions
        def __init__(self, encoding, options)
        def encode(self, rows: pa.RecordBatch) -> list[pa.Array]  # one array per field
    def metrics(counts, encoding) -> dict[str, Any]         # what the modality adds to metrics.json
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ssl_models.data.encoding import Encoding
from ssl_models.files import whole_folder
from stages import engine, params
from stages.files import tables
from stages.params import UserError
from stages.results import provenance

CARRIED = ("id", "label", "group")


@provenance.measured("tokenize")
def run(name: str) -> None:
    """Fit the encoding of corpus `name`, encode every partition, write rows, encoding and metrics."""
    corpus = params.corpus(name)
    modality = _modality(corpus.modality)
    options = params.options(modality.Options, corpus.tokenize, f"corpora.{name}.tokenize")
    partitions = tables.partitions(tables.address("dedup", name) / "rows")
    rows_in = sum(pq.read_metadata(path).num_rows for path in partitions)
    if rows_in == 0:
        raise UserError(
            f"corpora.{name}: there are no rows to tokenize; see {tables.address('ingest', name)}/rejects.parquet"
        )
    output = tables.address("tokenize", name)
    with whole_folder(output / "encoding") as folder:
        encoding = modality.fit(partitions, options, folder).model_copy(update={"folder": folder})
        encoding.save(folder)
        with whole_folder(output / "rows") as rows:
            encode = functools.partial(
                _encode, modality=corpus.modality, options=options, encoding=encoding, folder=rows
            )
            counts: Counter[str] = Counter()
            for part in engine.map(encode, list(enumerate(partitions)), label=f"tokenize {name}"):
                counts.update(part)
    tables.write_metrics(
        output,
        rows_in=rows_in,
        rows_out=counts["rows"],
        bytes_in=counts["bytes"],
        **modality.metrics(counts, encoding),
    )


def _modality(name: str) -> Any:
    return params.find(f"stages.modalities.{name}", "tokenize", "modality")


def _encode(
    numbered: tuple[int, Path], *, modality: str, options: BaseModel, encoding: Encoding, folder: Path
) -> Counter[str]:
    """Write one partition's encoded rows; what was counted on the way."""
    number, path = numbered
    module = _modality(modality)
    encoder = module.Encoder(encoding, options)
    schema = pa.schema([*(pa.field(name, pa.string()) for name in CARRIED), *module.fields(encoding)])
    source = pq.ParquetFile(path)
    with tables.parquet_writer(folder / tables.part(number), schema) as writer:
        for batch in source.iter_batches(module.BATCH, columns=[*CARRIED, *encoder.COLUMNS]):
            arrays = [*(batch.column(name) for name in CARRIED), *encoder.encode(batch)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            encoder.counts["rows"] += batch.num_rows
    counts: Counter[str] = encoder.counts
    return counts


if __name__ == "__main__":
    params.main(run)
