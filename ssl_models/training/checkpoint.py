"""Checkpoints that survive any kill: whole or absent, verified before use, and free of pickle.

A checkpoint is a folder `step-00000042` of `state.safetensors` (the tensors) and `checkpoint.json` (step, metrics, and
the BLAKE2b checksum of the tensors). It is written under a temporary name, flushed to the disk and renamed; two are
kept, and where the newest is damaged the one before it is used. Nothing in it depends on the number of processes.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_models.files import checksum, sync
from ssl_models.training.job import JobError

STATE, META = "state.safetensors", "checkpoint.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """`step`: steps completed. `tensors`: model, optimizer and loss history by name. `meta`: whatever JSON holds."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


def _folders(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def save(folder: Path, checkpoint: Checkpoint, keep: int = KEEP) -> None:
    """Write `checkpoint` under `folder`, then drop all but the newest `keep`. A write that fails (a full disk: OSError
    or SafetensorError) leaves nothing."""
    name = f"step-{checkpoint.step:010d}"
    partial = folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in checkpoint.tensors.items()}, partial / STATE)
        meta = {"step": checkpoint.step, "blake2b": checksum(partial / STATE), "meta": checkpoint.meta}
        (partial / META).write_text(json.dumps(meta), encoding="utf-8")
        for path in (partial / STATE, partial / META, partial):
            sync(path)
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(folder)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def _load(path: Path) -> Checkpoint:
    meta = json.loads((path / META).read_text(encoding="utf-8"))
    if checksum(path / STATE) != meta["blake2b"]:
        raise ValueError("its checksum does not match")
    return Checkpoint(int(meta["step"]), load_file(path / STATE), meta["meta"])


def load(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a sentence for each newer one that was damaged and removed.
    JobError where one cannot be read at the moment: it may be whole, and is left alone."""
    damaged: list[str] = []
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for path in _folders(folder):
        try:
            return _load(path), damaged
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}); using the one before it")
            shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            raise JobError(f"checkpoint {path} cannot be read ({error.strerror}); try again") from None
    return None, damaged


class Writer:
    """Saves checkpoints in a thread, one at a time, so that training waits for the copy in memory only. One that cannot
    be written costs a warning, not the training: those before it remain, and the next one is due soon."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still being written: another one would wait for it."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy the tensors to the CPU and write them in the background; waits for the write before it."""
        self.wait()
        copies = {key: value.detach().to("cpu", copy=True) for key, value in checkpoint.tensors.items()}
        self._thread = threading.Thread(
            target=self._write, args=(Checkpoint(checkpoint.step, copies, checkpoint.meta),), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint lies on the disk, or its warning was printed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            save(self._folder, checkpoint, self._keep)
        except (OSError, SafetensorError) as error:
            print(
                f"warning: the checkpoint of step {checkpoint.step} could not be written to {self._folder} ({error}); "
                "training goes on",
                file=sys.stderr,
                flush=True,
            )


def history(values: list[float]) -> Tensor:
    """A column of the loss history as a tensor: float64 `[steps]`."""
    return torch.tensor(values, dtype=torch.float64)
