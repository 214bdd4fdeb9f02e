"""The pipeline from the command line: `python -m flows.run [TARGET ...]`, which is `make flow`.

Prefect takes two seconds to import, DVC one to look around, and a server of the flow's own a few to start: all at
once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from flows import server
from flows.execution import graph


def options() -> argparse.ArgumentParser:
    """The flow's parameters as options."""
    parser = argparse.ArgumentParser(prog="python -m flows.run", description="Reproduce what has changed, as a flow.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages, e.g. linear-probe@gpt; default: all")
    parser.add_argument("--force", action="store_true", help="run the targets even if they have not changed")
    parser.add_argument("--keep-going", action="store_true", help="go on with what does not need a failed stage")
    parser.add_argument("--push", action="store_true", help="then send the outputs to DVC's default remote")
    parser.add_argument("--commit", metavar="BRANCH", help="then commit dvc.lock, metrics and plots on this branch")
    parser.add_argument(
        "--timeout", action="append", default=[], type=timeout, metavar="[STAGE=]SECONDS", help="may be repeated"
    )
    parser.add_argument("--retries", type=at_least(0), default=2, help="of a failed ingest or training (default: 2)")
    parser.add_argument("--retry-delay", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--parallel", type=at_least(1), metavar="STAGES", help="most stages at the same time")
    return parser


def timeout(text: str) -> tuple[str, float]:
    """`pretrain=3600`, or `3600` for all stages."""
    stage, _, seconds = text.rpartition("=")
    if not float(seconds) > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds (got {text!r})")
    return stage or "all", float(seconds)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option: a whole number, `least` or more."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least} (got {text!r})")
        return int(text)

    return whole


def main() -> None:
    """Run the flow; exit status 0 completed, 1 failed, 130 cancelled."""
    given = vars(options().parse_args())
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not below nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        graph.ask(given["targets"])
        ready = server.bring()
        import httpx

        from flows.pipeline import pipeline

        ready()
        given["timeouts"] = dict(given.pop("timeout"))
        try:
            state = pipeline(**given, return_state=True)
        except httpx.HTTPError as error:
            sys.exit(f"error: the Prefect server has gone ({error}); what stages have made is kept: run again")
    except server.ServerError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Cancelled: before any stage had been started")
        sys.exit(130)
    print(f"{state.name}: {state.message}")
    sys.exit(0 if state.is_completed() else 130 if state.is_cancelled() else 1)


if __name__ == "__main__":
    main()
