"""The job file: everything a training job is told, as one JSON file that any launcher can carry to any machine.

The stage writes it, `python -m ssl_models.train JOB` reads it. Paths are absolute. What changes the result (`model`,
`seed`, the shards) is in `model` and `key`; the rest says where and how fast.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ssl_models.config import Model, Strict

STORE = "PRETEXT_STORE"
"""Environment variable: a file that does not exist yet, through which the processes of a job on one machine find each
other (`torch.distributed.FileStore`). RANK, LOCAL_RANK and WORLD_SIZE stand beside it."""


class JobError(Exception):
    """A condition the user can mend: one sentence, exit status 2."""


class Compute(Strict):
    """How the job uses the machine it runs on; none of it changes what is computed, but for rounding."""

    micro_batch: int | Literal["auto"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    checkpoint_seconds: float = Field(default=30.0, ge=0)


class Dataset(Strict):
    """A dataset input of the run, as MLflow shows it: `digest` is DVC's hash, `source` where the data lie."""

    name: str
    digest: str
    source: str
    context: str = "training"


class Tracking(Strict):
    """The MLflow run of this job. `uri` None: tracking is off."""

    uri: str | None = None
    artifacts: str | None = Field(default=None, description="where a new experiment keeps artifacts; SQLite only")
    experiment: str = "pretext"
    tags: dict[str, str] = Field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    reproduce: str = Field(default="", description="Markdown: how to do this again, for the run's description")
    files: dict[str, str] = Field(default_factory=dict, description="texts kept as artifacts, by their path")


class Job(Strict):
    """One training job."""

    name: str = Field(description="the entry of `models` in params.yaml")
    model: Model
    shards: Path = Field(description="folder with manifest.json")
    output: Path = Field(description="folder of model/, metrics.json, report.json and loss.csv: there in whole, or not")
    execution: Path | None = Field(default=None, description="file that receives what varies from run to run")
    checkpoints: Path = Field(description="folder of checkpoints; its name ends in the job's key")
    extendable: Path | None = Field(
        default=None, description="folder of the one checkpoint that a longer training of the same key can go on from"
    )
    compute: Compute = Compute()
    tracking: Tracking = Tracking()

    def save(self, path: Path) -> None:
        """Write the job file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # the address of a tracking server may hold a password
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job file; JobError where it is none."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise JobError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"])
            raise JobError(f"{path}: {place}: {first['msg']}") from None


def key(model: Model, manifest: Path, code: Mapping[str, str | None], *, steps: bool = True) -> str:
    """16 hex digits that change with whatever decides the result: the model's parameters (its seed among them), the
    shards (through the checksums in their manifest) and their encoding, and `code`, the digests of the code and of the
    folder that the model starts from.

    Not `steps`: the key of the training's `stable_steps`, which a longer one has in common with it.
    """
    digest = hashlib.blake2b(digest_size=8)

    def add(label: str, content: bytes) -> None:
        digest.update(f"{label}:{len(content)}:".encode())
        digest.update(content)

    parameters = model.model_dump(mode="json")
    if not steps:
        parameters["train"] |= {"warmup": model.train.warmup_steps, "steps": 0, "decay": 0, "final": 0}
    add("model", json.dumps(parameters, sort_keys=True).encode())
    add("code", json.dumps(dict(code), sort_keys=True).encode())
    encoding = sorted(path for path in (manifest.parent / "encoding").rglob("*") if path.is_file())
    for path in (manifest, *encoding):
        add(path.relative_to(manifest.parent).as_posix(), path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()
