"""The linear-probe stage: `python -m stages.linear_probe MODEL`. It freezes the model, reads features of the labelled
rows, and writes the whole table of `ssl_models.probing.probe`: metrics, curve, confusion, predictions; and into MLflow.

Where a corpus has no labels there is nothing to ask: the stage says so, and succeeds.
"""

from __future__ import annotations

import csv
import hashlib
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ssl_models import artifact
from ssl_models.addresses import public
from ssl_models.cpu import allocator
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards, Split
from ssl_models.files import whole_file, write_json
from ssl_models.objectives import Objective
from ssl_models.probing import report
from ssl_models.probing.features import Source, classify, extract, extract_raw
from ssl_models.probing.probe import Report, Score, Task, probe
from ssl_models.probing.settings import Probe
from ssl_models.tracking import probe as probe_tracking
from ssl_models.tracking.execution import METRICS, REPORT, result
from ssl_models.tracking.probe import Run
from ssl_models.training.job import Tracking
from stages import kept, params, provenance, tables
from stages.params import UserError
from stages.registry import versions as registry

PREDICTIONS = pa.schema(
    [("row", pa.int64()), ("actual", pa.string()), ("predicted", pa.string()), ("correct", pa.bool_())]
)
"""Test rows of the pre-trained encoder; `row` is the row's number in the probe split. `predicted` is null, and
`correct` false, where the encoder has no finite feature. The file's metadata hold `probe_rows`, a hash of the split."""

CHUNK = 4096
"""Rows whose tokens are held at once to find their lengths."""


def select(shards: Shards, config: Probe) -> tuple[Split, Task] | str:
    """The probe split and the rows to use of it, or one clause that says why there are none."""
    if not shards.manifest.splits["probe"].rows:
        return "the corpus has no labelled rows"
    split = shards.split("probe")
    labels, test, groups = (np.concatenate([file[name] for file in split.files]) for name in ("label", "test", "group"))
    names = shards.manifest.labels
    task = Task.choose(labels.astype(np.int64), test.astype(bool), groups, names, config.rows, config.seed)
    if not len(task.labels):
        return "the corpus has no labelled rows"
    if not len(task.trained):
        return "every labelled row is in the test part"
    if not len(task.tested):
        return "no labelled row is in the test part"
    return split, task


def encoders(folder: Path, encoding: Encoding, seed: int) -> tuple[Objective, Objective]:
    """The trained objective of a model folder, and the same one at a random initialisation."""
    trained = artifact.load(folder)
    torch.manual_seed(seed)
    return trained, artifact.build(artifact.read_model(folder), encoding)


def source(split: Split, task: Task, encoding: Encoding) -> Source:
    """The task's rows; of a corpus of texts, with their lengths."""
    if encoding.modality != "text":
        return Source(split.rows, task.rows)
    place = torch.arange(1, encoding.length + 1)
    chunks = [split.rows(task.rows[at : at + CHUNK])["tokens"] for at in range(0, len(task.rows), CHUNK)]
    lengths = [((tokens != encoding.pad) * place).amax(dim=1) for tokens in chunks]
    return Source(split.rows, task.rows, torch.cat(lengths).numpy())


def run_probe(name: str, trained: Objective, fresh: Objective, rows: Source, task: Task, config: Probe) -> Report:
    """Features of the trained and of the random encoder and the raw input, then the protocol."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allocator.keep_freed()
    with tempfile.TemporaryDirectory(prefix="pretext-probe-") as temporary:
        folders = [Path(temporary) / part for part in ("pretrained", "random_init", "raw_input")]
        for folder in folders:
            folder.mkdir()
        print(f"linear-probe {name}: reading features of {len(task.rows)} rows", flush=True)
        pretrained = extract(trained.to(device), rows, folders[0])
        raw = extract_raw(trained, rows, folders[2])
        random_init = extract(fresh.to(device), rows, folders[1])
        zero_shot = classify(trained, rows.part(task.test), task.names)
        print(f"linear-probe {name}: fitting classifiers on {len(task.trained)} rows", flush=True)
        return probe(pretrained, random_init, raw, task, config, device, zero_shot)


def predictions(found: Report | None, shards: Shards) -> pa.Table:
    """PREDICTIONS of a report; no rows without one."""
    content = shards.manifest.splits["probe"].model_dump_json()
    metadata = {"probe_rows": hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}
    if found is None:
        return PREDICTIONS.empty_table().replace_schema_metadata(metadata)
    task, score = found.task, found.scores["pretrained"]
    actual = [task.names[label] for label in task.tested]
    predicted = [task.names[label] for label in score.predicted] if score else [None] * len(actual)
    correct = score.predicted == task.tested if score else np.zeros(len(actual), bool)
    columns = [task.rows[task.test], actual, predicted, correct]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PREDICTIONS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=PREDICTIONS.with_metadata(metadata))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def ask(name: str) -> tuple[Shards, Report | None]:
    """The report of the model `models.NAME`, None where there is nothing to probe; and the shards it is about."""
    model, config = params.model(name), params.load_params().probe
    folder = tables.address("pretrain", name) / "model"
    try:
        shards = Shards.open(tables.address("shard", model.corpus) / "shards")
        selected = select(shards, config)
        encoding = Encoding.load(folder / artifact.ENCODING)
        trained, fresh = encoders(folder, encoding, config.seed)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run dvc repro pretrain@{name}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if isinstance(selected, str):
        print(f"linear-probe {name}: {selected}, so there is nothing to probe", flush=True)
        return shards, None
    split, task = selected
    return shards, run_probe(name, trained, fresh, source(split, task, encoding), task, config)


@provenance.measured("linear-probe")
def run(name: str) -> dict[str, str | None]:
    """Probe the model `models.NAME` and write `data/linear-probe/NAME/`, then into its MLflow run, which is
    returned."""
    kept.prune()
    start = time.monotonic()
    shards, found = ask(name)
    seconds = time.monotonic() - start
    folder = tables.address("linear-probe", name)
    write_json(folder / REPORT, report.details(found))
    tables.write_parquet(folder / "predictions.parquet", predictions(found, shards))
    _write_csv(folder / "label_efficiency.csv", report.CURVE_COLUMNS, report.curve_rows(found))
    _write_csv(folder / "confusion.csv", report.CONFUSION_COLUMNS, report.confusion_rows(found))
    write_json(folder / METRICS, report.headline(found))
    store = provenance.tracking(params.model(name).corpus, f"linear-probe@{name}", ())
    training = provenance.execution("pretrain", name)
    weights = result(tables.address("pretrain", name)) or ""
    model = probe_tracking.Trained(name, weights, training.run_id if training else None)
    mlflow_run = probe_tracking.log(model, found, seconds, store)
    if found is not None:
        print(report.table(found), flush=True)
    if mlflow_run is not None and found is not None and (score := found.scores["pretrained"]) is not None:
        _register(name, report.markdown(found), score, mlflow_run, store)
    return {} if mlflow_run is None else {**asdict(mlflow_run), "tracking_uri": public(mlflow_run.tracking_uri)}


def _register(name: str, text: str, score: Score, run: Run, store: Tracking) -> None:
    """A version in the registry, and the decision on the champion."""
    corpus = params.model(name).corpus
    every = int(params.corpus(corpus).tokenize.get("every", 1))
    facts = registry.Facts(score.feature, score.accuracy, f"**{name}**\n\n{text}", every)
    folder, probed = tables.address("pretrain", name) / "model", tables.address("linear-probe", name)
    version = registry.register(name, corpus, folder, probed / registry.PREDICTIONS, facts, run, store)
    if version is not None:
        print(f"{corpus} version {version.version}: {version.tags.get(registry.DECISION, '')}", flush=True)


if __name__ == "__main__":
    params.main(run)
