"""Shares of the cores: never more than there are, never fewer than could be had, whatever the graph."""

from __future__ import annotations

import itertools
from graphlib import TopologicalSorter

from hypothesis import given
from hypothesis import strategies as st

from flows.execution.cores import Cores, at_once

Needs = dict[str, tuple[str, ...]]


@st.composite
def graphs(draw: st.DrawFn) -> Needs:
    names = [f"s{number}" for number in range(draw(st.integers(1, 7)))]
    subsets = [
        st.lists(st.sampled_from(names[:place]), unique=True) if place else st.just([]) for place in range(len(names))
    ]
    return {name: tuple(draw(subset)) for name, subset in zip(names, subsets, strict=True)}


def below(needs: Needs, name: str) -> set[str]:
    return {name}.union(*(below(needs, other) for other in needs[name]))


@given(graphs())
def test_the_most_stages_at_once_are_the_largest_set_of_which_none_waits_for_another(needs: Needs) -> None:
    pairs = {frozenset((a, b)) for a in needs for b in below(needs, a) - {a}}
    sizes = [
        len(chosen)
        for size in range(1, len(needs) + 1)
        for chosen in itertools.combinations(needs, size)
        if not any(frozenset(pair) in pairs for pair in itertools.combinations(chosen, 2))
    ]
    assert at_once(needs) == max(sizes)


@given(graphs(), st.integers(1, 16), st.integers(1, 8), st.randoms(use_true_random=False))
def test_shares_never_overlap_while_there_are_as_many_cores_as_stages(
    needs: Needs, count: int, parallel: int, random: object
) -> None:
    """Stages that start as soon as they may and end in any order."""
    cores, order = Cores(range(count)), TopologicalSorter(needs)
    order.prepare()
    ready, running, ended = list(order.get_ready()), {}, set[str]()
    while ready or running:
        while ready and len(running) < parallel:
            left = {name: needed for name, needed in needs.items() if name not in ended}
            share = cores.share(min(parallel, at_once(left)))
            running[ready.pop()] = share, share.__enter__()
        taken = [core for _, held in running.values() for core in held]
        assert all(held for _, held in running.values())
        assert count < parallel or len(set(taken)) == len(taken)
        name = sorted(running)[random.randrange(len(running))]  # type: ignore[attr-defined]
        running.pop(name)[0].__exit__(None, None, None)
        ended.add(name)
        order.done(name)
        ready += order.get_ready()


def test_a_chain_has_the_whole_machine_and_three_branches_a_third_each() -> None:
    cores = Cores(range(12))
    with cores.share(at_once({"shard": (), "pretrain": ("shard",), "probe": ("pretrain",)})) as alone:
        assert alone == list(range(12))
    branches: Needs = {"shard": (), **dict.fromkeys("abc", ("shard",))}
    with cores.share(at_once(branches)) as first, cores.share(at_once(branches)) as second:
        assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7])
    eight = Cores(range(8))
    with eight.share(3) as first, eight.share(3) as second, eight.share(3) as third:
        assert sorted(first + second + third) == list(range(8))
