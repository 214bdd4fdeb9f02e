"""`make screenshots`: docs/*.png from the real MLflow and Prefect pages of this project's runs.

Both servers are started here, on 127.0.0.1, and end with this process; PREFECT_API_URL names one that runs already.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from flows import leash
from flows.links import ranked_runs

FOLDER = Path(__file__).parent
SIZE = {"width": 1400, "height": 900}
COLOURS = 128
"""A palette keeps the files small."""
PATIENCE_SECONDS = 120.0
PAGE_MILLISECONDS = 150_000
"""For a page to show what it is about, on a busy machine."""
SETTLE_MILLISECONDS = 2500
"""For charts and graphs to be drawn once the network is quiet."""
PREFECT_PORT, MLFLOW_PORT = 4291, 5091
CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-unsafe-swiftshader",
)


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


def post(address: str, body: dict[str, Any]) -> Any:
    """The answer of a JSON API."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def shoot(page: Page, address: str, name: str, shows: str, folder: Path) -> Path:
    """A picture of the page at `address`, once it shows the text `shows`."""
    page.goto(address, wait_until="load", timeout=PAGE_MILLISECONDS)
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=shows, timeout=PAGE_MILLISECONDS)
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    more = page.get_by_text("Show more", exact=True)
    if more.count():
        more.first.click()
        page.wait_for_timeout(SETTLE_MILLISECONDS)
    path = folder / f"{name}.png"
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    return path


def prefect_pages(page: Page, api: str, folder: Path) -> None:
    """The graph of the longest flow run, and its artifacts."""
    runs = post(f"{api}/flow_runs/filter", {"limit": 50, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
    if not runs:
        sys.exit("error: Prefect has no completed flow run; make one: make flow")
    longest = max(runs, key=lambda run: run["total_run_time"])
    base = api.removesuffix("/api")
    shoot(page, f"{base}/runs/flow-run/{longest['id']}", "prefect-flow-run", longest["name"], folder)
    wanted = {"flow_run_id": {"any_": [longest["id"]]}, "key": {"any_": ["metrics"]}}
    for artifact in post(f"{api}/artifacts/filter", {"artifacts": wanted})[:1]:
        shoot(page, f"{base}/artifacts/artifact/{artifact['id']}", "prefect-metrics", "linear-probe", folder)


def _as_trainer(page: Page, base: str) -> None:
    """MLflow opens on its pages for language model applications, with an assistant beside them: choose ours."""
    page.goto(base, wait_until="load", timeout=PAGE_MILLISECONDS)
    page.get_by_text("Model training", exact=True).first.click(timeout=PAGE_MILLISECONDS)
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    assistant = page.get_by_text("MLflow Assistant")
    if assistant.count():
        page.locator("button", has=page.locator("svg")).last.scroll_into_view_if_needed()
        assistant.first.locator("xpath=ancestor::*[.//button][1]//button").last.click()


def mlflow_pages(page: Page, base: str, folder: Path) -> None:
    """The run list, best probe first, and the best run's page with its description and its pictures."""
    search = f"{base}/api/2.0/mlflow"
    experiments = post(f"{search}/experiments/search", {"max_results": 100})["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments if experiment["name"] != "Default"]
    order = ["metrics.`probe.accuracy` DESC"]
    runs = post(f"{search}/runs/search", {"experiment_ids": ids, "max_results": 1, "order_by": order}).get("runs")
    if not runs:
        sys.exit("error: MLflow has no run; make one: make run")
    info = runs[0]["info"]
    _as_trainer(page, base)
    shoot(page, ranked_runs(base, info["experiment_id"]), "mlflow-runs", info["run_name"], folder)
    run = f"{base}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    shoot(page, run, "mlflow-run", "Description", folder)
    shoot(page, f"{run}/artifacts/probe/label_efficiency.png", "mlflow-pictures", "Path:", folder)


def main() -> None:
    """Take every picture, into `docs/` or the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("error: there is no chromium here; install it: apt-get install chromium")
    with ExitStack() as stack:
        api = os.environ.get("PREFECT_API_URL")
        if api is None:
            api = f"http://127.0.0.1:{PREFECT_PORT}/api"
            port = str(PREFECT_PORT)
            stack.enter_context(
                served(["prefect", "server", "start", "--host", "127.0.0.1", "--port", port], f"{api}/health")
            )
        review = f"http://127.0.0.1:{MLFLOW_PORT}"
        stack.enter_context(served(["flows.review", "--port", str(MLFLOW_PORT)], f"{review}/health"))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=browser_path, args=list(CHROMIUM))
        page = browser.new_page(viewport=SIZE)
        mlflow_pages(page, review, folder)
        prefect_pages(page, api, folder)
        browser.close()


if __name__ == "__main__":
    main()
