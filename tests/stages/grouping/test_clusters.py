"""Pairs of rows: what several looks at them propose, each as one number, and how many rows that holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.grouping import clusters
from stages.grouping.clusters import distinct
from stages.params import UserError

ROW = st.integers(0, 2**31 - 1)
PAIRS = st.lists(st.tuples(ROW, ROW), max_size=20)


@given(st.lists(PAIRS, max_size=4))
def test_distinct_pairs_are_all_of_them_once_in_order(lists: list[list[tuple[int, int]]]) -> None:
    arrays = [np.array(pairs, np.int64).reshape(-1, 2) for pairs in lists]
    assert [tuple(pair) for pair in distinct(arrays).tolist()] == sorted({pair for pairs in lists for pair in pairs})


def test_pairs_of_the_last_rows_are_packed_in_order_and_come_back() -> None:
    last = clusters.MOST_ROWS - 1
    pairs = np.array([[0, last], [last - 1, 0], [last, last]])
    numbers = clusters.packed(pairs)
    assert (np.diff(numbers) > 0).all()
    assert (clusters.unpacked(numbers) == pairs).all()


def test_more_rows_than_pairs_can_name_are_refused() -> None:
    labelled = np.broadcast_to(np.False_, clusters.MOST_ROWS + 1)
    with pytest.raises(UserError, match="at most 2147483648 rows, not 2147483649: split the corpus"):
        clusters.gather([], labelled)
