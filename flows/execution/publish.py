"""What a run leaves behind for others: data in DVC's remote, and `dvc.lock` with metrics and plots on a git branch.

The branch is written with git's plumbing and an index of its own: the user's working tree, index and checked-out branch
are never touched, whatever they are in the middle of.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from flows.execution import dvc_process

DEFINITIONS = ("params.yaml", "dvc.yaml", "dvc.lock")
"""Recorded beside metrics and plots, so that a commit says what was computed as well as the result."""
PUSH = dvc_process.command("push")
NOBODY = {
    "GIT_AUTHOR_NAME": "pretext",
    "GIT_AUTHOR_EMAIL": "pretext@localhost",
    "GIT_COMMITTER_NAME": "pretext",
    "GIT_COMMITTER_EMAIL": "pretext@localhost",
}
"""Who commits where git knows nobody: a machine that runs schedules."""


class PublishError(Exception):
    """The results cannot be published: one sentence."""


def git(*arguments: str, environment: Mapping[str, str] | None = None, stdin: str | None = None) -> str:
    """The output of a git command; PublishError where it fails."""
    asked = subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if asked.returncode:
        raise PublishError(f"git {arguments[0]}: {' '.join(asked.stderr.split()) or 'failed'}")
    return asked.stdout.strip()


def check_branch(branch: str) -> None:
    """PublishError where `branch` cannot be written, said before any work."""
    git("check-ref-format", "--branch", branch)
    checked_out = git("worktree", "list", "--porcelain").splitlines()
    if f"branch refs/heads/{branch}" in checked_out:
        raise PublishError(f"commit: the branch {branch!r} is checked out; name one that is not, e.g. results")
    git("rev-parse", "HEAD")


def check_remote() -> None:
    """PublishError without a default DVC remote."""
    asked = subprocess.run([sys.executable, "-m", "dvc", "config", "core.remote"], capture_output=True, check=False)
    if asked.returncode or not asked.stdout.strip():
        raise PublishError("push: DVC has no default remote; add one: dvc remote add --default NAME URL")


def commit(branch: str, records: Iterable[str], message: str) -> str | None:
    """Commit DEFINITIONS and `records` on `branch`; the commit, None where the branch has it all already.

    The commit holds HEAD's tree with these files as they are in the working tree. Its parents are the branch's last
    commit and, where that does not contain it, HEAD.
    """
    check_branch(branch)
    head = git("rev-parse", "HEAD")
    reference = f"refs/heads/{branch}"
    tip = git("for-each-ref", "--format=%(objectname)", reference)
    prefix = git("rev-parse", "--show-prefix")
    with tempfile.TemporaryDirectory(prefix="pretext-index-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", head, environment=index)
        for name in dict.fromkeys([*DEFINITIONS, *records]):
            path = Path(name)
            if path.is_file():
                blob = git("hash-object", "-w", "--path", prefix + name, "--", name)
                git("update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{name}", environment=index)
        tree = git("write-tree", environment=index)
    parents = [tip] if tip else []
    if not tip or git("merge-base", "--all", head, tip) != head:
        parents.append(head)
    if tip and git("rev-parse", f"{tip}^{{tree}}") == tree:
        return None
    known = subprocess.run(["git", "config", "user.email"], capture_output=True, check=False).returncode == 0
    options = [part for parent in parents for part in ("-p", parent)]
    made = git("commit-tree", tree, *options, "-F", "-", stdin=message, environment=None if known else NOBODY)
    git("update-ref", "-m", "pretext: results", reference, made, tip or "0" * 40)
    return made


def differing(records: Iterable[str]) -> list[str]:
    """Tracked files other than the recorded ones that differ from HEAD: the commit does not hold what they say."""
    recorded = {*DEFINITIONS, *records}
    changed = git("diff", "--name-only", "--relative", "HEAD").splitlines()
    return sorted(name for name in changed if name not in recorded)
