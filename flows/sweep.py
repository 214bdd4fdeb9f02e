"""A sweep: overrides of `params.yaml` as DVC experiments, each trained and probed, each its own MLflow run.

    python -m flows.sweep linear-probe@gpt models.gpt.train.steps=50,100 models.gpt.train.learning_rate=0.001,0.003
    python -m flows.sweep linear-probe@gpt --point models.gpt.train.steps=50 --point models.gpt.backbone.layers=6

Values are crossed; each `--point` is one more setting of its own. An experiment runs in a copy of the working tree, so
nothing in it changes; `dvc exp apply NAME` takes one over. Several run at the same time, each on its share of the
cores. The table that ends the sweep says which results the best one really beats, row by row.
"""

from __future__ import annotations

import argparse
import io
import itertools
import queue
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from prefect import State, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.execution.cores import Cores
from flows.execution.publish import PublishError
from flows.execution.stage_task import MOST_PARALLEL, Children, StageError, command_status, default_parallel
from flows.execution.working_copies import WorkingCopy, working_copies
from flows.hooks import notify
from flows.reports import records
from flows.reports.comparison import Point, Result, table
from flows.reports.links import flow_run_page, mlflow_address
from flows.run import at_least
from ssl_models.tracking.execution import REPORT, Execution
from stages.digests import policy as code
from stages.results.provenance import FLOW_RUN_URL, execution_file

_RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=MOST_PARALLEL)


@dataclass(frozen=True)
class Bench:
    """What the experiments of one sweep share."""

    children: Children
    copies: queue.SimpleQueue[WorkingCopy]
    at_once: int
    cores: Cores = field(default_factory=Cores)


def points(grid: Mapping[str, Sequence[str]], listed: Sequence[Point] = ()) -> list[Point]:
    """Every combination of the grid's values, then the listed ones."""
    crossed = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    return [*crossed, *(dict(point) for point in listed)]


def split(text: str) -> list[str]:
    """Values between commas; one inside brackets, as in `[1,5],[1,20]`, does not separate."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth:
            values.append("")
        else:
            values[-1] += character
    return values


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def experiment(name: str, point: Point, targets: Sequence[str], bench: Bench) -> State[Any]:
    """Run one DVC experiment in a copy of the working tree, on its share of the cores."""
    copy = bench.copies.get()
    try:
        with bench.cores.share(bench.at_once) as cores:
            settings = [f"{key}={value}" for key, value in point.items()]
            command = copy.command(name, settings, targets)
            status, tail = bench.children.run(command, get_run_logger().info, cores=cores)
        if status == 0:
            copy.fetch(name)
            return Completed(message=_said(point))
    finally:
        bench.copies.put(copy)
    raise StageError(f"{name} ({_said(point)}) failed:\n" + "\n".join(tail), command_status(tail))


def _said(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "as in params.yaml"


def probes(targets: Sequence[str]) -> list[str]:
    """The probe of each model that `targets` name: without it, an experiment has the numbers of the last commit."""
    return list(dict.fromkeys(f"linear-probe@{target.partition('@')[2]}" for target in targets))


def collect(name: str, point: Point, models: Sequence[str]) -> list[Result]:
    """What the experiment `name` has found: its reports from DVC, the MLflow runs from the records of its probes."""
    import dvc.api

    results = []
    for model in models:
        numbers = records.parse(dvc.api.read(f"data/linear-probe/{model}/{REPORT}", rev=name))
        page = mlflow_address(Execution.load(execution_file("linear-probe", model, name)))
        results.append(Result(name, model, point, numbers, page, predictions=_predictions(name, model)))
    return results


def _predictions(name: str, model: str) -> Any:
    """The probe's table of test rows in an experiment; None where it has none."""
    import dvc.api
    import pyarrow.parquet
    from dvc.exceptions import DvcException

    try:
        content = dvc.api.read(f"data/linear-probe/{model}/predictions.parquet", rev=name, mode="rb")
        return pyarrow.parquet.read_table(io.BytesIO(content))
    except (DvcException, OSError, ValueError):
        return None


@flow(name="sweep", task_runner=_RUNNER, on_failure=[notify], on_crashed=[notify])
def sweep(
    targets: list[str],
    grid: dict[str, list[str]] | None = None,
    listed: list[dict[str, str]] | None = None,
    parallel: Annotated[int, Field(ge=1)] | None = None,
) -> State[Any]:
    """Run every point, several at the same time, and end in a table. A point that fails does not stop the others.

    Args:
        targets: stages with a model, e.g. `linear-probe@gpt`; the model's probe runs in any case.
        grid: values of keys of params.yaml, to be crossed.
        listed: further settings, each as it is.
        parallel: most experiments that run at the same time; by default half the cores, at least 2.
    """
    models = list(dict.fromkeys(target.partition("@")[2] for target in targets))
    if not models or not all(models):
        return Failed(message="targets: name stages of models, e.g. linear-probe@gpt")
    url = flow_run_page(runtime.flow_run.id)
    children = Children({FLOW_RUN_URL: url} if url else {})
    prefix = f"sweep-{time.strftime('%m%d-%H%M%S')}"
    named = {f"{prefix}-{number}": point for number, point in enumerate(points(grid or {}, listed or []), 1)}
    at_once = min(parallel or default_parallel(), max(1, len(named)))
    results: list[Result] = []
    try:
        code.refresh()
    except ValueError as error:
        return Failed(message=str(error))
    try:
        with working_copies(prefix, at_once) as copies:
            bench = Bench(children, queue.SimpleQueue(), at_once)
            for copy in copies:
                bench.copies.put(copy)
            try:
                wanted = probes(targets)
                futures = {name: experiment.submit(name, point, wanted, bench) for name, point in named.items()}
                for name, future in futures.items():
                    future.wait()
                    state, point = future.state, named[name]
                    if state.is_completed():
                        results += collect(name, point, models)
                    else:
                        results += [Result(name, model, point, failure=state.message) for model in models]
            except BaseException:
                children.end()  # before its folders go
                raise
    except PublishError as error:
        return Failed(message=str(error))
    except (KeyboardInterrupt, TerminationSignal):
        return Cancelled(message=f"cancelled after {len(results)} results; what it had started has been ended")
    shown = table(results)
    create_markdown_artifact(shown, key="sweep", description=f"{len(results)} results")
    get_run_logger().info("results:\n%s", shown)
    failures = [str(result.failure) for result in results if result.failure]
    if failures:
        return Failed(message="\n\n".join(failures))
    return Completed(message=f"{len(results)} results, the best first:\n{shown}")


def assignments(texts: Sequence[str]) -> dict[str, list[str]]:
    """`key=1,2` as `{key: [1, 2]}`."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals:
            sys.exit(f"error: {text!r} is neither a stage (linear-probe@gpt) nor KEY=VALUE[,VALUE]")
        found[key] = split(values)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description="DVC experiments over params.yaml.")
    parser.add_argument("words", nargs="+", metavar="STAGE|KEY=VALUE[,VALUE]", help="targets, and values to be crossed")
    parser.add_argument("--point", nargs="+", action="append", default=[], metavar="KEY=VALUE", help="one more setting")
    parser.add_argument("--parallel", type=at_least(1), metavar="POINTS", help="most experiments at the same time")
    given = parser.parse_args()
    targets = [word for word in given.words if "=" not in word]
    grid = assignments([word for word in given.words if "=" in word])
    listed = [{key: ",".join(values) for key, values in assignments(point).items()} for point in given.point]
    state: State[Any] = sweep(targets, grid, listed, given.parallel, return_state=True)
    print(f"{state.name}: {state.message}")
    sys.exit(0 if state.is_completed() else 130 if state.is_cancelled() else 1)


if __name__ == "__main__":
    main()
