"""What happens when a flow run fails or crashes: the address in PRETEXT_WEBHOOK is told.

The address is often a secret, so it is taken from the environment and never from a parameter, which Prefect shows.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.logging import get_run_logger

from flows.environment import WEBHOOK
from flows.reports.links import flow_run_page

TIMEOUT_SECONDS = 10.0


def notify(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """POST a JSON object: `text` for chat programs, and its parts for others. What goes wrong is logged, not raised."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    url = flow_run_page(flow_run.id)
    parts = {"flow": flow.name, "run": flow_run.name, "state": state.name, "message": state.message or "", "url": url}
    text = f"{flow.name} {flow_run.name}: {state.name}\n{state.message or ''}\n{url or ''}".strip()
    body = json.dumps({"text": text, **parts}).encode()
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        get_run_logger().warning("%s could not be told: %s", WEBHOOK, type(error).__name__)
