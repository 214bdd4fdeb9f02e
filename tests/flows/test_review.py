"""`make review`: a page of another origin, or one that reaches the server under a name of its own, gets nothing."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from flows.review import allowed_hosts
from tests.flows.conftest import answers, end, free_port, make_project, wait_for

EXPERIMENT = {"name": "planted"}
QUERY = {"query": "{ __typename }"}


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("review"), free_port()
    project = make_project(folder / "project", folder / "home")
    process: subprocess.Popen[str] = project.start("flows.review", "--port", str(port))
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), 120, "the review answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def status(address: str, body: object = None, **headers: str) -> tuple[int, str | None]:
    """The status of an answer, and whose pages may read it."""
    request = urllib.request.Request(address, headers={**headers, "Content-Type": "application/json"})
    if body is not None:
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers.get("Access-Control-Allow-Origin")
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Access-Control-Allow-Origin")


@pytest.mark.slow
def test_pages_of_others_neither_write_nor_read(review: str) -> None:
    search = f"{review}/api/2.0/mlflow/experiments/search?max_results=5"
    create = f"{review}/api/2.0/mlflow/experiments/create"
    assert status(search)[0] == 200
    for path in ("api/2.0", "ajax-api/2.0"):
        assert status(f"{review}/{path}/mlflow/experiments/create", EXPERIMENT, Origin="https://evil.example")[0] == 403
    assert status(search, Origin="https://evil.example")[1] is None
    assert status(f"{review}/graphql", QUERY, Origin="https://evil.example")[1] is None
    for host in ("evil.example", "10.evil.example", "192.168.evil.example"):  # a name that was rebound to 127.0.0.1
        for address in (search, create, f"{review}/", f"{review}/graphql"):
            assert status(address, EXPERIMENT if address == create else None, Host=host)[0] == 403
    assert status(create, EXPERIMENT, Origin=review)[0] == 200


def test_only_the_names_of_this_machine_are_answered_unless_others_are_let_in() -> None:
    assert allowed_hosts("127.0.0.1", 5000) == {"MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:5000,localhost:5000"}
    assert allowed_hosts("0.0.0.0", 5000) == {}
