"""Drop exact and near-duplicate rows: `python -m stages.dedup NAME`.

The modality sketches every partition (in parallel) and clusters the sketches; of each cluster the first row with a
label stays, or else the first, and `duplicates.parquet` says of every other row why it went. Memory holds the sketches,
never a payload beyond the batch at hand.

`group` passes through unchanged. One row of a cluster stays, so no cluster can straddle train, validation and probe,
and the groups of the rows that went need not be joined. Joining them would do harm: near-duplicates chain files
that share one function or one licence (a fifth of a corpus of Python packages became a single group when it was
tried), and a group that large can no longer be split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssl_models.files import whole_folder
from stages import engine, params
from stages.files import tables
from stages.grouping.clusters import Clusters, gather
from stages.results import provenance


@dataclass(frozen=True)
class Sift:
    """What to do with one partition: write the rows of `stays` to `target`, and tell the ids of the rows of `heads`."""

    partition: Path
    target: Path
    stays: NDArray[np.bool_]
    heads: NDArray[np.bool_]


def sift(job: Sift) -> tuple[pa.Table, pa.Table]:
    """Write one partition; `id` and `source` of the rows that go, and `id` of the heads of their clusters."""
    gone, heads, start = [], [], 0
    with pq.ParquetFile(job.partition) as file:
        empty = file.schema_arrow.empty_table()
        with tables.parquet_writer(job.target, file.schema_arrow) as writer:
            for batch in file.iter_batches(tables.ROW_GROUP):
                rows = slice(start, start + len(batch))
                table = pa.Table.from_batches([batch])
                writer.write_table(table.filter(pa.array(job.stays[rows])), row_group_size=tables.ROW_GROUP)
                gone.append(table.select(["id", "source"]).filter(pa.array(~job.stays[rows])))
                heads.append(table.select(["id"]).filter(pa.array(job.heads[rows])))
                start += len(batch)
    return pa.concat_tables([empty.select(["id", "source"]), *gone]), pa.concat_tables([empty.select(["id"]), *heads])


def labelled(partition: Path) -> NDArray[np.bool_]:
    """Which rows of a partition have a label: bool `[rows]`."""
    return cast(NDArray[np.bool_], pq.read_table(partition, columns=["label"]).column(0).is_valid().to_numpy())


def _duplicates(
    clusters: Clusters, gone: NDArray[np.bool_], heads: NDArray[np.bool_], sifted: Sequence[tuple[pa.Table, pa.Table]]
) -> pa.Table:
    rows = pa.concat_tables([went for went, _ in sifted])
    kept = pa.concat_tables([head for _, head in sifted]).column("id")
    cluster = np.searchsorted(np.flatnonzero(heads), clusters.kept[gone])
    kinds = np.where(clusters.exact[gone], "exact", "near")
    columns = {
        "id": rows.column("id"),
        "kept": kept.take(pa.array(cluster)),
        "similarity": pa.array(clusters.similarity[gone].astype(np.float32)),
        "cluster": pa.array(cluster),
        "kind": pa.array(kinds.tolist(), pa.string()),
        "source": rows.column("source"),
    }
    return pa.table(columns, schema=tables.DUPLICATES)


@provenance.measured("dedup")
def run(name: str) -> None:
    """Run the stage for `corpora.NAME`."""
    corpus = params.corpus(name)
    modality = params.find(f"stages.modalities.{corpus.modality}", "dedup", f"corpora.{name}.modality")
    options = params.options(modality.Options, corpus.dedup, f"corpora.{name}.dedup")
    partitions = tables.partitions(tables.address("ingest", name) / "rows")
    output = tables.address("dedup", name)

    sketched = engine.map(partial(modality.sketch, options=options), partitions, label=f"dedup {name}: sketch")
    sketches = gather(sketched, np.concatenate([np.zeros(0, bool), *map(labelled, partitions)]))
    ends, payload_bytes = sketches.ends, sketches.payload_bytes
    clusters = cast(Clusters, modality.cluster(sketches, options))
    del sketches

    gone = clusters.kept != np.arange(len(clusters.kept))
    heads = np.zeros(len(gone), bool)
    heads[clusters.kept[gone]] = True
    with whole_folder(output / "rows") as folder:
        jobs = [
            Sift(partition, folder / tables.part(index), stays, head)
            for index, (partition, stays, head) in enumerate(
                zip(partitions, np.split(~gone, ends)[:-1], np.split(heads, ends)[:-1], strict=True)
            )
        ]
        sifted = list(engine.map(sift, jobs, label=f"dedup {name}: write"))
    duplicates = _duplicates(clusters, gone, heads, sifted) if sifted else tables.DUPLICATES.empty_table()
    tables.write_parquet(output / "duplicates.parquet", duplicates)

    exact = int((gone & clusters.exact).sum())
    tables.write_metrics(
        output,
        rows_in=len(gone),
        rows_out=sum(pq.read_metadata(path).num_rows for path in tables.partitions(output / "rows")),
        duplicates=len(duplicates),
        bytes_in=payload_bytes,
        exact=exact,
        near=len(duplicates) - exact,
        clusters=int(heads.sum()),
        largest_cluster=int(np.bincount(clusters.kept).max()) if len(gone) else 0,
    )


if __name__ == "__main__":
    params.main(run)
