"""A sweep: overrides of `params.yaml` as DVC experiments, each trained and probed, each its own MLflow run.

    python -m flows.sweep linear-probe@gpt models.gpt.train.steps=50,100 models.gpt.train.learning_rate=0.001,0.003
    python -m flows.sweep linear-probe@gpt --point models.gpt.train.steps=50 --point models.gpt.backbone.layers=6

Values are crossed; each `--point` is one more setting of its own. An experiment runs in a copy of the working tree, so
nothing in it changes; `dvc exp apply NAME` takes one over. The table that ends the sweep says which results the best
one really beats: those whose interval lies wholly below its own.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import State, flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed

from flows import records
from flows.execution.stage_task import Children, Ended, StageError, command_status
from flows.hooks import notify
from flows.links import flow_run_page, mlflow_address
from ssl_models.layout import markdown
from ssl_models.tracking.execution import REPORT, Execution
from stages import code
from stages.provenance import FLOW_RUN_URL, execution_file

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]
Point = dict[str, str]


@dataclass(frozen=True)
class Result:
    """One model of one experiment. Accuracies are the probe's; NaN-free: None where there is none."""

    experiment: str
    model: str
    point: Point
    metrics: Mapping[str, float] = field(default_factory=dict)
    page: str | None = None
    failure: str | None = None

    def metric(self, name: str) -> float | None:
        """`accuracy`, `low` or `high` of the pre-trained encoder."""
        return self.metrics.get(f"pretrained.{name}")


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
def experiment(name: str, point: Point, targets: Sequence[str], children: Children) -> State[Any]:
    """Run one DVC experiment in a copy of the working tree."""
    logger = get_run_logger()
    settings = [part for key, value in point.items() for part in ("--set-param", f"{key}={value}")]
    status, tail = children.run([*DVC, "exp", "run", "--temp", "--name", name, *settings, *targets], logger.info)
    if status == 0:
        return Completed(message=_said(point))
    found = command_status(tail)
    raise StageError(f"{name} ({_said(point)}) failed:\n" + "\n".join(tail), found)


def _said(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "as in params.yaml"


def collect(name: str, point: Point, models: Sequence[str]) -> list[Result]:
    """What the experiment `name` has found: its reports from DVC, the MLflow runs from the records of its probes."""
    import dvc.api

    results = []
    for model in models:
        numbers = records.parse(dvc.api.read(f"data/linear-probe/{model}/{REPORT}", rev=name))
        probed = Execution.load(execution_file("linear-probe", model, name))
        results.append(Result(name, model, point, numbers, mlflow_address(probed)))
    return results


def table(results: Sequence[Result]) -> str:
    """Results in Markdown, the best first, the failed ones last."""
    keys = list(dict.fromkeys(key for result in results for key in result.point))
    order = sorted(results, key=lambda result: -(result.metric("accuracy") or -1.0))
    best = order[0].metric("low") if order else None
    header = ["experiment", "model", *keys, "accuracy", "95 % interval", "beside the best", "MLflow"]
    rows = []
    for place, result in enumerate(order):
        values = [result.point.get(key, "") for key in keys]
        accuracy, low, high = (result.metric(name) for name in ("accuracy", "low", "high"))
        if accuracy is None:
            said = ["failed" if result.failure else "no labels", "", ""]
        else:
            interval = f"{low:.3f}-{high:.3f}" if low is not None and high is not None else ""
            worse = best is not None and high is not None and high < best
            said = [f"{accuracy:.3f}", interval, "best" if place == 0 else "worse" if worse else "not told apart"]
        link = f"[run]({result.page})" if result.page else ""
        rows.append([result.experiment, result.model, *values, *said, link])
    return markdown(header, rows)


@flow(name="sweep", on_failure=[notify], on_crashed=[notify])
def sweep(
    targets: list[str], grid: dict[str, list[str]] | None = None, listed: list[dict[str, str]] | None = None
) -> State[Any]:
    """Run every point, one after the other, and end in a table. A point that fails does not stop the others.

    Args:
        targets: stages with a model, e.g. `linear-probe@gpt`.
        grid: values of keys of params.yaml, to be crossed.
        listed: further settings, each as it is.
    """
    models = [target.partition("@")[2] for target in targets]
    if not models or not all(models):
        return Failed(message="targets: name stages of models, e.g. linear-probe@gpt")
    url = flow_run_page(runtime.flow_run.id)
    children = Children({FLOW_RUN_URL: url} if url else {})
    prefix = f"sweep-{time.strftime('%m%d-%H%M%S')}"
    results: list[Result] = []
    try:
        code.refresh()
    except ValueError as error:
        return Failed(message=str(error))
    try:
        for number, point in enumerate(points(grid or {}, listed or []), 1):
            name = f"{prefix}-{number}"
            state = experiment(name, point, targets, children, return_state=True)
            if state.is_completed():
                results += collect(name, point, models)
            else:
                results += [Result(name, model, point, failure=state.message) for model in models]
    except (KeyboardInterrupt, TerminationSignal, Ended):
        children.end()
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
    given = parser.parse_args()
    targets = [word for word in given.words if "=" not in word]
    grid = assignments([word for word in given.words if "=" in word])
    listed = [{key: ",".join(values) for key, values in assignments(point).items()} for point in given.point]
    state: State[Any] = sweep(targets, grid, listed, return_state=True)
    print(f"{state.name}: {state.message}")
    sys.exit(0 if state.is_completed() else 130 if state.is_cancelled() else 1)


if __name__ == "__main__":
    main()
