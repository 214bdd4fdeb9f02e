"""PostgreSQL and an S3 server for tests: each starts its own, on 127.0.0.1 and a free port, and ends only that."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.conftest import answers, die_with_parent_gently, end, free_port, wait_for

PASSWORD = "pg-secret-1b7e"


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    port: int

    def url(self, database: str, driver: str = "postgresql") -> str:
        return f"{driver}://pretext:{PASSWORD}@127.0.0.1:{self.port}/{database}"


def _programs() -> Path:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    if found is None:
        if os.environ.get("PRETEXT_NO_SKIPS"):
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return Path(found).parent


@contextmanager
def postgres(log_file: Path, databases: list[str]) -> Iterator[Postgres]:
    """A PostgreSQL server with empty databases. It refuses root, so as root it runs as `postgres`."""
    programs, port = _programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="pretext-postgres-"))  # not below pytest's, which only its owner may enter
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    user = "postgres" if os.getuid() == 0 else None
    if user is not None:
        for path in (folder, secret):
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "pretext", "-A", "scram-sha-256", "--no-sync"]
    command = [*initdb, f"--pwfile={secret}"]
    made = subprocess.run(command, capture_output=True, text=True, user=user, cwd="/", timeout=120, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"],
            user=user,
            cwd="/",
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent_gently,
        )
        try:
            _create(port, databases)
            yield Postgres(port)
        finally:
            end(process)
            shutil.rmtree(folder, ignore_errors=True)


def _create(port: int, databases: list[str]) -> None:
    import psycopg

    def connection() -> object:
        try:
            return psycopg.connect(host="127.0.0.1", port=port, user="pretext", password=PASSWORD, dbname="postgres")
        except psycopg.OperationalError:
            return None

    found = wait_for(connection, 60, "PostgreSQL answers")
    found.autocommit = True
    with found.cursor() as cursor:
        for name in databases:
            cursor.execute(f'CREATE DATABASE "{name}"')
    found.close()


@contextmanager
def s3(folder: Path, bucket: str) -> Iterator[str]:
    """An S3 server with an empty bucket; yields its address."""
    pytest.importorskip("moto")
    import boto3

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (folder / "s3.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent_gently,
        )
        try:
            wait_for(lambda: answers(f"{address}/moto-api/"), 60, "the S3 server answers")
            client = boto3.client(
                "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
            )
            client.create_bucket(Bucket=bucket)
            yield address
        finally:
            end(process)
