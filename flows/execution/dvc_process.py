"""DVC as a process that says in DVC's own lock file where it runs: `python -m flows.execution.dvc_process ...`.

DVC notes a lock's holder as a process id and a command line. On a file system that several machines (or containers)
share, an id alone does not tell whether its holder lives: here it may be nobody, or another program, while the holder
works elsewhere. The command line is DVC's `sys.argv`, so a process that is started through this module puts its
machine, boot and process namespace there; a lock of anybody else is never judged by its process id.
"""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path
from typing import Any

import psutil

_MARK = "dvc@"
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "bcachefs"}
"""File systems that no other machine writes into. One that is not named here may be shared."""


def command(*arguments: str) -> list[str]:
    """The command line of DVC with `arguments`. It waits for the repository's lock as long as it takes."""
    return [sys.executable, "-m", "flows.execution.dvc_process", "--wait-for-lock", *arguments]


def mark() -> str:
    """What a process of this machine, boot and process namespace calls itself: `dvc@machine/boot/namespace`."""
    machine = "-".join([platform.node(), *_words("/etc/machine-id")])
    boot = "".join(_words("/proc/sys/kernel/random/boot_id"))
    return f"{_MARK}{machine}/{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def may_live(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock, `{"pid", "cmd"}`, may be at work; False only where it is known to have ended."""
    said, here = str(holder["cmd"]).split(" ")[0].split("/"), mark().split("/")
    if len(said) != len(here) or said[0] != here[0]:
        return True  # elsewhere, or started by hand: nobody knows where
    if said[1] != here[1]:
        return False  # before this machine was started anew
    if said[2] != here[2]:
        return True  # in another container: its process ids are not ours
    with contextlib.suppress(psutil.Error, ValueError):
        return any("dvc" in word for word in psutil.Process(int(holder["pid"])).cmdline())
    return False


def others_may_live(folder: Path) -> bool:
    """Whether any DVC process, also one without a mark, may be at work in the project that holds `folder`."""
    if not is_local(folder):
        return True
    project = folder.resolve().parents[1]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            at = Path(process.cwd())
            inside = at == project or project in at.parents
            if inside and _runs_dvc(process) and process.pid != psutil.Process().pid:
                return True
    return False


def _runs_dvc(process: psutil.Process) -> bool:
    """DVC itself, not what it was started with or what asks it: `... -m dvc repro`, `.../bin/dvc repro`."""
    words = process.cmdline()
    return any(Path(word).name in {"dvc", __spec__.name} for word in words[:3])


def is_local(folder: Path) -> bool:
    """Whether no other machine can write into `folder`, by the kind of its file system."""
    at = folder.resolve()
    mounts = {Path(entry.mountpoint): entry.fstype for entry in psutil.disk_partitions(all=True)}
    kinds = [mounts[place] for place in (at, *at.parents) if place in mounts]
    return bool(kinds) and kinds[0] in _LOCAL


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except OSError:
        return []


def main() -> None:
    """DVC's command line, marked."""
    from dvc.cli import main as dvc

    sys.argv[0] = mark()
    sys.exit(dvc(sys.argv[1:]))


if __name__ == "__main__":
    main()
