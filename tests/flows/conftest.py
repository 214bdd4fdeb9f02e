"""Small DVC projects whose stages only wait and write, and servers that start and end with the tests."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssl_models.training.lifetime import die_with_parent

ROOT = Path(__file__).parents[2]
WORK = """
import json, os, pathlib, sys, time
stage, name, seconds, *after = sys.argv[1:]
folder = pathlib.Path("data") / stage / name
folder.mkdir(parents=True, exist_ok=True)
notes = pathlib.Path(os.environ.get("NOTES", "notes")); notes.mkdir(exist_ok=True)
started = time.time()
(notes / f"{stage}-{name}.cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
(notes / f"{stage}-{name}.pid").write_text(str(os.getpid()))
for step in range(int(float(seconds) * 10)):
    time.sleep(0.1)
    if step % 10 == 0: print(f"{name}: step {step}/{int(float(seconds) * 10)}, loss 1", flush=True)
if after[:1] == ["meet"]:  # it ends only if another stage runs at the same time
    (notes / f"met-{os.getpid()}").touch()
    while len(list(notes.glob("met-*"))) < 2:
        time.sleep(0.05)
    after = after[1:]
for status in after:
    print("the last words", flush=True)
    sys.exit(int(status))
(folder / "model").write_text(f"{stage} {name} {sys.argv}")
if stage == "linear-probe":
    seconds = json.loads(pathlib.Path(f"data/pretrain/{name}/report.json").read_text())["seconds"]
accuracy = 0.5 + float(seconds)
probe = {"accuracy": accuracy, "low": accuracy - 0.15, "high": accuracy + 0.15}
(folder / "metrics.json").write_text(json.dumps({"accuracy": accuracy, "loss": 1.5}))
(folder / "report.json").write_text(json.dumps({"pretrained": probe, "loss": 1.5, "seconds": float(seconds)}))
(folder / "loss.csv").write_text("step,loss,validation_loss\\n1,2.0,\\n2,1.5,1.6\\n")
with (notes / "times").open("a") as file:
    file.write(f"{stage}@{name} {started} {time.time()}\\n")
"""
PIPELINE = """
stages:
  shard:
    foreach: ${corpora}
    do:
      cmd: python work.py shard ${key} ${item.work}
      deps: [work.py]
      params: ["corpora.${key}"]
      outs: ["data/shard/${key}/model"]
  pretrain:
    foreach: ${models}
    do:
      cmd: python work.py pretrain ${key} ${item.work}
      deps: ["data/shard/${item.corpus}/model"]
      params: ["models.${key}"]
      outs: ["data/pretrain/${key}/model", "data/pretrain/${key}/report.json": {cache: false}]
      metrics: ["data/pretrain/${key}/metrics.json": {cache: false}]
      plots: ["data/pretrain/${key}/loss.csv": {cache: false}]
  linear-probe:
    foreach: ${models}
    do:
      cmd: python work.py linear-probe ${key} 0
      deps: ["data/pretrain/${key}/model"]
      outs: ["data/linear-probe/${key}/report.json": {cache: false}]
      metrics: ["data/linear-probe/${key}/metrics.json": {cache: false}]
"""


@dataclass
class Project:
    """A DVC project in a folder of its own, with the real `flows` in it."""

    root: Path
    environment: dict[str, str]
    params: dict[str, Any] = field(default_factory=dict)

    def write_params(self, models: dict[str, str], corpora: Sequence[str] = ("c",), shard: str = "0") -> None:
        """`models`: what `work.py` is told of each: seconds, and an exit status where it is to fail."""
        given = {
            name: {"corpus": corpora[i % len(corpora)], "work": work} for i, (name, work) in enumerate(models.items())
        }
        self.params = {"corpora": {name: {"work": shard} for name in corpora}, "models": given}
        (self.root / "params.yaml").write_text(json.dumps(self.params))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.run", *arguments]

    def start(self, *program: str, **environment: str) -> subprocess.Popen[str]:
        """Start a Python module of the project; Ctrl-C reaches it as in a terminal."""
        return subprocess.Popen(
            [sys.executable, "-m", *program],
            cwd=self.root,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *program: str, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python module of the project."""
        return subprocess.run(
            [sys.executable, "-m", *program],
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def flow(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("flows.run", *arguments, **environment)

    def git(self, *arguments: str) -> str:
        asked = subprocess.run(["git", *arguments], cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stderr
        return asked.stdout.strip()

    def times(self) -> dict[str, tuple[float, float]]:
        """When each stage last began and ended."""
        path = self.root / "notes/times"
        lines = path.read_text().splitlines() if path.exists() else []
        return {name: (float(began), float(ended)) for name, began, ended in (line.split() for line in lines)}

    def processes(self) -> list[psutil.Process]:
        """Every living process that works in this project's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                inside = Path(process.cwd()).is_relative_to(self.root)
                if inside and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What `condition` returns once it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path) -> dict[str, str]:
    """Of this process, without anything that would lead Prefect, MLflow or DVC elsewhere; `home` as the user's home."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "PRETEXT", "DVC", "AWS", "GIT"))
    }
    home.mkdir(parents=True, exist_ok=True)
    (home / ".gitconfig").write_text(
        "[user]\n\tname = tester\n\temail = tester@localhost\n[init]\n\tdefaultBranch = main\n"
    )
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def make_project(root: Path, home: Path, pipeline: str = PIPELINE) -> Project:
    root.mkdir(parents=True)
    for name in ("flows", "stages", "ssl_models"):
        (root / name).symlink_to(ROOT / name)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".gitignore").write_text("/.prefect/\n/.mlflow/\n/notes/\n/flows\n/stages\n/ssl_models\n")
    (root / "work.py").write_text(WORK)
    (root / "dvc.yaml").write_text(pipeline)
    shutil.copy(ROOT / "prefect.yaml", root)
    project = Project(root, clean_environment(home))
    project.write_params({"m": "0"})
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-qm", "a project")
    return project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with one corpus and one model; whatever a failed test leaves running in it is ended."""
    made = make_project(tmp_path / "project", tmp_path / "home")
    yield made
    for process in made.processes():
        process.kill()


@contextmanager
def prefect_server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A real Prefect server on a free port of 127.0.0.1; yields its API's address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    settings = {**environment, "PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent_gently,
            cwd=folder,
        )
        try:
            wait_for(lambda: answers(f"{address}/health"), 120, "the Prefect server answers")
            yield address
        finally:
            end(process)


def die_with_parent_gently() -> None:
    """In a server's process: end in order where the tests are killed before they can end it."""
    die_with_parent(signal.SIGTERM)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False


def end(process: subprocess.Popen[Any]) -> None:
    """SIGTERM to a process group that a test has started, SIGKILL to what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that all tests share."""
    folder = tmp_path_factory.mktemp("prefect")
    with prefect_server(folder / "prefect", clean_environment(folder / "home")) as address:
        yield address


def api(address: str, path: str, body: dict[str, Any] | None = None, password: str | None = None) -> Any:
    """The answer of a Prefect API."""
    request = urllib.request.Request(f"{address}{path}", headers={"Content-Type": "application/json"})
    if password is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.method = "POST"
    with urllib.request.urlopen(request, timeout=20) as answer:
        content = answer.read()
    return json.loads(content) if content else None
