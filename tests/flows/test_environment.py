"""The password of the project's Prefect servers."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from flows import environment


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", *environment.PASSWORDS, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"):
        monkeypatch.setenv(name, "")  # so that it is as before in the end, whatever a test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))


def test_the_password_is_made_once_whoever_asks_first_and_is_its_owners_alone() -> None:
    before = os.umask(0)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(environment.password())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.umask(before)
    assert len(set(found)) == 1 and found[0].startswith("pretext:") and len(found[0]) > 40
    assert stat.S_IMODE(environment.password_file().stat().st_mode) == 0o600
    assert [path.name for path in environment.home().iterdir()] == ["password"]


def test_a_guarded_server_wants_the_password_and_answers_its_own_pages_alone() -> None:
    environment.guard("http://127.0.0.1:4200/api")
    assert (
        os.environ["PREFECT_SERVER_API_AUTH_STRING"] == os.environ["PREFECT_API_AUTH_STRING"] == environment.password()
    )
    assert os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"


def test_a_password_of_the_users_own_stays() -> None:
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = "me:mine"
    environment.guard("http://127.0.0.1:4200/api")
    assert os.environ["PREFECT_API_AUTH_STRING"] == "me:mine"


def test_whoever_names_the_schedules_server_says_its_password_and_to_no_other() -> None:
    password = environment.password()
    environment.remember_server("http://127.0.0.1:4200/api")
    os.environ["PREFECT_API_URL"] = "http://elsewhere:4200/api"
    environment.prepare()
    assert "PREFECT_API_AUTH_STRING" not in os.environ
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:4200/api"
    environment.prepare()
    assert os.environ["PREFECT_API_AUTH_STRING"] == password
