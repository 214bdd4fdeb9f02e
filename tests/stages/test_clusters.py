"""Pairs of rows as one number, and how many rows that holds."""

from __future__ import annotations

import numpy as np
import pytest

from stages import clusters
from stages.params import UserError


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
