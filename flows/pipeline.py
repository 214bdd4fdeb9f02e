"""The pipeline as a Prefect flow: DVC decides what must run, Prefect when, and shows it.

One task per stage of DVC's graph. What DVC calls unchanged is `Cached` without a process being started; the rest runs
as soon as what it waits for is done, independent branches at the same time. After a failure nothing new is started,
while what runs comes to its end; with `keep_going`, what does not need the failed stage is started, too. A cancelled
run ends everything it has started. What succeeded is published even where something else has failed.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
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
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.execution import cores, graph, publish, turns
from flows.execution.cores import Cores
from flows.execution.graph import GraphError, Node
from flows.execution.run_log import Ending, RunLog
from flows.execution.stage_task import MOST_PARALLEL, Children, Ended, Policy, StageError, default_parallel, repro
from flows.execution.turns import TurnCancelled, TurnTaken
from flows.hooks import notify
from flows.reports import artifacts
from flows.reports.artifacts import StageProgress, StageResult
from flows.reports.links import flow_run_page
from stages.results.provenance import FLOW_RUN_URL

POLL_SECONDS = 1.0
"""Between looks at whether the run has been cancelled on Prefect's pages."""
CANCELLED = "cancelled; every stage it had started has been ended"
ALIKE = "what it needs came out as before"
_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=MOST_PARALLEL)


@dataclass(frozen=True)
class Request:
    """What a run was asked for: the flow's parameters."""

    targets: tuple[str, ...]
    force: bool
    keep_going: bool
    push: bool
    commit: str | None
    policy: Policy
    parallel: int


@dataclass
class Work:
    """What the tasks of one run share."""

    children: Children
    forced: frozenset[str]
    policy: Policy
    cores: Cores = field(default_factory=Cores)
    outcomes: dict[str, StageResult] = field(default_factory=dict)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def cached(name: str) -> State[Any]:
    """A stage that DVC calls unchanged."""
    return Completed(name="Cached", message="unchanged since dvc.lock")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def skipped(name: str, reason: str) -> State[Any]:
    """A stage that cannot run, or is not started any more."""
    return State(type=StateType.CANCELLED, name="Skipped", message=reason)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_stage(name: str, work: Work, at_once: int) -> State[Any]:
    """A stage that DVC must run, on its share of the cores where at most `at_once` run."""
    logger, progress, began = get_run_logger(), StageProgress(name), time.monotonic()

    def log(line: str) -> None:
        logger.info(line)
        progress.line(line)

    try:
        with work.cores.share(at_once) as share:
            ran = repro(name, work.children, log, force=name in work.forced, policy=work.policy, cores=share)
        state: State[Any] = Completed(message="reproduced") if ran else Completed(name="Cached", message=ALIKE)
        progress.done()
    except StageError as error:
        cancelled = isinstance(error, Ended) and work.children.ending.is_set()
        state = Cancelled(message=str(error)) if cancelled else Failed(message=str(error))
    work.outcomes[name] = StageResult(str(state.name), time.monotonic() - began, state.message or "")
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
        push: in the end, send the outputs to DVC's default remote; after a failure, those of what succeeded.
        commit: in the end, commit dvc.lock, metrics and plots on this branch; after a failure, of what succeeded.
        timeouts: seconds that a stage may take, by its name, its kind (`pretrain`), or `all`.
        retries: how often a failed ingest or training is tried again; a training resumes from its checkpoint.
        retry_delay: seconds before such an attempt.
        parallel: most stages that run at the same time; by default half the cores, at least 2.
    """
    asked = Request(
        targets=tuple(targets or ()),
        force=force,
        keep_going=keep_going,
        push=push,
        commit=commit,
        policy=Policy(timeouts or {}, retries, retry_delay),
        parallel=parallel or default_parallel(),
    )
    children = Children(_environment())
    states: dict[str, State[Any]] = {}
    state: State[Any] = Cancelled(message=CANCELLED)
    log = RunLog(str(runtime.flow_run.name))
    with log.written():
        try:
            with _heeding(children), _turn(children):
                state = _reproduce(asked, children, states)
        except TurnTaken as taken:
            state = State(type=StateType.CANCELLED, name="Skipped", message=str(taken))
        except (GraphError, publish.PublishError) as error:
            state = Failed(message=str(error))
        except (KeyboardInterrupt, TerminationSignal, TurnCancelled):
            _ignore_signals()
            children.end()
        except BaseException as error:
            children.end()
            log.end(_ending(Crashed(message=f"{type(error).__name__}: {error}"), states))
            raise
        if children.ending.is_set():
            state = Cancelled(message=CANCELLED)
        log.end(_ending(state, states))
    return state


@contextmanager
def _turn(children: Children) -> Iterator[None]:
    """A run of a deployment takes its turn; of one started by hand, DVC's locks are enough, stage by stage."""
    if runtime.deployment.id is None:
        yield
        return
    name, run = str(runtime.deployment.name), str(runtime.flow_run.name)
    with turns.turn(name, run, get_run_logger().info, children.ending):
        yield


def _ending(state: State[Any], states: Mapping[str, State[Any]]) -> Ending:
    """What the run's file says of its end."""
    failures = {name: str(end.message) for name, end in states.items() if end.is_failed() or end.is_crashed()}
    page = flow_run_page(runtime.flow_run.id)
    deployment = str(runtime.deployment.name or "")
    return Ending(str(runtime.flow_run.name), deployment, str(state.name), state.message or "", failures, page)


def _reproduce(asked: Request, children: Children, states: dict[str, State[Any]]) -> State[Any]:
    """Run what must be run, and publish what was asked for; fills in the final state of each stage."""
    nodes = graph.read(asked.targets, force=asked.force)
    _check_timeouts(asked.policy.timeouts, nodes)
    if asked.commit is not None:
        publish.check_branch(asked.commit)
    if asked.push:
        publish.check_remote()
    edges = {node.name: node.needs for node in nodes}
    forced = frozenset(graph.expand(asked.targets or edges, edges) if asked.force else ())
    work = Work(children, forced, asked.policy)
    _run(nodes, work, asked, states)
    state = _summary(nodes, states)
    _show(nodes, work.outcomes)
    if state.is_completed() and any(node.kind == "linear-probe" for node in nodes):
        _register(children)
    done = [node.name for node in nodes if states[node.name].is_completed()]
    if asked.push and done and not children.ending.is_set():
        state = _after(state, push_data(done, children, return_state=True))
    if asked.commit is not None and done and not children.ending.is_set():
        left = {node.name for node in nodes} - set(done)
        records = [path for node in graph.read() if node.name not in left for path in node.records]
        state = _after(state, commit_records(asked.commit, records, _message(nodes, states), return_state=True))
    return state


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


def _show(nodes: Sequence[Node], outcomes: dict[str, StageResult]) -> None:
    """The run's artifacts; that a page lacks a table does not make a result worse."""
    try:
        artifacts.publish(nodes, outcomes)
    except Exception as error:
        get_run_logger().warning("the run's artifacts are incomplete: %s: %s", type(error).__name__, error)


def _register(children: Children) -> None:
    """What was probed while the tracking server was away, or came from DVC's cache, becomes a version; a registry that
    is away still does not make a result worse."""
    with contextlib.suppress(Ended):
        status, tail = children.run([sys.executable, "-m", "flows.promote", "--register"], get_run_logger().info)
        if status:
            get_run_logger().warning("not everything that was probed is registered: %s", "\n".join(tail))


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


def _run(nodes: Sequence[Node], work: Work, asked: Request, states: dict[str, State[Any]]) -> None:
    """Run the stages in the order of their graph; fills in the final state of each."""
    by_name = {node.name: node for node in nodes}
    order = TopologicalSorter({node.name: node.needs for node in nodes})
    order.prepare()
    ended: queue.SimpleQueue[tuple[str, State[Any]]] = queue.SimpleQueue()
    ready: list[Node] = []
    running = 0

    def finish(name: str, state: State[Any]) -> None:
        states[name] = state
        work.outcomes.setdefault(name, StageResult(str(state.name), 0.0, state.message or ""))
        order.done(name)

    while order.is_active():
        ready += [by_name[name] for name in order.get_ready()]
        waiting: list[Node] = []
        for node in ready:
            needs = [states[name] for name in node.needs]
            ending = work.children.ending.is_set()
            obstacle = "the run was cancelled" if ending else _obstacle(node, states, asked.keep_going)
            if obstacle is not None:
                finish(node.name, skipped(node.name, obstacle, return_state=True))
            elif not node.changed:
                finish(node.name, cached(node.name, return_state=True, wait_for=needs))
            elif running < asked.parallel:
                running += 1
                left = {other.name: other.needs for other in nodes if other.changed and other.name not in states}
                most = min(asked.parallel, cores.at_once(left))
                future = run_stage.submit(name=node.name, work=work, at_once=most, wait_for=needs, return_state=False)
                future.add_done_callback(_reporter(node.name, ended))
            else:
                waiting.append(node)
        progressed = len(waiting) < len(ready)
        ready = waiting
        if running and (waiting or not progressed):
            name, state = ended.get()
            running -= 1
            finish(name, state)


def _reporter(name: str, ended: queue.SimpleQueue[tuple[str, State[Any]]]) -> Any:
    def report(future: PrefectFuture[Any]) -> None:
        try:
            future.wait()  # it is done; without this, `state` asks a server that may not know yet
            state = future.state
        except BaseException as error:  # of Prefect's own around the task: the flow waits for an answer
            state = Crashed(message=f"{name}: {type(error).__name__}: {error}")
        ended.put((name, state))

    return report


def _obstacle(node: Node, states: Mapping[str, State[Any]], keep_going: bool) -> str | None:
    """Why `node` is not started."""
    bad = [name for name in node.needs if not states[name].is_completed()]
    if bad:
        return f"it needs {', '.join(bad)}"
    failed = [name for name, state in states.items() if state.is_failed() or state.is_crashed()]
    if failed and node.changed and not keep_going:
        return f"{failed[0]} has failed"
    return None


def _summary(nodes: Sequence[Node], states: Mapping[str, State[Any]]) -> State[Any]:
    bad = _failed(nodes, states)
    if bad:
        return Failed(message="\n\n".join(str(states[name].message) for name in bad))
    return Completed(message=_counts(nodes, states))


def _failed(nodes: Sequence[Node], states: Mapping[str, State[Any]]) -> list[str]:
    """What was begun and did not come to a good end."""
    return [n.name for n in nodes if not states[n.name].is_completed() and states[n.name].name != "Skipped"]


def _counts(nodes: Sequence[Node], states: Mapping[str, State[Any]]) -> str:
    done = [states[node.name].name for node in nodes if states[node.name].is_completed()]
    cached = done.count("Cached")
    return f"{len(done) - cached} {'stage' if len(done) - cached == 1 else 'stages'} ran, {cached} were cached"


def _after(before: State[Any], step: State[Any]) -> State[Any]:
    """The run's state after a publishing step: what succeeded is published, and a failure stays one."""
    if before.is_completed() and step.is_completed():
        return Completed(message=f"{before.message}; {step.message}")
    said = [before.message] if not before.is_completed() else []
    return Failed(message="\n\n".join([*map(str, said), str(step.message or step.name)]))


def _message(nodes: Sequence[Node], states: Mapping[str, State[Any]]) -> str:
    """The commit message."""
    counts, failed = _counts(nodes, states), _failed(nodes, states)
    ran = [node.name for node in nodes if states[node.name].is_completed() and states[node.name].name != "Cached"]
    url = flow_run_page(runtime.flow_run.id)
    lines = [f"Results: {counts}{f', {len(failed)} failed' if failed else ''}", ""]
    lines += [f"Ran: {', '.join(ran) or 'nothing'}", *([f"Failed: {', '.join(failed)}"] if failed else [])]
    return "\n".join([*lines, *([f"Flow run: {url}"] if url else []), ""])
