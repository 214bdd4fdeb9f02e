"""DVC's own view of the pipeline: which stages there are, what each waits for, and what an edit has touched.

The flow's task graph is read from DVC's, so the two cannot disagree, and DVC is asked once. `Repo.index.graph` is not
part of DVC's public API; this is the only module that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter

from dvc.exceptions import DvcException
from dvc.repo import Repo


class GraphError(Exception):
    """The pipeline cannot be read, or a target is none of its stages: one sentence."""


@dataclass(frozen=True)
class Node:
    """One stage of `dvc.yaml`. `reasons` say why it must run; a stage below a changed one has none of its own."""

    name: str
    needs: tuple[str, ...]
    changed: bool
    reasons: tuple[str, ...] = ()


def read(targets: Iterable[str] = (), *, force: bool = False) -> list[Node]:
    """The stages that `targets` (all, if empty) need, in an order that respects every edge.

    `changed` holds for a stage that DVC would run, itself or because of an ancestor; with `force`, for every stage.
    A target may also be a stage without its instance: `pretrain` stands for every `pretrain@...`.
    """
    try:
        with Repo() as repo:
            edges = {
                stage.addressing: tuple(sorted(needed.addressing for needed in repo.index.graph.successors(stage)))
                for stage in repo.index.graph.nodes
            }
            status = repo.status()
    except DvcException as error:
        raise GraphError(f"dvc.yaml: {error}") from error
    wanted = _closure(_expand(targets, edges), edges) if targets else set(edges)
    nodes: dict[str, Node] = {}
    for name in TopologicalSorter(edges).static_order():
        if name in wanted:
            reasons = tuple(_reasons(status.get(name, ())))
            changed = force or bool(reasons) or any(nodes[needed].changed for needed in edges[name])
            nodes[name] = Node(name, edges[name], changed, reasons)
    return list(nodes.values())


def _expand(targets: Iterable[str], edges: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    for target in targets:
        names = {name for name in edges if name == target or name.partition("@")[0] == target}
        if not names:
            raise GraphError(f"there is no stage {target!r} in dvc.yaml (stages: {', '.join(sorted(edges))})")
        found |= names
    return found


def _closure(names: set[str], edges: dict[str, tuple[str, ...]]) -> set[str]:
    found, queue = set(names), list(names)
    while queue:
        for needed in edges[queue.pop()]:
            if needed not in found:
                found.add(needed)
                queue.append(needed)
    return found


def _reasons(entries: Iterable[str | dict[str, dict[str, str]]]) -> list[str]:
    """DVC's status of one stage, flattened: `changed deps: requirements.lock (modified)`."""
    reasons = []
    for entry in entries:
        if isinstance(entry, str):
            reasons.append(entry)
        else:
            for what, changes in entry.items():
                reasons += [f"{what}: {path} ({change})" for path, change in changes.items()]
    return reasons
