"""The last run that failed: its stages, their sentences and the end of its log. `make failures`, without a server."""

from __future__ import annotations

import argparse
import itertools
from collections import deque
from pathlib import Path

from flows.execution import run_log
from flows.execution.run_log import Ending

LINES = 30
"""Of the log's end."""


def shown(path: Path, ending: Ending, later: int) -> str:
    """What there is to say about a failed run."""
    began = path.name[:15]
    of = f" of {ending.deployment}" if ending.deployment else ""
    when = f"{began[:4]}-{began[4:6]}-{began[6:8]} {began[9:11]}:{began[11:13]}:{began[13:15]} UTC"
    lines = [f"{ending.state}: the run {ending.run}{of}, begun {when}"]
    lines += [f"since then, {later} {'run has' if later == 1 else 'runs have'} come to a good end"] if later else []
    lines += ["", *(ending.failures.values() if ending.failures else [ending.message])]
    with path.open(encoding="utf-8", errors="replace") as log:
        tail = [line.rstrip() for line in deque(log, LINES)]
    lines += ["", f"the last {len(tail)} lines of {path}:", *tail]
    return "\n".join([*lines, *([f"page: {ending.page}"] if ending.page else [])])


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(prog="python -m flows.last_failure", description=__doc__).parse_args()
    found = list(run_log.endings())
    later = list(itertools.takewhile(lambda entry: not entry[1].is_bad, found))
    if len(later) == len(found):
        print(f"no run has failed; {len(found)} {'has' if len(found) == 1 else 'have'} left a log in {run_log.FOLDER}")
        return
    path, ending = found[len(later)]
    good = sum(entry.state == "Completed" for _, entry in later)
    print(shown(path, ending, good))


if __name__ == "__main__":
    main()
