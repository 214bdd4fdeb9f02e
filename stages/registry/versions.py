"""The model registry: every probed model is a version of the registered model of its corpus, and the alias `champion`
moves only to a version that beats the champion on the same probe rows by a paired bootstrap.

A version is an MLflow model without a pickle: `pyfunc_model.py` as code, the model folder (safetensors), this project's
sources, and the probe's predictions, by which the next version will be compared with it. What was decided, and on which
numbers, stands on the version.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import ssl_models
import stages
from ssl_models.addresses import public
from ssl_models.probing.intervals import Gain, paired_bootstrap
from ssl_models.tracking.probe import Run
from ssl_models.tracking.store import SQLITE, connect
from ssl_models.training.job import Tracking
from stages.params import UserError

CHAMPION = "champion"
HISTORY = "champion.history"
"""Tag of the registered model: the versions that were champion, as JSON, the present one last."""
FINGERPRINT, MODEL, ACCURACY, FEATURE = "fingerprint", "model", "probe.accuracy", "probe.feature"
DECISION = "champion.decision"
"""Tags of a version."""
PREDICTIONS = "predictions.parquet"
REQUIREMENTS = (
    *("mlflow", "torch", "numpy", "scipy", "pandas", "pyarrow", "pydantic", "safetensors", "tokenizers", "pillow"),
    *("ruamel.yaml", "fsspec", "tqdm", "threadpoolctl", "psutil"),
)
"""What a served model imports."""
GENERATED = 64
"""Tokens written where a request does not say."""


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and why in one sentence; `gain` over the version `against`, where they compare."""

    promoted: bool
    reason: str
    against: str | None = None
    gain: Gain | None = None

    def tags(self) -> dict[str, str]:
        """As tags of the version."""
        found = {DECISION: self.reason, "champion.promoted": str(self.promoted).lower()}
        if self.against:
            found["champion.against"] = self.against
        if self.gain:
            numbers = {"mean": self.gain.mean, "low": self.gain.low, "high": self.gain.high, "p": self.gain.p}
            found |= {f"champion.gain.{name}": f"{value:.6f}" for name, value in numbers.items()}
        return found


# ---- the decision ------------------------------------------------------------------------------------------------


def decide(new: Path, champion: Path | None, against: str | None) -> Decision:
    """Compare the probe predictions of a new version with those of the champion, both as Parquet files."""
    table = pq.read_table(new)
    if against is None:
        return Decision(True, "promoted: the first version")
    if champion is None:
        return Decision(
            False, f"kept: the predictions of version {against} are gone, so nothing can be compared", against
        )
    other = pq.read_table(champion)
    if reason := _incomparable(table, other):
        return Decision(False, f"kept: not comparable with version {against}: {reason}", against)
    gain = paired_bootstrap(table["correct"].to_numpy(), other["correct"].to_numpy())
    numbers = f"{gain.mean:+.4f} (95 % interval {gain.low:+.4f} to {gain.high:+.4f}) on {table.num_rows} probe rows"
    verdict = "promoted: beats" if gain.significant else "kept: does not beat"
    return Decision(gain.significant, f"{verdict} version {against} by {numbers}", against, gain)


def _incomparable(new: Any, champion: Any) -> str | None:
    """Why two tables of predictions are not of the same rows; None where they are."""
    hashes = [(table.schema.metadata or {}).get(b"probe_rows") for table in (new, champion)]
    if hashes[0] != hashes[1]:
        return "the probe rows of the corpus have changed since"
    if not new["row"].equals(champion["row"]) or not new["actual"].equals(champion["actual"]):
        return "another choice of the probe rows was tested (probe.rows or probe.seed)"
    return None


# ---- the model that is stored -----------------------------------------------------------------------------------


def fingerprint(model: Path, predictions: Path) -> str:
    """BLAKE2b-128 of the weights and of the predictions: the same training and probe make no second version."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(hashlib.blake2b((model / "model.safetensors").read_bytes()).digest())
    digest.update(predictions.read_bytes())
    return digest.hexdigest()


def save(model: Path, predictions: Path, feature: str, every: int, folder: Path) -> None:
    """Write the MLflow model of a model folder into `folder`, which must not exist."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature

    from stages.registry.serving import MODEL_FOLDER, Served

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    served = Served(model, feature, every)
    inputs, parameters, example = interface(served)
    width = served.features([example]).shape[1]
    with tempfile.TemporaryDirectory(prefix="pretext-registry-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own use of pandas
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={MODEL_FOLDER: str(model)},
            code_paths=[str(path) for path in _sources(Path(temporary))],
            signature=ModelSignature(inputs=inputs, outputs=_outputs(width), params=parameters),
            input_example=_frame(example),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            model_config={"feature": feature, "every": every},
        )
    shutil.copyfile(predictions, folder / PREDICTIONS)


def _sources(folder: Path) -> list[Path]:
    """This project's code without compiled files, to travel with the model."""
    packages = [Path(package.__path__[0]) for package in (ssl_models, stages)]
    clean = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    return [shutil.copytree(package, folder / package.name, ignore=clean) for package in packages]


def interface(served: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The signature's inputs and parameters, and an example row."""
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from stages.registry.serving import PATH

    text = served.column == "text"
    kind = DataType.string if text else DataType.binary
    inputs = Schema([ColSpec(kind, served.column, required=False), ColSpec(DataType.string, PATH, required=False)])
    parameters = [ParamSpec("feature", DataType.string, served.feature)]
    if served.generates:
        parameters += [
            ParamSpec("generate", DataType.boolean, False),
            ParamSpec("tokens", DataType.long, GENERATED),
            ParamSpec("temperature", DataType.double, 0.8),
            ParamSpec("seed", DataType.long, 0),
        ]
    return inputs, ParamSchema(parameters), {served.column: "An example of a text." if text else _grey(served.encoding)}


def _grey(encoding: Any) -> bytes:
    """The smallest picture, or the smallest video, that the model takes."""
    import numpy as np

    from stages.modalities.image import pictures

    frame = pictures.encoded(np.full((encoding.height, encoding.width), 128, np.uint8))
    return pictures.bundle([frame] * encoding.frames) if encoding.modality == "video" else frame


def _frame(row: Mapping[str, Any]) -> Any:
    import pandas

    return pandas.DataFrame([row])


def _outputs(width: int) -> Any:
    import numpy as np
    from mlflow.types import Schema, TensorSpec

    return Schema([TensorSpec(np.dtype(np.float32), (-1, width))])


# ---- the registry ------------------------------------------------------------------------------------------------


class Registry:
    """The registered models of one store."""

    def __init__(self, store: Tracking) -> None:
        self._store = store
        self.client, self._experiment = connect(store)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two probes that end at the same moment decide one after the other, where the store is a file."""
        uri = str(self._store.uri)
        if not uri.startswith(SQLITE):
            yield
            return
        with Path(uri.removeprefix(SQLITE)).with_name("registry.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def champion(self, corpus: str) -> Any:
        """The version with the alias, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(corpus, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def versions(self, corpus: str) -> list[Any]:
        """All versions of a corpus's registered model, the oldest first."""
        found = self.client.search_model_versions(f"name = '{corpus}'")
        return sorted(found, key=lambda version: int(version.version))

    def history(self, corpus: str) -> list[str]:
        """The versions that were champion, the present one last."""
        return list(json.loads(self.client.get_registered_model(corpus).tags.get(HISTORY, "[]")))

    def register(self, name: str, corpus: str, model: Path, predictions: Path, facts: Facts, run: Run) -> Any:
        """A new version for a model's folder and its probe, with the decision on the alias; the version there is, where
        the same weights and predictions were registered before."""
        mark = fingerprint(model, predictions)
        with self._alone():
            self._made(corpus)
            same = [version for version in self.versions(corpus) if version.tags.get(FINGERPRINT) == mark]
            if same:
                return same[-1]
            tags = {FINGERPRINT: mark, MODEL: name, ACCURACY: f"{facts.accuracy:.4f}", FEATURE: facts.feature}
            version = self._stored(name, corpus, model, predictions, facts, run, tags)
            champion = self.champion(corpus)
            against = str(champion.version) if champion else None
            with tempfile.TemporaryDirectory(prefix="pretext-registry-") as temporary:
                theirs = self._predictions(champion, Path(temporary)) if champion else None
                decision = decide(predictions, theirs, against)
            for key, value in decision.tags().items():
                self.client.set_model_version_tag(corpus, version.version, key, value)
            text = f"{facts.description}\n\n**Champion:** {decision.reason}.\n"
            self.client.update_model_version(corpus, version.version, description=text)
            if decision.promoted:
                self.promote(corpus, str(version.version))
            return self.client.get_model_version(corpus, version.version)

    def _made(self, corpus: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(corpus, description=f"Encoders pre-trained on the corpus {corpus}.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _stored(
        self, name: str, corpus: str, model: Path, predictions: Path, facts: Facts, run: Run, tags: dict[str, str]
    ) -> Any:
        """The model as an output of its run, and the version that points to it."""
        from mlflow.entities import LoggedModelOutput

        logged = self.client.create_logged_model(run.experiment_id, name=name, source_run_id=run.run_id, tags=tags)
        try:
            with tempfile.TemporaryDirectory(prefix="pretext-registry-") as temporary:
                folder = Path(temporary) / "model"
                save(model, predictions, facts.feature, facts.every, folder)
                self.client.log_model_artifacts(logged.model_id, str(folder))
        except BaseException:
            self.client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return self.client.create_model_version(
            corpus, source=logged.artifact_location, run_id=run.run_id, model_id=logged.model_id, tags=tags
        )

    def _predictions(self, version: Any, folder: Path) -> Path | None:
        """The predictions that were stored with a version; None where they cannot be had."""
        from mlflow.artifacts import download_artifacts

        try:
            uri = self.client.get_model_version_download_uri(version.name, version.version)
            place = f"{uri.rstrip('/')}/{PREDICTIONS}"
            return Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=self._store.uri))
        except Exception as error:
            said = f"warning: the predictions of version {version.version} cannot be read: {error}"
            print(public(said), file=sys.stderr)
            return None

    def promote(self, corpus: str, version: str) -> None:
        """Move the alias to `version` and remember it in the history."""
        history = self.history(corpus)
        self.client.set_registered_model_alias(corpus, CHAMPION, version)
        if history[-1:] != [version]:
            self.client.set_registered_model_tag(corpus, HISTORY, json.dumps([*history, version]))

    def take_back(self, corpus: str) -> str:
        """Move the alias to the champion before the present one; returns its version. UserError where there is none."""
        history = self.history(corpus)
        known = {str(version.version) for version in self.versions(corpus)}
        before = [version for version in history[:-1] if version in known]
        if not before:
            raise UserError(f"{corpus}: no version was champion before the present one; name one to promote")
        self.client.set_registered_model_alias(corpus, CHAMPION, before[-1])
        self.client.set_registered_model_tag(corpus, HISTORY, json.dumps(before))
        return before[-1]


@dataclass(frozen=True)
class Facts:
    """What a version says of its probe: the feature chosen, its accuracy, and the report for a reviewer."""

    feature: str
    accuracy: float
    description: str
    every: int = 1


def register(name: str, corpus: str, model: Path, predictions: Path, facts: Facts, run: Run, store: Tracking) -> Any:
    """`Registry.register`, where a registry that cannot be reached costs a warning."""
    try:
        return Registry(store).register(name, corpus, model, predictions, facts, run)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(public(f"warning: {name} is not in the registry of {store.uri}: {reason}")[:400], file=sys.stderr)
        return None
