"""DVC's own view of the pipeline: which stages there are, what each waits for, and what an edit has touched.

The flow's task graph is read from DVC's, so the two cannot disagree, and DVC is asked once, by a process of its own
that runs while Prefect is being imported. `Repo.index.graph`, its lock and its lock file of paths are not part of DVC's
public API; this is the only module that uses them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from flows.execution import dvc_process
from ssl_models.addresses import secret
from ssl_models.layout import flat
from ssl_models.tracking.execution import METRICS, REPORT
from ssl_models.training.lifetime import die_with_parent
from stages.digests import policy as code

Edges = dict[str, tuple[str, ...]]
SILENT_SECONDS = 20.0
"""Of waiting for DVC without a word about it."""
BUSY_SECONDS = 2.0
"""Between attempts to look at what another DVC process is writing."""


class GraphError(Exception):
    """The pipeline cannot be read, or a target is none of its stages: one sentence."""


class BusyError(GraphError):
    """Another DVC process, run by hand or by another flow, is writing what must be looked at."""


@dataclass(frozen=True)
class Node:
    """One stage of `dvc.yaml`. `reasons` say why it must run; a stage below a changed one has none of its own.

    `records` are the files that git keeps: metrics, plots, and the report beside the metrics.
    """

    name: str
    needs: tuple[str, ...] = ()
    changed: bool = False
    reasons: tuple[str, ...] = ()
    records: tuple[str, ...] = ()

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Node:
        """A node from JSON, the inverse of `dataclasses.asdict`."""
        lists = {key: tuple(fields[key]) for key in ("needs", "reasons", "records")}
        return cls(name=fields["name"], changed=fields["changed"], **lists)

    @property
    def kind(self) -> str:
        """The stage without its instance: `pretrain` of `pretrain@gpt`."""
        return self.name.partition("@")[0]

    @property
    def instance(self) -> str:
        """The corpus or model: `gpt` of `pretrain@gpt`."""
        return self.name.partition("@")[2]


_asked: dict[tuple[str, ...], subprocess.Popen[str]] = {}


def ask(targets: Sequence[str]) -> None:
    """Have DVC asked about `targets` from now on, so that `read` finds the answer ready."""
    _asked[tuple(targets)] = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, *targets],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read(targets: Sequence[str] = (), *, force: bool = False) -> list[Node]:
    """The stages that `targets` (all, if empty) need, in an order that respects every edge.

    `changed` holds for a stage that DVC would run, itself or because of an ancestor; with `force`, for the targets too.
    A target may also be a stage without its instance: `pretrain` stands for every `pretrain@...`.
    """
    if tuple(targets) not in _asked:
        ask(targets)
    process = _asked.pop(tuple(targets))
    try:
        answer, complaints = process.communicate(timeout=SILENT_SECONDS)
    except subprocess.TimeoutExpired:
        print("waiting for DVC: it reads much data, or another run holds its locks", file=sys.stderr, flush=True)
        answer, complaints = process.communicate()
    finally:
        process.kill()
    if process.returncode:
        raise GraphError(complaints.strip().splitlines()[-1] if complaints.strip() else "dvc.yaml cannot be read")
    nodes = [Node.of(fields) for fields in json.loads(answer)]
    return forced(nodes, targets) if force else nodes


def forced(nodes: list[Node], targets: Sequence[str]) -> list[Node]:
    """`nodes` with the targets (all, if empty) and what lies below them marked as changed."""
    wanted = expand(targets, {node.name: node.needs for node in nodes}) if targets else {node.name for node in nodes}
    found: dict[str, Node] = {}
    for node in nodes:
        below = any(found[needed].changed for needed in node.needs)
        own = node.name in wanted
        why = node.reasons or (("forced",) if own else ())
        found[node.name] = replace(node, changed=node.changed or own or below, reasons=why)
    return list(found.values())


def expand(targets: Iterable[str], edges: Edges) -> set[str]:
    """The stages that `targets` name; GraphError where one names none."""
    found: set[str] = set()
    for target in targets:
        names = {name for name in edges if name == target or name.partition("@")[0] == target}
        if not names:
            raise GraphError(f"there is no stage {target!r} in dvc.yaml (stages: {', '.join(sorted(edges))})")
        found |= names
    return found


def closure(names: set[str], edges: Edges) -> set[str]:
    """`names` and everything they need."""
    found, queue = set(names), list(names)
    while queue:
        for needed in edges[queue.pop()]:
            if needed not in found:
                found.add(needed)
                queue.append(needed)
    return found


def reasons(entries: Iterable[str | dict[str, dict[str, Any]]]) -> list[str]:
    """DVC's status of one stage, flattened: `changed deps: requirements.lock (modified)`."""
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)
        else:
            for what, changes in entry.items():
                found += [f"{what}: {path} ({change})" for path, change in flat(changes, separator=":").items()]
    return found


def _examine(targets: Sequence[str]) -> list[Node]:
    """What the process that `ask` starts finds out."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo:
            _forget_dead(Path(repo.tmp_dir))
            stages = {stage.addressing: stage for stage in repo.index.graph.nodes}
            _refuse_secrets(stages)
            edges = {
                name: tuple(sorted(needed.addressing for needed in repo.index.graph.successors(stage)))
                for name, stage in stages.items()
            }
            wanted = closure(expand(targets, edges), edges) if targets else set(edges)
            status = repo.status(targets=sorted(wanted)) if targets else repo.status()
            nodes: dict[str, Node] = {}
            for name in TopologicalSorter(edges).static_order():
                if name in wanted:
                    why = tuple(reasons(status.get(name, ())))
                    changed = bool(why) or any(nodes[needed].changed for needed in edges[name])
                    kept = {str(out) for out in stages[name].outs if not out.use_cache and out.is_in_repo}
                    kept |= {str(Path(path).with_name(REPORT)) for path in kept if Path(path).name == METRICS}
                    nodes[name] = Node(name, edges[name], changed, why, tuple(sorted(kept)))
    except LockError as error:
        raise BusyError(str(error)) from error
    except DvcException as error:
        raise GraphError(" ".join(str(error).split())) from error
    return list(nodes.values())


def _refuse_secrets(stages: dict[str, Any]) -> None:
    """GraphError for a dependency whose address holds a password: DVC, Prefect and `dvc.lock` would all show it."""
    for name, stage in stages.items():
        if any(secret(str(dependency.def_path)) for dependency in stage.deps):
            raise GraphError(
                f"{name}: the address of a dependency holds a password or a token: leave it out, and let the "
                "environment give it (docs/data-sources.md)"
            )


def _forget_dead(folder: Path) -> None:
    """Take entries of processes that have ended out of DVC's lock file of paths, and mend a torn one.

    DVC forgets a dead process by its id alone: once the id belongs to another process, or a kill has left the file half
    written, every later run would be refused. An entry that may be of a living process stays, wherever that runs.
    """
    import psutil
    from dvc.lock import make_lock

    path = folder / "rwlock"
    if not path.exists():
        return
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        before_boot = dvc_process.is_local(folder) and path.stat().st_mtime < psutil.boot_time()
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            readers = {at: list(filter(dvc_process.may_live, entries)) for at, entries in held.get("read", {}).items()}
            writers = {at: entry for at, entry in held.get("write", {}).items() if dvc_process.may_live(entry)}
        except (ValueError, KeyError, AttributeError, TypeError):
            if not before_boot and dvc_process.others_may_live(folder):
                raise GraphError(
                    f"{path}: is damaged, and another DVC process may be at work: remove the file once none is, on "
                    "any machine that shares it"
                ) from None
            readers, writers = {}, {}
        if before_boot:  # whoever wrote it
            readers, writers = {}, {}
        kept = {"read": {at: entries for at, entries in readers.items() if entries}, "write": writers}
        path.write_text(json.dumps({key: value for key, value in kept.items() if value}), encoding="utf-8")


def main() -> None:
    """Print the nodes that the targets on the command line need, as JSON; or one sentence, and status 1."""
    die_with_parent(signal.SIGKILL)
    try:
        code.refresh()
    except ValueError as error:
        sys.exit(str(error))
    while True:
        try:
            print(json.dumps([asdict(node) for node in _examine(sys.argv[1:])]))
            return
        except BusyError:
            time.sleep(BUSY_SECONDS)
        except GraphError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
