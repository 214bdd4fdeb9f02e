"""Everything that has changed, several models at a time: `python -m flows.repro`, the larger part of `make run`.

`dvc repro` runs one stage after the other, and a small model leaves cores idle. Here one `dvc repro` per corpus, and
then one per model, run side by side on a share of the cores each; each is told its stages one by one, as DVC would lock
what lies before them against the others. What is computed does not depend on how many there are. `python -m flows.run`
does the same below Prefect, stage by stage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from flows.execution import dvc_process, graph
from flows.execution.cores import Cores
from flows.execution.graph import GraphError
from flows.execution.stage_task import Children, StageError, default_parallel, patient
from stages.params import UserError, load_params

DATA_STAGES = ("ingest", "dedup", "tokenize", "shard")
MODEL_STAGES = ("pretrain", "linear-probe")

Chain = tuple[str, ...]
"""Stages of one corpus or model, each after what it needs."""


def rounds() -> list[list[Chain]]:
    """What has changed: stages of no corpus or model, those of each corpus, and then those of each model."""
    changed = [node for node in graph.read() if node.changed]
    params = load_params()
    first: list[Chain] = [(node.name,) for node in changed if not node.instance]

    def chains(kinds: Sequence[str], names: Iterable[str]) -> list[Chain]:
        found = (tuple(node.name for node in changed if node.kind in kinds and node.instance == name) for name in names)
        return [chain for chain in found if chain]

    return [first, chains(DATA_STAGES, params.corpora), chains(MODEL_STAGES, params.models)]


def repro(chains: Sequence[Chain], parallel: int) -> bool:
    """`dvc repro` of each chain, `parallel` at a time. False where one fails: then no other is started."""
    beside = max(1, min(parallel, len(chains)))
    children, cores, failed = Children(), Cores(), False

    def run(chain: Chain) -> None:
        nonlocal failed
        if failed:
            return
        try:
            with cores.share(beside) as share:
                program = dvc_process.command("repro", "--single-item", *chain)
                patient(chain[-1], program, children, lambda line: print(line, flush=True), cores=share)
        except StageError:  # its lines are there to be read
            failed = True

    with ThreadPoolExecutor(beside) as pool:
        try:
            list(pool.map(run, chains))
        except KeyboardInterrupt:
            children.end()
            raise
    return not failed


def main() -> None:
    """Reproduce what has changed; exit status 1 where a stage has failed, 130 after Ctrl-C."""
    try:
        sys.exit(not all(repro(chains, default_parallel()) for chains in rounds()))
    except (GraphError, UserError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
