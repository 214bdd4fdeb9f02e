"""Copies of the working tree in which experiments run at the same time: `dvc exp run --temp` in each, one at a time.

DVC takes the experiments of one repository from one stack, so that two `dvc exp run` at once take each other's. A copy
is a clone that shares the objects of git and the cache of DVC, with what is changed but not committed; what it finds is
fetched back as an experiment of the project's own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.execution import dvc_process
from flows.execution.publish import git

FOLDER = Path(".dvc/tmp/exps")
"""Here `stages.results.provenance` knows that the project lies above, and DVC and git look at nothing."""


class WorkingCopy:
    """One copy."""

    def __init__(self, folder: Path) -> None:
        """Make it in `folder`, which must not exist. PublishError where git refuses."""
        project, root = Path.cwd(), Path(git("rev-parse", "--show-toplevel"))
        self._clone = folder.absolute()
        self.root = self._clone / project.relative_to(root)
        head, changed = git("rev-parse", "HEAD"), git("stash", "create")
        git("clone", "-q", "--shared", "--no-checkout", str(root), str(self._clone))
        git("-C", str(self._clone), "checkout", "-q", "--detach", head)
        if changed:
            git("-C", str(self._clone), "restore", f"--source={changed}", "--worktree", "--", ".")
        own = project / ".dvc/config.local"
        if own.exists():
            shutil.copy(own, self.root / ".dvc/config.local")
        cache = _dvc("cache", "dir")
        _dvc("--cd", str(self.root), "cache", "dir", "--local", cache)

    def command(self, name: str, settings: Sequence[str], targets: Sequence[str]) -> list[str]:
        """The command line of the experiment `name` with values of parameters (`key=value`)."""
        flags = [part for setting in settings for part in ("--set-param", setting)]
        return dvc_process.command("--cd", str(self.root), "exp", "run", "--temp", "--name", name, *flags, *targets)

    def fetch(self, name: str) -> None:
        """Make the experiment `name`, which has run here, one of the project's."""
        listed = git("-C", str(self._clone), "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        found = [f"+{reference}:{reference}" for reference in listed if reference.rpartition("/")[2] == name]
        git("fetch", "-q", "--no-write-fetch-head", str(self._clone), *found)


@contextmanager
def working_copies(name: str, count: int) -> Iterator[list[WorkingCopy]]:
    """`count` copies, until the end of the block."""
    folder = FOLDER / name
    folder.mkdir(parents=True)
    try:
        yield [WorkingCopy(folder / str(number)) for number in range(count)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dvc(*arguments: str) -> str:
    asked = subprocess.run(dvc_process.command(*arguments), capture_output=True, text=True, check=True)
    return asked.stdout.strip()
