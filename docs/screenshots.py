"""`make screenshots`: docs/*.png from the real MLflow and Prefect pages of this project's runs.

Both servers are started here, on 127.0.0.1, and end with this process; one that runs already (`make schedule`, or an
MLflow server that keeps the runs) is used.
"""

from __future__ import annotations

import base64
import io
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Error, Page, ViewportSize, sync_playwright

from flows import environment
from flows.execution import leash
from flows.reports.links import ranked_runs
from stages.results.provenance import tracking_uri

FOLDER = Path(__file__).parent
PAGE: ViewportSize = {"width": 1400, "height": 900}
GRAPH_DENSITY = 2
"""A graph has the smallest print."""
COLOURS = 128
"""A palette keeps the files small."""
PATIENCE_SECONDS = 150.0
"""For a server to answer and a page to show what it is about, on a busy machine."""
STILL_MILLISECONDS = 1000
"""A page that has not changed for so long is drawn."""
CHROMIUM = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""Prefect draws its graph with WebGL, and there may be no GPU."""
TRAINER = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""
"""MLflow would open on its pages for applications of language models, with an assistant over half of them."""
COMPLETED = (36, 160, 77)
"""What Prefect's graph paints a completed task with."""


@contextmanager
def served(module: list[str], address: str) -> Iterator[None]:
    """A server that answers at `address`, until the end of the block."""
    command = leash.command([sys.executable, "-m", *module], 5.0)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"error: python -m {' '.join(module)} has not started")
            time.sleep(0.3)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> str:
    """A port of 127.0.0.1 at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def token() -> str | None:
    """Prefect's password as its API and its pages want it; None where the server asks for none."""
    password = os.environ.get(environment.PASSWORDS[0])
    return None if password is None else base64.b64encode(password.encode()).decode()


def post(address: str, body: dict[str, Any], **headers: str) -> Any:
    """The answer of a JSON API."""
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def drawn(page: Page, is_drawn: Callable[[Image.Image], bool] = lambda picture: True) -> Image.Image:
    """The page as a picture, once it stands still and holds what it must."""
    deadline, before = time.monotonic() + PATIENCE_SECONDS, b""
    while True:
        now = page.screenshot(animations="disabled")
        picture = Image.open(io.BytesIO(now)).convert("RGB")
        if now == before and is_drawn(picture):
            return picture
        if time.monotonic() > deadline:
            sys.exit(f"error: {page.url} is not drawn")
        before = now
        page.wait_for_timeout(STILL_MILLISECONDS)


def opened(page: Page, address: str, *shows: str) -> None:
    """Go to `address` and wait until the page shows every text of `shows`."""
    wanted = "texts => texts.every(text => document.body.innerText.includes(text))"
    try:
        page.goto(address, wait_until="commit", timeout=1000 * PATIENCE_SECONDS)
        page.wait_for_function(wanted, arg=list(shows), timeout=1000 * PATIENCE_SECONDS, polling=250)
    except Error:
        said = " ".join(page.inner_text("body").split())[:500]
        sys.exit(f"error: {address} does not show {', '.join(shows)}, but: {said or 'nothing'}")


def tasks_are_painted(picture: Image.Image) -> bool:
    """Whether a picture holds the graph of a flow run: Prefect draws it some time after the page."""
    pixels = np.asarray(picture, dtype=np.int16)
    near = (np.abs(pixels - COMPLETED) < 16).all(axis=2)
    return int(near.sum()) > 500


Shot = tuple[str, Image.Image, str]
"""A picture's name, the picture, and the text of its page."""


def prefect_pages(browser: Browser, api: str) -> Iterator[Shot]:
    """The page of the longest flow run with its graph, and its metrics."""
    base, known = api.removesuffix("/api"), token()
    headers = {} if known is None else {"Authorization": f"Basic {known}"}
    log_in = "" if known is None else f"localStorage.setItem('prefect-password', '{known}');"
    wanted = {"flows": {"name": {"any_": ["pretext"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    runs = post(f"{api}/flow_runs/filter", {"limit": 200, **wanted}, **headers)
    if not runs:
        sys.exit("error: Prefect has no completed flow run; make one: make flow")
    run = max(runs, key=lambda run: run["total_run_time"])
    address = f"{base}/runs/flow-run/{run['id']}"
    page = browser.new_page(viewport=PAGE, device_scale_factor=GRAPH_DENSITY)
    page.add_init_script(log_in)
    opened(page, address, run["name"], "Task Runs")
    yield "prefect-flow-run", _with_graph(page), page.inner_text("body")

    asked = {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["metrics"]}}
    (artifact, *_) = post(f"{api}/artifacts/filter", {"artifacts": asked}, **headers)
    page = browser.new_page(viewport=PAGE)
    page.add_init_script(log_in)
    opened(page, f"{base}/artifacts/artifact/{artifact['id']}", "accuracy", "ingest")
    yield "prefect-metrics", drawn(page), page.inner_text("body")


def _with_graph(page: Page) -> Image.Image:
    """The upper part of a flow run's page, and below it the graph by dependency, in full screen."""
    above = drawn(page, tasks_are_painted)
    part = page.locator(".flow-run-graphs").bounding_box()
    assert part is not None
    above = above.crop((0, 0, above.width, round(GRAPH_DENSITY * (part["y"] + part["height"]))))
    page.get_by_label("Run Graph Options").click()
    page.get_by_text("Dependency grid").click()
    page.keyboard.press("Escape")
    page.get_by_title("Toggle fullscreen").click()
    drawn(page)
    page.get_by_title("Recenter graph").click()
    graph = drawn(page, tasks_are_painted)
    both = Image.new("RGB", (above.width, above.height + graph.height))
    both.paste(above, (0, 0))
    both.paste(graph, (0, above.height))
    return both


def best_run(api: str) -> dict[str, Any]:
    """The run with the best probe in the experiment that has most runs."""
    experiments = post(f"{api}/experiments/search", {"max_results": 100}).get("experiments", [])
    order = {"max_results": 1000, "order_by": ["metrics.`probe.accuracy` DESC"]}
    found = [
        post(f"{api}/runs/search", {"experiment_ids": [experiment["experiment_id"]], **order}).get("runs", [])
        for experiment in experiments
    ]
    runs: list[Any] = max(found, key=len, default=[])
    if not runs:
        sys.exit("error: MLflow has no run; make one: make run")
    return dict(runs[0]["info"])


def mlflow_pages(browser: Browser, base: str) -> Iterator[Shot]:
    """The run list, best probe first, and the best run's page with its description and one of its pictures."""
    run = best_run(f"{base}/api/2.0/mlflow")
    page = browser.new_page(viewport=PAGE)
    page.add_init_script(TRAINER)
    opened(page, ranked_runs(base, run["experiment_id"]), run["run_name"], "Sort: probe.accuracy", "probe.accuracy")
    yield "mlflow-runs", drawn(page), page.inner_text("body")

    address = f"{base}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
    page = browser.new_page(viewport=PAGE)
    page.add_init_script(TRAINER)
    opened(page, address, "Description", "Linear probe", "About this run")
    drawn(page)
    more = page.get_by_text("Show more", exact=True)
    if more.count():
        more.first.click()
    yield "mlflow-run", drawn(page), page.inner_text("body")

    opened(page, f"{address}/artifacts/probe/label_efficiency.png", "label_efficiency.png", "Path:")
    page.wait_for_function("[...document.images].some(picture => picture.naturalWidth > 300)", polling=250)
    page.get_by_text("Path:").first.evaluate("line => line.style.visibility = 'hidden'")  # a path of this machine
    yield "mlflow-pictures", drawn(page), page.inner_text("body")


def take() -> Iterator[Shot]:
    """Every picture, from servers that live as long as this iterator."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: there is no chromium here; install it: apt-get install chromium fonts-dejavu-core")
    with ExitStack() as stack:
        api = os.environ.get("PREFECT_API_URL")
        if api is None:
            port = free_port()
            api = f"http://127.0.0.1:{port}/api"
            environment.guard(api)
            start = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
            stack.enter_context(served(start, f"{api}/health"))
        base = tracking_uri().rstrip("/")
        if not base.startswith("http"):
            port = free_port()
            base = f"http://127.0.0.1:{port}"
            stack.enter_context(served(["flows.review", "--port", port], f"{base}/health"))
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        yield from mlflow_pages(browser, base)
        yield from prefect_pages(browser, api)
        browser.close()


def main() -> None:
    """Take every picture, into `docs/`."""
    for name, picture, _ in take():
        path = FOLDER / f"{name}.png"
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
