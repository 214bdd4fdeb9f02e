"""The linear-probe stage: `python -m stages.linear_probe MODEL`. It freezes the model, reads features of the labelled
rows, and writes the whole table of `ssl_models.probing.probe`: metrics, curve, confusion, predictions; and into MLflow.

Where a corpus has no labels there is nothing to ask: the stage says so, and succeeds.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from ssl_models.probing.calibration import calibrate
from ssl_models.probing.features import Source, classify, extract, extract_raw
from ssl_models.probing.logistic import Matrix
from ssl_models.probing.probe import Losses, Report, Task, probe
from ssl_models.probing.settings import Probe
from ssl_models.tracking import probe as probe_tracking
from ssl_models.tracking.execution import METRICS, REPORT
from stages import params
from stages.files import tables
from stages.params import UserError
from stages.registry import probed
from stages.registry import versions as registry
from stages.results import kept, provenance

PREDICTIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("group", pa.int64()),
        ("actual", pa.string()),
        ("predicted", pa.string()),
        ("correct", pa.bool_()),
    ]
)
"""Test rows of the pre-trained encoder: `row` is the row's number in the probe split and `group` its group's, of these
shards; `id` begins the document's, of any. `predicted` is null, and `correct` false, where the encoder has no finite
feature. The file's metadata hold `probe_rows`, a hash of the split, groups and ids included."""
LOSSES = "loss.csv"
"""Training's curve: `step`, `loss`, `validation_loss`."""

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


def untrained(folder: Path, encoding: Encoding, seed: int) -> Objective:
    """The objective of a model folder at a random initialisation."""
    torch.manual_seed(seed)
    return artifact.build(artifact.read_model(folder), encoding)


def validation_losses(path: Path) -> list[tuple[int, float]]:
    """(step, validation loss) of a training's curve, where it was evaluated; none without the file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    return [(int(row["step"]), float(row["validation_loss"])) for row in rows if row["validation_loss"]]


def source(split: Split, task: Task, encoding: Encoding) -> Source:
    """The task's rows; of a corpus of texts, with their lengths."""
    if encoding.modality != "text":
        return Source(split.rows, task.rows)
    place = torch.arange(1, encoding.length + 1)
    chunks = [split.rows(task.rows[at : at + CHUNK])["tokens"] for at in range(0, len(task.rows), CHUNK)]
    lengths = [((tokens != encoding.pad) * place).amax(dim=1) for tokens in chunks]
    return Source(split.rows, task.rows, torch.cat(lengths).numpy())


def run_probe(
    name: str,
    trained: Objective,
    fresh: Callable[[int], Objective],
    rows: Source,
    task: Task,
    config: Probe,
    losses: Losses = (),
) -> Report:
    """Features of the trained encoder, of random ones (`fresh`, of a seed) and of the raw input, then the protocol."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allocator.keep_freed()
    with tempfile.TemporaryDirectory(prefix="pretext-probe-") as temporary:
        folders = [Path(temporary) / part for part in ("pretrained", "raw_input")]
        for folder in folders:
            folder.mkdir()
        print(f"linear-probe {name}: reading features of {len(task.rows)} rows", flush=True)
        pretrained = extract(trained.to(device), rows, folders[0])
        raw = extract_raw(trained, rows, folders[1])
        zero_shot = classify(trained, rows.part(task.test), task.names)
        random_init = _random_features(fresh, rows, task, config, device)
        print(f"linear-probe {name}: fitting classifiers on {len(task.trained)} rows", flush=True)
        return probe(pretrained, random_init, raw, task, config, device, zero_shot, losses)


def _random_features(
    fresh: Callable[[int], Objective], rows: Source, task: Task, config: Probe, device: torch.device
) -> Iterator[dict[str, Matrix]]:
    """Features of each of the random encoders, with batch norms as they begin and calibrated; on disk there are one's
    at a time."""
    for seed in range(config.seeds):
        objective = fresh(config.seed + seed).to(device)
        with tempfile.TemporaryDirectory(prefix="pretext-probe-") as begun, tempfile.TemporaryDirectory() as calibrated:
            found = extract(objective, rows, Path(begun))
            if calibrate(objective, rows.part(~task.test)):
                again = extract(objective, rows, Path(calibrated))
                found |= {f"{name}, calibrated": values for name, values in again.items()}
            yield found


def predictions(found: Report | None, shards: Shards) -> pa.Table:
    """PREDICTIONS of a report on these shards; no rows without one."""
    content = shards.manifest.splits["probe"].model_dump_json()
    metadata = {"probe_rows": hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}
    if found is None:
        return PREDICTIONS.empty_table().replace_schema_metadata(metadata)
    task, score = found.task, found.scores["pretrained"]
    actual = [task.names[label] for label in task.tested]
    predicted = [task.names[label] for label in score.predicted] if score else [None] * len(actual)
    correct = score.predicted == task.tested if score else np.zeros(len(actual), bool)
    rows = task.rows[task.test]
    ids = np.concatenate([file["id"] for file in shards.split("probe").files])[rows].view(np.uint64)
    columns = [rows, [f"{number:016x}" for number in ids], task.tested_groups, actual, predicted, correct]
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
        trained = artifact.load(folder)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run dvc repro pretrain@{name}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if isinstance(selected, str):
        print(f"linear-probe {name}: {selected}, so there is nothing to probe", flush=True)
        return shards, None
    split, task = selected
    losses = validation_losses(tables.address("pretrain", name) / LOSSES)
    fresh = functools.partial(untrained, folder, encoding)
    return shards, run_probe(name, trained, fresh, source(split, task, encoding), task, config, losses)


@provenance.measured("linear-probe")
def run(name: str) -> dict[str, str | None]:
    """Probe the model `models.NAME` and write `data/linear-probe/NAME/`, then into its MLflow run, which is
    returned."""
    kept.prune()
    start = time.monotonic()
    shards, found = ask(name)
    seconds = time.monotonic() - start
    model, folder = probed.folders(name)
    content = {**report.details(found), "weights": registry.weights(model)}
    write_json(folder / REPORT, content)
    tables.write_parquet(folder / registry.PREDICTIONS, predictions(found, shards))
    _write_csv(folder / "label_efficiency.csv", report.CURVE_COLUMNS, report.curve_rows(found))
    _write_csv(folder / "confusion.csv", report.CONFUSION_COLUMNS, report.confusion_rows(found))
    write_json(folder / METRICS, report.headline(found))
    store = provenance.tracking(params.model(name).corpus, f"linear-probe@{name}", ())
    mlflow_run = probe_tracking.log(probed.trained(name), found, seconds, store)
    if found is not None:
        print(report.table(content), flush=True)
    if mlflow_run is not None:
        probed.register(name, mlflow_run, store)
    return {} if mlflow_run is None else {**asdict(mlflow_run), "tracking_uri": public(mlflow_run.tracking_uri)}


if __name__ == "__main__":
    params.main(run)
