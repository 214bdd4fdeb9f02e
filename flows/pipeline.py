"""The pipeline as a Prefect flow: DVC decides what must run, Prefect when, and shows it.

    python -m flows.pipeline [--force] [--keep-going] [TARGET ...]      # make flow

One task per stage of DVC's graph. What DVC calls unchanged is `Cached` without a process being started; the rest runs
as soon as what it waits for is done, independent branches at the same time.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.graph import GraphError, Node, read
from flows.stage_task import Children, StageError, repro

_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=8)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def cached(name: str) -> State[Any]:
    """A stage that DVC calls unchanged."""
    return Completed(name="Cached", message="unchanged since dvc.lock")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_stage(name: str, children: Children, force: bool) -> State[Any]:
    """A stage that DVC must run."""
    logger = get_run_logger()
    try:
        repro(name, children, logger.info, force=force)
    except StageError as error:
        return Failed(message=str(error))
    return Completed(message="reproduced")


@flow(name="pretext", task_runner=_RUNNER)
def pipeline(targets: Sequence[str] = (), force: bool = False, keep_going: bool = False) -> State[Any]:
    """Reproduce `targets` (every stage, if empty). `keep_going`: stages that do not need a failed one still run."""
    try:
        nodes = read(targets, force=force)
    except GraphError as error:
        return Failed(message=str(error))
    children = Children()
    try:
        states = _run(nodes, children, force, keep_going)
    except (KeyboardInterrupt, TerminationSignal):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        children.end()
        return Cancelled(message="cancelled; every stage it had started has been ended")
    except BaseException:
        children.end()
        raise
    return _summary(nodes, states)


def _run(nodes: list[Node], children: Children, force: bool, keep_going: bool) -> dict[str, State[Any]]:
    futures: dict[str, PrefectFuture[State[Any]]] = {}
    states: dict[str, State[Any]] = {}
    for node in nodes:
        if not node.changed:
            states[node.name] = cached(node.name, return_state=True)
            continue
        needs = [futures[name] for name in node.needs if name in futures]
        futures[node.name] = run_stage.submit(
            name=node.name, children=children, force=force, wait_for=needs, return_state=False
        )
    for name, future in futures.items():
        future.wait()
        states[name] = future.state
        if future.state.is_failed() and not keep_going:
            children.end()
    return states


def _summary(nodes: list[Node], states: dict[str, State[Any]]) -> State[Any]:
    failed = [node.name for node in nodes if states[node.name].is_failed()]
    ran = [node.name for node in nodes if node.changed and states[node.name].is_completed()]
    if failed:
        return Failed(message="\n\n".join(f"{name}: {states[name].message}" for name in failed))
    return Completed(message=f"{len(ran)} stages ran, {len(nodes) - len(ran)} were cached")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=pipeline.description)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages, e.g. linear-probe@gpt; default: all")
    parser.add_argument("--force", action="store_true", help="run stages that have not changed, too")
    parser.add_argument("--keep-going", action="store_true", help="go on with what does not need a failed stage")
    given = parser.parse_args()
    state: State[Any] = pipeline(given.targets, given.force, given.keep_going, return_state=True)
    print(f"{state.name}: {state.message}")
    sys.exit(0 if state.is_completed() else 130 if state.is_cancelled() else 1)


if __name__ == "__main__":
    main()
