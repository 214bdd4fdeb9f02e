"""The model registry: every probed model is a version of the registered model of its corpus, and the alias `champion`
moves only as `decision` allows.

A version is an MLflow model without a pickle: `pyfunc_model.py` as code, the model folder (safetensors), this project's
sources, and the probe's predictions, by which the next version will be compared with it. What was decided, and on which
numbers, stands on the version. The same weights and predictions are registered once, however often that is asked.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ssl_models
import stages
from ssl_models.addresses import public
from ssl_models.files import checksum
from ssl_models.probing.intervals import Gain
from ssl_models.tracking.probe import Run
from ssl_models.tracking.store import SQLITE, connect
from ssl_models.training.job import Tracking
from stages.params import UserError
from stages.registry.decision import AGAINST, DECISION, PROMOTED, RANDOM, Decision, challenge, first

CHAMPION = "champion"
HISTORY = "champion.history"
"""Tag of the registered model: the versions that were champion, as JSON, the present one last."""
FINGERPRINT, MODEL, ACCURACY, FEATURE = "fingerprint", "model", "probe.accuracy", "probe.feature"
STEPS, EXPERIMENT = "train.steps", "dvc.experiment"
"""Tags of a version."""
VERDICT = "**Champion:** "
"""Begins the last line of a version's description."""
PREDICTIONS, WEIGHTS = "predictions.parquet", "model.safetensors"
REQUIREMENTS = (
    *("mlflow", "torch", "numpy", "scipy", "pandas", "pyarrow", "pydantic", "safetensors", "tokenizers", "pillow"),
    *("ruamel.yaml", "fsspec", "tqdm", "threadpoolctl", "psutil"),
)
"""What a served model imports."""
GENERATED = 64
"""Tokens written where a request does not say."""


@dataclass(frozen=True)
class Facts:
    """What a version says of its training and its probe: the feature chosen, its accuracy, its gain over the random
    encoder, the report for a reviewer, the steps trained."""

    feature: str
    accuracy: float
    description: str
    over_random: Gain | None = None
    steps: int = 0
    every: int = 1


# ---- the model that is stored -----------------------------------------------------------------------------------


def fingerprint(model: Path, predictions: Path) -> str:
    """BLAKE2b-128 of the weights and of the predictions: the same training and probe make no second version."""
    return hashlib.blake2b((weights(model) + checksum(predictions)).encode(), digest_size=16).hexdigest()


def weights(model: Path) -> str:
    """BLAKE2b-128 of the weights of a model folder."""
    return checksum(model / WEIGHTS)


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

    def knows(self, corpus: str, mark: str) -> Any:
        """The version of this fingerprint, decided upon; None where there is none."""
        same = [version for version in self.versions(corpus) if version.tags.get(FINGERPRINT) == mark]
        return same[-1] if same and DECISION in same[-1].tags else None

    def register(self, name: str, corpus: str, model: Path, predictions: Path, facts: Facts, run: Run) -> Any:
        """A new version for a model's folder and its probe, with the decision on the alias; the version there is, where
        the same weights and predictions were registered before. What was cut short is completed."""
        mark = fingerprint(model, predictions)
        with self._alone():
            self._made(corpus)
            versions = self.versions(corpus)
            same = [version for version in versions if version.tags.get(FINGERPRINT) == mark]
            if same and DECISION in same[-1].tags:
                return same[-1]
            tags = {FINGERPRINT: mark, MODEL: name, ACCURACY: f"{facts.accuracy:.4f}", FEATURE: facts.feature}
            tags |= {STEPS: str(facts.steps), **self._experiment_of(run)}
            version = same[-1] if same else self._stored(name, corpus, model, predictions, facts, run, tags)
            decision = self._decide(corpus, versions, predictions, facts)
            text = f"{facts.description}\n\n{VERDICT}{decision.reason}.\n"
            self.client.update_model_version(corpus, version.version, description=text)
            if decision.promoted:
                self.promote(corpus, str(version.version))
            for key, value in reversed(decision.tags().items()):  # the decision itself last: it says that all is done
                self.client.set_model_version_tag(corpus, version.version, key, value)
            return self.client.get_model_version(corpus, version.version)

    def _decide(self, corpus: str, versions: Sequence[Any], predictions: Path, facts: Facts) -> Decision:
        champion = self.champion(corpus)
        against = str(champion.version) if champion else RANDOM
        challenger = 1 + sum(version.tags.get(AGAINST) == against for version in versions)
        if champion is None:
            return first(facts.over_random, challenger)
        with tempfile.TemporaryDirectory(prefix="pretext-registry-") as temporary:
            theirs = self._predictions(champion, Path(temporary))
            return challenge(predictions, theirs, against, challenger)

    def _experiment_of(self, run: Run) -> dict[str, str]:
        """The DVC experiment that a run was trained in, as a tag."""
        tags = self.client.get_run(run.run_id).data.tags
        return {EXPERIMENT: tags[EXPERIMENT]} if EXPERIMENT in tags else {}

    def say(self, corpus: str, version: str, reason: str, promoted: bool) -> None:
        """What now holds of a version, in place of what was decided before."""
        for key, value in ((DECISION, reason), (PROMOTED, str(promoted).lower())):
            self.client.set_model_version_tag(corpus, version, key, value)
        text = str(self.client.get_model_version(corpus, version).description or "").partition(VERDICT)[0]
        self.client.update_model_version(corpus, version, description=f"{text}{VERDICT}{reason}.\n")

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
        if history[-1] in known:
            self.say(corpus, history[-1], f"taken back by hand: version {before[-1]} is champion again", False)
        self.say(corpus, before[-1], f"champion again by hand, after version {history[-1]}", True)
        return before[-1]

    def promote_by_hand(self, corpus: str, version: str) -> str | None:
        """Move the alias to `version`; returns the champion before, None where there was none."""
        champion = self.champion(corpus)
        before = str(champion.version) if champion else None
        self.promote(corpus, version)
        if before:
            self.say(corpus, before, f"champion until version {version} was promoted by hand", False)
        self.say(corpus, version, f"promoted by hand, after version {before}" if before else "promoted by hand", True)
        return before


def register(name: str, corpus: str, model: Path, predictions: Path, facts: Facts, run: Run, store: Tracking) -> Any:
    """`Registry.register`, where a registry that cannot be reached costs a warning."""
    try:
        return Registry(store).register(name, corpus, model, predictions, facts, run)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(public(f"warning: {name} is not in the registry of {store.uri}: {reason}")[:400], file=sys.stderr)
        return None
