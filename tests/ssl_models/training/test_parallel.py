import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssl_models.training.parallel import World, bounds
from stages.dispatch.local import Lease, Running
from tests.ssl_models import corpora, gradient_cases


@given(st.integers(0, 1000), st.integers(1, 16))
def test_slices_cover_the_batch_in_order_and_differ_by_one_row_at_most(rows: int, size: int) -> None:
    slices = [bounds(rows, rank, size) for rank in range(size)]
    assert [row for start, end in slices for row in range(start, end)] == list(range(rows))
    lengths = [end - start for start, end in slices]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_for_every_objective(tmp_path: Path) -> None:
    shards = gradient_cases.folder(tmp_path / "shards")
    command = [sys.executable, "-m", "tests.ssl_models.gradient_cases", str(shards), str(tmp_path)]
    assert Running(command, corpora.environment(), 2, Lease()).wait() == 0
    for name, case in gradient_cases.CASES.items():
        whole = gradient_cases.gradients(name, shards, World(), 8)
        rounding = 1e-6 * max(1.0, *(float(v.abs().max()) for n, v in whole.items() if n.startswith("gradient")))
        for micro_batch in (8,) if case.batch_norm else (8, 2):
            first, second = (load_file(tmp_path / f"{name}-{micro_batch}-{rank}") for rank in (0, 1))
            torch.testing.assert_close(first, second, rtol=0, atol=0)
            torch.testing.assert_close(first, whole, rtol=1e-5, atol=rounding)
