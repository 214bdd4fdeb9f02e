"""PostgreSQL beneath Prefect and MLflow, an S3 bucket beneath DVC, and no password or secret where it can be read."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Project, answers, end, free_port, make_project, wait_for
from tests.flows.servers import PASSWORD, postgres, s3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRACKED = """
import sys
from pathlib import Path
from ssl_models.tracking import store
from stages.results import provenance
client, experiment = store.connect(tracking := provenance.tracking("corpus", "pretrain@m", ()))
run = client.create_run(experiment, run_name="m", tags=tracking.tags)
client.log_metric(run.info.run_id, "probe.accuracy", 0.5)
client.log_text(run.info.run_id, "hello", "hello.txt")
client.set_terminated(run.info.run_id)
"""


def test_prefect_and_mlflow_keep_their_runs_in_postgresql(project: Project, tmp_path: Path) -> None:
    import psycopg

    (project.root / "track.py").write_text(TRACKED)
    (project.root / "dvc.yaml").write_text("stages:\n  track:\n    cmd: python track.py\n")
    with postgres(tmp_path / "postgres.log", ["prefect", "mlflow"]) as server:
        urls = {
            "PREFECT_API_DATABASE_CONNECTION_URL": server.url("prefect", "postgresql+asyncpg"),
            "MLFLOW_TRACKING_URI": server.url("mlflow"),
        }
        done = project.flow(**urls)
        assert done.returncode == 0, done.stdout + done.stderr

        def rows(database: str, query: str) -> list[Any]:
            with psycopg.connect(server.url(database)) as connection, connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()

        assert rows("prefect", "SELECT state_name FROM flow_run") == [("Completed",)]
        assert rows("mlflow", "SELECT name, status FROM runs") == [("m", "FINISHED")]
        for database in ("prefect", "mlflow"):
            tables = rows(database, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
            assert len(tables) > 20
            assert PASSWORD not in str([rows(database, f'SELECT t::text FROM "{table}" t') for (table,) in tables])
        ((location,),) = rows("mlflow", "SELECT artifact_uri FROM runs")
        assert location.startswith((project.root / ".mlflow").as_uri())

        port = free_port()
        review = project.start("flows.review", "--port", str(port), **urls)
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), 90, "the review answers")
            assert not any(PASSWORD in " ".join(process.cmdline()) for process in project.processes())
        finally:
            end(review)
    assert not list(project.root.glob(".prefect/prefect.db")) and not list(project.root.glob("**/mlflow.db"))
    assert PASSWORD not in done.stdout + done.stderr
    assert holding(project.root, PASSWORD) == []


def test_a_clone_pulls_from_s3_what_another_pushed_and_trains_nothing(
    project: Project, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: str
) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "AKIA0123456789PRETEXT", "AWS_SECRET_ACCESS_KEY": "do-not-tell-8f2c"}
    with s3(tmp_path, "my-bucket") as address:
        environment = {**secrets, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        project.environment |= environment
        refused = project.flow("--push", PREFECT_API_URL=server)
        assert refused.returncode == 1 and "no default remote" in refused.stdout
        assert project.times() == {}
        add = project.run("dvc", "remote", "add", "--default", "storage", "s3://my-bucket/pretext")
        assert add.returncode == 0, add.stderr
        done = project.flow("--push")
        assert done.returncode == 0 and "pushed" in done.stdout, done.stdout + done.stderr
        project.git("add", "-A")
        project.git("commit", "-qm", "results")

        clone = make_project(tmp_path / "clone", tmp_path / "home")
        clone.environment |= environment
        clone.git("fetch", "-q", str(project.root), "HEAD")
        clone.git("reset", "-q", "--hard", "FETCH_HEAD")
        pulled = clone.run("dvc", "pull")
        assert pulled.returncode == 0, pulled.stderr
        probed = clone.run("dvc", "repro", "linear-probe@m")
        assert probed.returncode == 0 and clone.times() == {}, probed.stdout
        forced = clone.flow("linear-probe@m", "--force", PREFECT_API_URL=server)
        assert forced.returncode == 0 and set(clone.times()) == {"linear-probe@m"}
    for secret in secrets.values():
        assert secret not in done.stdout + done.stderr
        servers = [folder for folder in tmp_path_factory.getbasetemp().glob("prefect*") if folder.is_dir()]
        assert servers and all(holding(folder, secret) == [] for folder in [project.root, *servers])


def holding(folder: Path, text: str) -> list[str]:
    """Files below `folder` that hold `text`: Prefect's and MLflow's databases, logs, dvc.lock, git objects unpacked."""
    found = [
        str(p) for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and text.encode() in p.read_bytes()
    ]
    for database in folder.rglob("*.db"):
        with sqlite3.connect(database) as connection:
            found += [str(database) for line in connection.iterdump() if text in line]
    git = subprocess.run(["git", "grep", "-l", text, "HEAD"], cwd=folder, capture_output=True, text=True)
    return found + git.stdout.split()


def test_the_check_itself_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"key": "do-not-tell"}))
    assert len(holding(tmp_path, "do-not-tell")) == 1
