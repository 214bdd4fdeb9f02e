"""The pipeline as a Prefect flow: DVC decides what must run, Prefect when, and shows it.

One task per stage of DVC's graph. What DVC calls unchanged is `Cached` without a process being started; the rest runs
as soon as what it waits for is done, independent branches at the same time. After a failure nothing new is started,
while what runs comes to its end; with `keep_going`, what does not need the failed stage is started, too. A cancelled
run ends everything it has started.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Annotated, Any

from prefect import State, flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows import artifacts
from flows.artifacts import Outcome, StageProgress
from flows.execution import graph, publish
from flows.execution.graph import GraphError, Node
from flows.execution.stage_task import MOST_PARALLEL, Children, Ended, Policy, StageError, default_parallel, repro
from flows.hooks import notify
from flows.links import flow_run_page
from stages.provenance import FLOW_RUN_URL

POLL_SECONDS = 1.0
"""Between looks at whether the run has been cancelled on Prefect's pages."""
CANCELLED = "cancelled; every stage it had started has been ended"
ALIKE = "what it needs came out as before"
_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=MOST_PARALLEL)


@dataclass
class Work:
    """What the tasks of one run share."""

    children: Children
    forced: frozenset[str]
    policy: Policy
    outcomes: dict[str, Outcome] = field(default_factory=dict)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def cached(name: str) -> State[Any]:
    """A stage that DVC calls unchanged."""
    return Completed(name="Cached", message="unchanged since dvc.lock")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def skipped(name: str, reason: str) -> State[Any]:
    """A stage that cannot run, or is not started any more."""
    return State(type=StateType.CANCELLED, name="Skipped", message=reason)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_stage(name: str, work: Work) -> State[Any]:
    """A stage that DVC must run."""
    logger, progress, began = get_run_logger(), StageProgress(name), time.monotonic()

    def log(line: str) -> None:
        logger.info(line)
        progress.line(line)

    try:
        ran = repro(name, work.children, log, force=name in work.forced, policy=work.policy)
        state: State[Any] = Completed(message="reproduced") if ran else Completed(name="Cached", message=ALIKE)
        progress.done()
    except StageError as error:
        cancelled = isinstance(error, Ended) and work.children.ending.is_set()
        state = Cancelled(message=str(error)) if cancelled else Failed(message=str(error))
    work.outcomes[name] = Outcome(str(state.name), time.monotonic() - began, state.message or "")
    return state


@task(task_run_name="dvc push", cache_policy=NO_CACHE)
def push_data(targets: Sequence[str], children: Children) -> State[Any]:
    """Send the outputs to DVC's default remote."""
    status, tail = children.run([*publish.PUSH, *targets], get_run_logger().info)
    return Completed(message="pushed") if status == 0 else Failed(message="dvc push failed:\n" + "\n".join(tail))


@task(task_run_name="git commit on {branch}", cache_policy=NO_CACHE)
def commit_records(branch: str, records: Sequence[str], message: str) -> State[Any]:
    """Record `dvc.lock`, metrics and plots on a branch."""
    try:
        made = publish.commit(branch, records, message)
        if left := publish.differing(records):
            get_run_logger().warning("not in the commit, though they differ from HEAD: %s", ", ".join(left))
    except publish.PublishError as error:
        return Failed(message=str(error))
    return Completed(message=f"{made} on {branch}" if made else f"{branch} has it already")


@flow(name="pretext", task_runner=_RUNNER, on_failure=[notify], on_crashed=[notify])
def pipeline(
    targets: list[str] | None = None,
    force: bool = False,
    keep_going: bool = False,
    push: bool = False,
    commit: str | None = None,
    timeouts: dict[str, Annotated[float, Field(gt=0)]] | None = None,
    retries: Annotated[int, Field(ge=0)] = 2,
    retry_delay: Annotated[float, Field(ge=0)] = 30.0,
    parallel: Annotated[int, Field(ge=1)] | None = None,
) -> State[Any]:
    """Reproduce what has changed of `targets` and of what they need.

    Args:
        targets: stages (`linear-probe@gpt`), or kinds of them (`pretrain`); every stage, if empty.
        force: run the targets even if they have not changed.
        keep_going: after a failure, go on with what does not need the failed stage.
        push: in the end, send the outputs to DVC's default remote.
        commit: in the end, commit dvc.lock, metrics and plots on this branch.
        timeouts: seconds that a stage may take, by its name, its kind (`pretrain`), or `all`.
        retries: how often a failed training is tried again; it resumes from its checkpoint.
        retry_delay: seconds before such an attempt.
        parallel: most stages that run at the same time; by default half the cores, at least 2.
    """
    wanted = list(targets or ())
    children = Children(_environment())
    try:
        nodes = graph.read(wanted, force=force)
        _check_timeouts(timeouts or {}, nodes)
        if commit is not None:
            publish.check_branch(commit)
        if push:
            publish.check_remote()
        edges = {node.name: node.needs for node in nodes}
        forced = frozenset(graph.expand(wanted or edges, edges) if force else ())
        work = Work(children, forced, Policy(timeouts or {}, retries, retry_delay))
        with _heeding(children):
            states = _run(nodes, work, keep_going, parallel or default_parallel())
            state = _summary(nodes, states)
            _show(nodes, work.outcomes)
            if state.is_completed() and push:
                state = _after(state, push_data(wanted, children, return_state=True))
            if state.is_completed() and commit is not None:
                records = [path for node in graph.read() for path in node.records]
                state = _after(state, commit_records(commit, records, _message(state, nodes), return_state=True))
    except (GraphError, publish.PublishError) as error:
        return Failed(message=str(error))
    except (KeyboardInterrupt, TerminationSignal):
        _ignore_signals()
        children.end()
    except BaseException:
        children.end()
        raise
    return Cancelled(message=CANCELLED) if children.ending.is_set() else state


@contextmanager
def _heeding(children: Children) -> Iterator[None]:
    """Meanwhile, end everything once the run is cancelled through Prefect: no worker watches one started by hand."""
    over, run = threading.Event(), runtime.flow_run.id

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not over.wait(POLL_SECONDS):
                with contextlib.suppress(Exception):  # a server that is away for a while
                    state = client.read_flow_run(run).state
                    if state is not None and (state.is_cancelling() or state.is_cancelled()):
                        children.end()
                        return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _show(nodes: Sequence[Node], outcomes: dict[str, Outcome]) -> None:
    """The run's artifacts; that a page lacks a table does not make a result worse."""
    try:
        artifacts.publish(nodes, outcomes)
    except Exception as error:
        get_run_logger().warning("the run's artifacts are incomplete: %s: %s", type(error).__name__, error)


def _check_timeouts(names: Iterable[str], nodes: Sequence[Node]) -> None:
    """GraphError where a timeout would limit nothing."""
    known = {"all", *(node.kind for node in nodes), *(node.name for node in nodes)}
    for name in names:
        if name not in known:
            raise GraphError(f"timeouts: {name!r} is no stage of this run (stages: {', '.join(sorted(known))})")


def _environment() -> dict[str, str]:
    url = flow_run_page(runtime.flow_run.id)
    return {FLOW_RUN_URL: url} if url else {}


def _ignore_signals() -> None:
    """The end of a run is not itself cut short."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _run(nodes: Sequence[Node], work: Work, keep_going: bool, parallel: int) -> dict[str, State[Any]]:
    """Run the stages in the order of their graph; the final state of each."""
    by_name = {node.name: node for node in nodes}
    order = TopologicalSorter({node.name: node.needs for node in nodes})
    order.prepare()
    ended: queue.SimpleQueue[tuple[str, State[Any]]] = queue.SimpleQueue()
    states: dict[str, State[Any]] = {}
    ready: list[Node] = []
    running = 0

    def finish(name: str, state: State[Any]) -> None:
        states[name] = state
        work.outcomes.setdefault(name, Outcome(str(state.name), 0.0, state.message or ""))
        order.done(name)

    while order.is_active():
        ready += [by_name[name] for name in order.get_ready()]
        waiting: list[Node] = []
        for node in ready:
            needs = [states[name] for name in node.needs]
            ending = work.children.ending.is_set()
            obstacle = "the run was cancelled" if ending else _obstacle(node, states, keep_going)
            if obstacle is not None:
                finish(node.name, skipped(node.name, obstacle, return_state=True))
            elif not node.changed:
                finish(node.name, cached(node.name, return_state=True, wait_for=needs))
            elif running < parallel:
                running += 1
                future = run_stage.submit(name=node.name, work=work, wait_for=needs, return_state=False)
                future.add_done_callback(_reporter(node.name, ended))
            else:
                waiting.append(node)
        progressed = len(waiting) < len(ready)
        ready = waiting
        if running and (waiting or not progressed):
            name, state = ended.get()
            running -= 1
            finish(name, state)
    return states


def _reporter(name: str, ended: queue.SimpleQueue[tuple[str, State[Any]]]) -> Any:
    def report(future: PrefectFuture[Any]) -> None:
        future.wait()  # it is done; without this, `state` asks a server that may not know yet
        ended.put((name, future.state))

    return report


def _obstacle(node: Node, states: Mapping[str, State[Any]], keep_going: bool) -> str | None:
    """Why `node` is not started."""
    bad = [name for name in node.needs if not states[name].is_completed()]
    if bad:
        return f"it needs {', '.join(bad)}"
    failed = [name for name, state in states.items() if state.is_failed()]
    if failed and node.changed and not keep_going:
        return f"{failed[0]} has failed"
    return None


def _summary(nodes: Sequence[Node], states: Mapping[str, State[Any]]) -> State[Any]:
    bad = [node.name for node in nodes if not states[node.name].is_completed() and states[node.name].name != "Skipped"]
    if bad:
        return Failed(message="\n\n".join(str(states[name].message) for name in bad))
    ran = sum(states[node.name].name != "Cached" for node in nodes)
    return Completed(message=f"{ran} {'stage' if ran == 1 else 'stages'} ran, {len(nodes) - ran} were cached")


def _after(before: State[Any], step: State[Any]) -> State[Any]:
    """The run's state after a publishing step."""
    if not step.is_completed():
        return Failed(message=step.message or str(step.name))
    return Completed(message=f"{before.message}; {step.message}")


def _message(state: State[Any], nodes: Sequence[Node]) -> str:
    """The commit message."""
    ran = ", ".join(node.name for node in nodes if node.changed) or "nothing"
    url = flow_run_page(runtime.flow_run.id)
    return f"Results: {state.message}\n\nRan: {ran}\n" + (f"Flow run: {url}\n" if url else "")
