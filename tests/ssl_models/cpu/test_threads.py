import threading

import pytest
import torch

from ssl_models.cpu.threads import SIDES, limited, side_by_side, sides


@pytest.mark.usefixtures("two_threads")
def test_parts_are_done_at_the_same_time_and_come_back_in_order() -> None:
    both = threading.Barrier(SIDES, timeout=20)

    def meet(part: int) -> int:
        both.wait()
        return part * part

    assert side_by_side(meet, [3, 1, 4, 2]) == [9, 1, 16, 4]


@pytest.mark.usefixtures("two_threads")
def test_each_side_has_its_share_of_the_threads_and_the_caller_keeps_its_own() -> None:
    assert side_by_side(lambda _: torch.get_num_threads(), [0, 1]) == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_limit_is_of_this_thread_and_ends() -> None:
    before = side_by_side(lambda _: torch.get_num_threads(), [0, 1])
    with limited(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    assert side_by_side(lambda _: torch.get_num_threads(), [0, 1]) == before


@pytest.mark.parametrize(("parts", "count"), [([1, 2, 3], 1), ([1], SIDES), ([], SIDES)])
def test_one_side_or_one_part_is_the_callers_own_work(parts: list[int], count: int) -> None:
    assert side_by_side(lambda _: threading.current_thread(), parts, count) == [threading.current_thread()] * len(parts)


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_a_part_reaches_the_caller() -> None:
    def fail(part: int) -> int:
        if part:
            raise KeyError(part)
        return part

    with pytest.raises(KeyError):
        side_by_side(fail, [0, 1])
    assert side_by_side(fail, [0, 0]) == [0, 0]


def test_a_cpu_has_as_many_sides_as_its_threads_can_fill_and_a_gpu_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides(torch.device("cuda")) == 1
    for threads, expected in ((1, 1), (2, SIDES), (64, SIDES)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert sides(torch.device("cpu")) == expected
