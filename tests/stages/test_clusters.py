"""Pairs of rows that several looks at them propose."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.clusters import distinct

ROW = st.integers(0, 2**31 - 1)
PAIRS = st.lists(st.tuples(ROW, ROW), max_size=20)


@given(st.lists(PAIRS, max_size=4))
def test_distinct_pairs_are_all_of_them_once_in_order(lists: list[list[tuple[int, int]]]) -> None:
    arrays = [np.array(pairs, np.int64).reshape(-1, 2) for pairs in lists]
    assert [tuple(pair) for pair in distinct(arrays).tolist()] == sorted({pair for pairs in lists for pair in pairs})
