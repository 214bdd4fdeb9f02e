"""The MLflow run of a training job, kept by a thread so that neither MLflow's import nor a slow server holds up a
step.

Metrics are buffered and sent in batches; a step is never sent twice, because a resumed job continues the run whose id
lies beside its checkpoints and skips what the run already has. A server that is down costs a warning, not the
training: what could not be sent is tried again, and in the end kept in a file.
"""

from __future__ import annotations

import functools
import json
import math
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssl_models.addresses import public
from ssl_models.files import write_text
from ssl_models.layout import flat
from ssl_models.objectives import Examples
from ssl_models.tracking import description
from ssl_models.tracking.store import connect
from ssl_models.training.job import Job

Status = Literal["FINISHED", "FAILED", "KILLED"]

AT_ONCE = 1000
"""Most metrics in one batch that MLflow takes."""
SECONDS = 3.0
"""Longest wait of a metric in the buffer."""
STEPS = 10_000
"""Most steps of a run whose metrics are sent: of longer runs every second, third, ... step."""
HELD = 50_000
"""Most points kept for a server that is gone; the older half then goes to the file of what no server took."""
SHOWN = 100
"""Most examples kept for it."""
MACHINE_SECONDS, MACHINE_SHARE, MACHINE_MOST = 5.0, 1 / 1000, 60.0
"""Between samples of the machine's use: at first, as a share of the time so far, and at most."""
RETRY = 20.0
"""Seconds between attempts to reach a tracking server that failed."""
FAREWELL = 60.0
"""Seconds that the end of a job waits for the last metrics to be sent."""


@dataclass(frozen=True)
class _Point:
    step: int
    evaluation: bool
    values: dict[str, float]
    milliseconds: int = field(default_factory=lambda: int(time.time() * 1000))


@dataclass(frozen=True)
class _Shown:
    step: int
    examples: Examples


class Tracker:
    """The run of one job. `memory` is the file beside the checkpoints that remembers the run's id.

    Once the job was `asked` to stop, the run says so within seconds: a step that takes longer than the patience of
    whoever asked is killed without a farewell.
    """

    def __init__(self, job: Job, memory: Path, asked: threading.Event | None = None) -> None:
        self._job, self._memory = job, memory
        self._asked = asked or threading.Event()
        self._every = math.ceil(job.model.train.steps / STEPS)
        self._queue: queue.SimpleQueue[_Shown | Status] = queue.SimpleQueue()
        self._points: deque[_Point] = deque()
        """What the server does not have yet: the training thread appends, the tracking thread takes from the left."""
        self._shown: deque[_Shown] = deque(maxlen=SHOWN)
        self._run: dict[str, str | None] = {"run_id": None, "experiment_id": None}
        self._client: Any = None
        self._monitor: Any = None
        self._sent = {False: 0, True: 0}
        self._warned = False
        self._began = time.monotonic()
        self._next_attempt = 0.0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        if job.tracking.uri is not None:
            self._thread.start()

    def metrics(self, step: int, values: dict[str, float], evaluation: bool = False) -> None:
        """Metrics after `step` completed steps; those of an evaluation come beside those of the step itself."""
        wanted = evaluation or step % self._every == 0 or step == self._job.model.train.steps
        if wanted and self._job.tracking.uri is not None:
            self._points.append(_Point(step, evaluation, values))

    def unsent(self) -> list[tuple[int, bool, dict[str, float], int]]:
        """Metrics that only this process knows, for a checkpoint to keep."""
        return [(p.step, p.evaluation, p.values, p.milliseconds) for p in self._points.copy()]

    def restore(self, unsent: list[tuple[int, bool, dict[str, float], int]]) -> None:
        """Take over what a killed process had not sent."""
        self._points.extend(_Point(*point) for point in unsent)

    def examples(self, step: int, examples: Examples) -> None:
        """Texts and pictures made after `step` steps."""
        if examples.texts or examples.pictures:
            self._queue.put(_Shown(step, examples))

    def finish(self, status: Status) -> dict[str, str | None]:
        """Send what is left, end the run, and return where it is; `run_id` is None without a server."""
        self._queue.put(status)
        if self._thread.is_alive():
            self._thread.join(FAREWELL)
        self._keep([*self._points.copy()])
        return {**self._run, "tracking_uri": self._address()}

    def _address(self) -> str | None:
        """The server, as it may be written down."""
        return self._job.tracking.uri and public(self._job.tracking.uri)

    def _work(self) -> None:
        self._attempt(self._send)
        while True:
            try:
                item = self._queue.get(timeout=SECONDS)
            except queue.Empty:
                self._attempt(self._send)
                self._attempt(self._show)
                if self._asked.is_set():
                    self._attempt(functools.partial(self._say, "KILLED"))
                continue
            if isinstance(item, _Shown):
                self._shown.append(item)
                self._attempt(self._show)
                continue
            for action in (self._send, self._show, functools.partial(self._end, item)):
                self._attempt(action, last=True)
            return

    def _attempt(self, action: Callable[[], None], last: bool = False) -> None:
        """Do `action` with a connection; a failure is warned of, once until the server answers again, and the next
        attempt waits a while."""
        if len(self._points) > HELD:
            self._keep([self._points.popleft() for _ in range(HELD // 2)])
        if not last and time.monotonic() < self._next_attempt:
            return
        try:
            if self._client is None:
                self._begin()
            self._watch_machine()
            action()
            self._warned = False
        except Exception as error:
            self._next_attempt = time.monotonic() + RETRY
            if not self._warned:
                self._warned = True
                reason = str(error).strip().splitlines() or [type(error).__name__]
                print(
                    f"warning: MLflow at {self._address()} does not answer ({public(reason[0])[:200]}); "
                    "training goes on",
                    file=sys.stderr,
                    flush=True,
                )

    def _begin(self) -> None:
        """Connect, and continue the remembered run or begin one."""
        client, experiment = connect(self._job.tracking)
        run_id = self._remembered(client)
        if run_id is None:
            run = client.create_run(experiment, run_name=self._job.name, tags=self._job.tracking.tags)
            run_id = str(run.info.run_id)
            write_text(self._memory, json.dumps({"run_id": run_id, "tracking_uri": self._address()}))
        self._describe(client, run_id)
        self._run = {"run_id": run_id, "experiment_id": experiment}
        self._client = client

    def _remembered(self, client: Any) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            memory = json.loads(self._memory.read_text())
            if memory["tracking_uri"] != self._address():
                return None
            run = client.get_run(memory["run_id"])
        except (OSError, ValueError, KeyError):
            return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        run_id = str(run.info.run_id)
        client.update_run(run_id, status="RUNNING")
        for evaluation, name in ((False, "loss"), (True, "validation_loss")):
            history = client.get_metric_history(run_id, name) if name in run.data.metrics else []
            self._sent[evaluation] = max((metric.step for metric in history), default=0)
        return run_id

    def _describe(self, client: Any, run_id: str) -> None:
        """Parameters, dataset inputs and the description; saying them again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        parameters = flat(self._job.model.model_dump(mode="json"))
        client.log_batch(run_id, params=[Param(name, str(value)[:6000]) for name, value in parameters.items()])
        inputs = [
            DatasetInput(
                Dataset(d.name, d.digest, "local", json.dumps({"uri": d.source})),
                [InputTag("mlflow.data.context", d.context)],
            )
            for d in self._job.tracking.datasets
        ]
        if inputs:
            client.log_inputs(run_id, inputs)
        client.set_tag(run_id, description.NOTE, description.opening(self._job))
        for path, text in self._job.tracking.files.items():
            client.log_text(run_id, text, path)

    def _watch_machine(self) -> None:
        """Log the use of processors, memory, disk, network and GPUs, as `system/...`, until the run ends; ever more
        seldom, so that a month's samples are few. A monitor ends by itself where it finds no server."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        between = min(max(MACHINE_SECONDS, (time.monotonic() - self._began) * MACHINE_SHARE), MACHINE_MOST)
        if self._monitor is not None and self._monitor._process.is_alive():
            self._monitor.sampling_interval = between
            return
        monitor: Any = SystemMetricsMonitor
        self._monitor = monitor(self._run["run_id"], between, resume_logging=True, tracking_uri=self._job.tracking.uri)
        self._monitor.start()

    def _send(self) -> None:
        """Send the buffer; a point whose step the run already has is dropped."""
        from mlflow.entities import Metric

        while self._points:
            taken, metrics = list[_Point](), list[Metric]()
            for point in self._points.copy():
                if len(metrics) + len(point.values) > AT_ONCE:
                    break
                taken.append(point)
                if point.step > self._sent[point.evaluation]:
                    metrics += [Metric(k, v, point.milliseconds, point.step) for k, v in point.values.items()]
            if metrics:
                self._client.log_batch(self._run["run_id"], metrics=metrics)
            for point in taken:
                self._sent[point.evaluation] = max(self._sent[point.evaluation], point.step)
                self._points.popleft()

    def _end(self, status: Status) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        self._say(status)

    def _say(self, status: Status) -> None:
        self._client.set_terminated(self._run["run_id"], status)

    def _show(self) -> None:
        run_id = self._run["run_id"]
        while self._shown:
            step, examples = self._shown[0].step, self._shown[0].examples
            for name, text in examples.texts.items():
                self._client.log_text(run_id, text, f"examples/{name}/step-{step:08d}.md")
            for name, picture in examples.pictures.items():
                file = f"examples/{name}/step-{step:08d}.png"
                self._client.log_image(run_id, picture.cpu().numpy(), artifact_file=file)
            self._shown.popleft()

    def _keep(self, points: list[_Point]) -> None:
        """What no server took lies beside the checkpoints."""
        if not points:
            return
        path = self._memory.parent.with_suffix(".metrics.jsonl")
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": point.step, **point.values}) + "\n" for point in points)
            sentence = f"metrics that MLflow did not take are in {path}"
        except OSError as error:
            sentence = f"{len(points)} metrics that MLflow did not take are lost: {error}"
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
