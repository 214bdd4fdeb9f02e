"""Every command in the README and in docs/ is run, in a small copy of this project whose corpora and models have the
documents' names, beside the servers that the documents start. Then what they promise of the result is looked at: the
pictures, the way back from a run's page to its bytes, and secrets that went nowhere.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.flows.conftest import (
    ROOT,
    Project,
    answers,
    clean_environment,
    die_with_parent_gently,
    end,
    free_port,
    wait_for,
)
from tests.flows.test_databases import holding

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVERS = ("make review", "make schedule")
"""They run beside the commands of every page, as in terminals of their own."""
NOT_RUN = {*SERVERS, "make test"}
"""`make test` is what runs this."""
ELSEWHERE = {"postgresql-and-s3.md": "its servers are started by tests/flows/test_databases.py"}
NEEDLE = "do-not-tell"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA-{NEEDLE}",
    "AWS_SECRET_ACCESS_KEY": f"{NEEDLE}-8f2c",
    "GITHUB_TOKEN": f"ghp_{NEEDLE}",
    "PRETEXT_WEBHOOK": f"http://127.0.0.1:9/hooks/{NEEDLE}",
}
"""Part of the environment of everything that is run here."""
TAKE = """
import json, pathlib, sys
from docs import screenshots
for name, picture, text in screenshots.take():
    picture.save(pathlib.Path(sys.argv[1]) / f"{name}.png")
    pathlib.Path(sys.argv[1], f"{name}.txt").write_text(text)
"""


def blocks(page: Path) -> list[str]:
    """The page's blocks of shell commands."""
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


RUN_HERE = [page for page in PAGES if blocks(page) and page.name not in ELSEWHERE]


def script(block: str) -> str:
    """A block as it is run here."""
    lines = [line for line in block.splitlines() if line.partition("#")[0].strip() not in NOT_RUN]
    return "\n".join(["set -e", *lines])


def tiny_params() -> dict[str, object]:
    ingest = {"reader": "csv", "source": "reviews.csv", "text": "body", "label": "stars"}
    corpus = {
        "modality": "text",
        "ingest": ingest,
        "dedup": {},
        "tokenize": {"algorithm": "bpe", "vocabulary": 400},
        "shard": {"sequence": 16, "validation": 0.1, "probe": 0.5},
    }
    model = {
        "objective": "next_token",
        "backbone": {"architecture": "transformer", "preset": "llama", "layers": 1, "width": 16, "heads": 2},
        "train": {"steps": 4, "batch": 4, "evaluate_every": 4, "validation_rows": 8},
    }
    return {
        "corpora": {"python": corpus, "mine": corpus},
        "models": {"gpt": {"corpus": "python", **model}, "mine": {"corpus": "mine", **model}},
        "probe": {"shots": [1], "draws": 2, "rows": 100, "strengths": [1.0]},
    }


def copy_of_this_project(root: Path) -> dict[str, str]:
    """A git repository at `root` with this project's files and tiny data; returns its environment."""
    asked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in asked.stdout.splitlines():
        source = ROOT / name
        if source.is_file() and not name.startswith(("tests/", "benchmarks/", "data/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, root / name)
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(json.loads(json.dumps(tiny_params())), file)  # without aliases: DVC overrides nothing behind one
    with (root / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "stars"])
        for number in range(160):
            words = ("good fine nice warm", "bad cold sad late")[number % 2].split()
            writer.writerow(
                [" ".join(words[(number * 7 + i * i) % 4] + str(number * i) for i in range(12)), number % 2]
            )
    (root / "compute.yaml").write_text("workers: 1\nlauncher: local\n")
    environment = {**clean_environment(root.parent / "home"), **SECRETS}
    link_environment(root)

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=root, env=environment, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "a project")
    git("clone", "-q", "--bare", ".", str(root.parent / "origin.git"))
    with_token = f"https://user:{NEEDLE}@localhost/origin.git"
    git("config", f"url.{(root.parent / 'origin.git').as_uri()}.insteadOf", with_token)
    git("remote", "add", "origin", with_token)
    git("fetch", "-q")
    changed = (root / "params.yaml").read_text().replace("steps: 4", "steps: 5")
    (root / "params.yaml").write_text(changed)  # a run from a working tree with changes must be reproducible, too
    return environment


def link_environment(root: Path) -> None:
    """`.venv` of a project: this one, which `make environment` takes for installed."""
    (root / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (root / ".venv/installed").touch()
    os.utime(root / ".venv/installed", (2**32, 2**32))


@dataclass
class Served:
    """A server of the pages."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path


@contextmanager
def served(project: Project, module: str, path: str) -> Iterator[Served]:
    """`python -m MODULE`, from when it answers at `path` until the end of the block."""
    port, log = free_port(), project.root.parent / f"{module}.log"
    command = [sys.executable, "-m", module, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=project.root,
            env=project.environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent_gently,
        )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/{path}"), 150, f"{module} answers")
        wait_for(lambda: "http://127.0.0.1" in log.read_text(), 150, f"{module} says where it is")
        yield Served(process, port, log)
    finally:
        if process.poll() is None:
            end(process)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("docs") / "project"
    root.mkdir()
    return Project(root, copy_of_this_project(root))


@pytest.fixture(scope="module")
def schedule(untouched: Project) -> Iterator[Served]:
    with served(untouched, "flows.schedule", "api/health") as found:
        yield found


@pytest.fixture(scope="module")
def project(untouched: Project, schedule: Served) -> Project:
    """A project whose model `gpt` has been trained and probed by a flow, which found the server of `schedule`."""
    done = untouched.run("flows.run", "linear-probe@gpt", timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return untouched


@pytest.fixture(scope="module")
def review(project: Project) -> Iterator[Served]:
    with served(project, "flows.review", "health") as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("review")
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, project: Project) -> None:
    for block in blocks(page):
        done = run_script(script(block), project.root, project.environment)
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stdout[-5000:]}"


def run_script(text: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script as a user does; whatever it has started ends with it."""
    shell = subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = shell.communicate(timeout=580)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(text, shell.returncode, said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_s_page_is_enough_to_train_the_same_bytes_again(project: Project, review: Served, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{review.port}")
    run = json.loads((project.root / ".runs/pretrain/gpt.json").read_text())["run_id"]
    description = client.get_run(run).data.tags["mlflow.note.content"]
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", description, re.DOTALL | re.MULTILINE)
    assert "save this run's artifact `reproduce/changes.patch` in the clone" in description
    assert "must be pushed" not in description

    link_environment(tmp_path)  # an installation takes minutes
    there = "git clone {} reproduced\ncd reproduced\n".format((project.root.parent / "origin.git").as_uri())
    assert commands.startswith(there)
    patch = client.download_artifacts(run, "reproduce/changes.patch", str(tmp_path))
    saved = f"cp {patch} .\nmv ../.venv .\n"
    uri = f"http://reviewer:{NEEDLE}@127.0.0.1:{review.port}"
    environment = {**project.environment, "MLFLOW_TRACKING_URI": uri}
    done = run_script(f"set -e\n{there}{saved}{commands.removeprefix(there)}", tmp_path, environment)
    assert done.returncode == 0, done.stdout[-5000:]

    model = "data/pretrain/gpt/model/model.safetensors"
    assert (tmp_path / "reproduced" / model).read_bytes() == (project.root / model).read_bytes()
    again = json.loads((tmp_path / "reproduced/.runs/pretrain/gpt.json").read_text())["run_id"]
    assert client.get_run(again).info.status == "FINISHED"
    assert NEEDLE not in done.stdout and holding(tmp_path, NEEDLE) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_servers_say_where_they_are_listen_there_alone_and_end_with_ctrl_c(
    schedule: Served, review: Served
) -> None:
    for server in (schedule, review):
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        connections = [connection for member in family for connection in member.net_connections("inet")]
        assert {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(60)
    assert re.search(r"nightly +next .* in \d+\.\d h", schedule.log.read_text())
    assert f"http://127.0.0.1:{schedule.port}" in schedule.log.read_text() and schedule.process.returncode == 0
    assert f"http://127.0.0.1:{review.port}/#/experiments/" in review.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pictures_show_the_real_pages(project: Project, tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        pytest.skip("chromium is not installed (apt-get install chromium fonts-dejavu-core)")
    (project.root / "take.py").write_text(TAKE)
    done = project.run("take", str(tmp_path), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = {path.stem: Image.open(path).convert("RGB") for path in tmp_path.glob("*.png")}
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in pictures}
    told = set(re.findall(r"\]\(([\w-]+)\.png\)", "".join(page.read_text() for page in PAGES)))
    assert set(pictures) == told
    for name, picture in pictures.items():
        colours = sorted(count for count, _ in picture.getcolors(picture.width * picture.height))
        assert len(colours) > 50 and colours[-1] < 0.97 * sum(colours), f"{name} is blank"

    assert "Sort: probe.accuracy" in texts["mlflow-runs"] and "probe.gain.random_init" in texts["mlflow-runs"]
    (_, listed) = texts["mlflow-runs"].split("probe.accuracy\n", 1)
    accuracies = [float(value) for value in re.findall(r"^[01](?:\.\d+)?$", listed, re.MULTILINE)][::4]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies
    assert all(text in texts["mlflow-run"] for text in ("Description", "next_token", "random_init", "git checkout"))
    assert "label_efficiency.png" in texts["mlflow-pictures"]
    assert "Ask questions about your experiments" not in "".join(texts.values())  # MLflow's assistant, over half a page
    assert pictures["prefect-flow-run"].height > 2 * (450 + 900), "the page's own graph is cut off"
    (name,) = re.findall(r"Beginning flow run '([\w-]+)'", texts["prefect-flow-run"])
    assert "7 Task runs" in texts["prefect-flow-run"] and "Completed" in texts["prefect-flow-run"]
    assert all(text in texts["prefect-metrics"] for text in (name, "accuracy", "random init", "gpt", "ingest"))


@pytest.mark.slow
def test_no_secret_of_the_environment_is_anywhere_in_the_project(project: Project) -> None:
    assert all(project.environment[name] == value for name, value in SECRETS.items())
    found = holding(project.root.parent, NEEDLE)
    assert found == [str(project.root / ".git/config")]  # where the user has put it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`?\bmake ([a-z]+)`?", "\n".join(blocks(page))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
