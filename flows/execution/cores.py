"""Which processor cores a stage gets: its share of the machine, so that stages at the same time do not compete.

A share is an affinity, which every process and library below the stage sees as the size of the machine: workers of the
data stages, threads of a training, of OpenMP, BLAS and Arrow. Nothing of it reaches a job on another machine, as
variables of the environment would. A stage gets an equal part of what is free, left for all that could ever run beside
it: no later one finds nothing, and a stage that will stay alone has the whole machine.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching


class Cores:
    """The cores of this machine that the flow may use, dealt out to stages."""

    def __init__(self, cores: Sequence[int] = ()) -> None:
        self.all = sorted(cores or os.sched_getaffinity(0))
        self._load: Counter[int] = Counter()
        self._stages = 0
        self._lock = threading.Lock()

    @contextmanager
    def share(self, stages: int) -> Iterator[list[int]]:
        """The cores of one more stage, where at most `stages` run at once; a used one only where none is free."""
        with self._lock:
            least = sorted(self.all, key=lambda core: (self._load[core], core))
            free = sum(not self._load[core] for core in self.all)
            taken = sorted(least[: max(1, free // max(1, stages - self._stages))])
            self._load.update(taken)
            self._stages += 1
        try:
            yield taken
        finally:
            with self._lock:
                self._load.subtract(taken)
                self._stages -= 1


def at_once(needs: Mapping[str, Sequence[str]]) -> int:
    """The most stages that can ever run at the same time, of stages with what each needs, in an order that respects it.

    That is the largest antichain, by Dilworth's theorem (1950) the number of stages less that of a maximum matching of
    each with one that waits for it.
    """
    index = {name: number for number, name in enumerate(needs)}
    waits = np.zeros((len(needs), len(needs)), bool)
    for name, needed in needs.items():
        for other in needed:
            if other in index:
                waits[index[name]] |= waits[index[other]]
                waits[index[name], index[other]] = True
    matched = maximum_bipartite_matching(csr_array(waits), perm_type="column")
    return len(needs) - int(np.count_nonzero(matched >= 0))
