"""Everything that has changed, several models at a time: `python -m flows.repro`, the larger part of `make run`.

`dvc repro` runs one stage after the other, and a small model leaves cores idle. Here one `dvc repro` per corpus, and
then one per model, run side by side on a share of the cores each; DVC's own locks keep them apart, and what is computed
does not depend on how many there are. `python -m flows.run` does the same below Prefect, stage by stage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from flows.execution import dvc_process, graph
from flows.execution.cores import Cores
from flows.execution.graph import GraphError
from flows.execution.stage_task import Children, StageError, default_parallel, patient
from stages.params import UserError, load_params


def rounds() -> list[list[str]]:
    """What has changed: stages of no corpus or model, the last stages of the corpora, and then of the models."""
    changed = [node.name for node in graph.read() if node.changed]
    params = load_params()
    first = [name for name in changed if "@" not in name]
    ends = ((f"shard@{name}" for name in params.corpora), (f"linear-probe@{name}" for name in params.models))
    return [first, *([end for end in some if end in changed] for some in ends)]


def repro(targets: Sequence[str], parallel: int) -> bool:
    """`dvc repro` of each target, `parallel` at a time. False where one fails: then no other is started."""
    beside = max(1, min(parallel, len(targets)))
    children, cores, failed = Children(), Cores(), False

    def run(target: str) -> None:
        nonlocal failed
        if failed:
            return
        try:
            with cores.share(beside) as share:
                program = dvc_process.command("repro", target)
                patient(target, program, children, lambda line: print(line, flush=True), cores=share)
        except StageError:  # its lines are there to be read
            failed = True

    with ThreadPoolExecutor(beside) as pool:
        try:
            list(pool.map(run, targets))
        except KeyboardInterrupt:
            children.end()
            raise
    return not failed


def main() -> None:
    """Reproduce what has changed; exit status 1 where a stage has failed, 130 after Ctrl-C."""
    try:
        sys.exit(not all(repro(targets, default_parallel()) for targets in rounds()))
    except (GraphError, UserError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
