"""Every command in the README and in docs/ is run, in a small copy of this project whose corpora and models have the
documents' names. What serves until Ctrl-C is awaited until it prints its address, and then stopped as a user would.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import ROOT, clean_environment, free_port

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVERS = ("make review", "make schedule")
NOT_RUN = {"make test": "it is what runs this"}
ELSEWHERE = {
    "postgresql-and-s3.md": "its servers are started by tests/flows/test_databases.py and tests/test_remote.py"
}
SERVE = """
import os, signal, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True, start_new_session=True)
found = False
for line in server.stdout:
    print(line, end="")
    if "http://127.0.0.1" in line and not found:
        found = True
        os.killpg(server.pid, signal.SIGINT)
server.wait(60)
sys.exit(0 if found else 1)
"""
PREAMBLE = f'set -e\nserve() {{ {shlex.quote(sys.executable)} serve.py "$@"; }}\n'


def blocks(page: Path) -> list[str]:
    """The page's blocks of shell commands."""
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


RUN_HERE = [page for page in PAGES if blocks(page) and page.name not in ELSEWHERE]


def script(block: str, port: int) -> str:
    """A block as it is run here: ports that are free, and servers that come to an end."""
    lines = []
    for line in block.splitlines():
        command = line.partition("#")[0].strip()
        if command in NOT_RUN:
            continue
        if command in SERVERS:
            module = command.replace("make ", "flows.")
            line = f"serve python -m {module} --port {port}"
        lines.append(line)
    return PREAMBLE + "\n".join(lines) + "\n"


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
        YAML().dump(tiny_params(), file)
    with (root / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "stars"])
        for number in range(160):
            words = ("good fine nice warm", "bad cold sad late")[number % 2].split()
            writer.writerow(
                [" ".join(words[(number * 7 + i * i) % 4] + str(number * i) for i in range(12)), number % 2]
            )
    (root / "compute.yaml").write_text("workers: 1\nlauncher: local\n")
    (root / "serve.py").write_text(SERVE)
    (root / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (root / ".venv/installed").touch()
    environment = clean_environment(root.parent / "home")
    for command in (["git", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "a project"]):
        subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    return environment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("docs") / "project"
    root.mkdir()
    environment = copy_of_this_project(root)
    command = [sys.executable, "-m", "dvc", "repro", "linear-probe@gpt"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, environment


@pytest.fixture
def no_leftovers(project: tuple[Path, dict[str, str]]) -> Iterator[None]:
    yield
    (project[0] / ".prefect/server").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page.name not in ELSEWHERE], ids=lambda p: p.name
)
def test_the_commands_of_a_page_work(page: Path, project: tuple[Path, dict[str, str]]) -> None:
    root, environment = project
    for block in blocks(page):
        text = script(block, free_port())
        shell = subprocess.Popen(
            ["bash", "-c", text],
            cwd=root,
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
        assert shell.returncode == 0, f"{page.name}:\n{block}\n{said[-5000:]}"


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
