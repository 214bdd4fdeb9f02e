import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from ssl_models.cpu.side_by_side import PIECES, Passes, limited, side_by_side

CPU = torch.device("cpu")


def number_of_threads(_: object) -> int:
    return torch.get_num_threads()


@pytest.mark.usefixtures("two_threads")
def test_pieces_are_done_at_the_same_time_and_come_back_in_order() -> None:
    both = threading.Barrier(PIECES, timeout=20)

    def meet(piece: int) -> int:
        both.wait()
        return piece * piece

    assert side_by_side(meet, [3, 1, 4, 2], CPU) == [9, 1, 16, 4]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("pieces", [[0, 1], [0]])
def test_a_piece_has_its_share_of_the_threads_and_the_caller_keeps_its_own(pieces: list[int]) -> None:
    assert side_by_side(number_of_threads, pieces, CPU) == [1] * len(pieces)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_limit_is_of_this_thread_and_ends() -> None:
    with limited(1):
        assert torch.get_num_threads() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "pieces", "device"), [(2, [1], "cpu"), (1, [1, 2], "cpu"), (2, [1, 2, 3], "meta")])
def test_one_piece_one_thread_or_another_device_is_the_callers_own_work(
    threads: int, pieces: list[int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done = side_by_side(lambda _: threading.current_thread(), pieces, torch.device(device))
    assert done == [threading.current_thread()] * len(pieces)


@pytest.mark.usefixtures("two_threads")
def test_gradients_are_recorded_where_the_caller_wants_them() -> None:
    for wanted in (True, False):
        with torch.set_grad_enabled(wanted):
            assert side_by_side(lambda _: torch.is_grad_enabled(), [0, 1], CPU) == [wanted] * 2
    with torch.inference_mode():
        assert side_by_side(lambda _: torch.is_inference_mode_enabled(), [0, 1], CPU) == [True] * 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_a_piece_reaches_the_caller() -> None:
    def fail(piece: int) -> int:
        if piece:
            raise KeyError(piece)
        return piece

    with pytest.raises(KeyError):
        side_by_side(fail, [0, 1], CPU)
    assert side_by_side(fail, [0, 0], CPU) == [0, 0]


class Watched(nn.Module):
    def __init__(self, trace: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.trace = trace

    def forward(self, x: Tensor) -> Tensor:
        self.trace(self)
        return x + 1


def draws_where_a_gradient_is_wanted(module: nn.Module) -> None:
    if torch.is_grad_enabled():
        torch.rand(1)


def threads_of_passes(module: nn.Module) -> list[bool]:
    """Whether each of six passes through `module`, of two calls and seeded as in training, was this thread's own."""

    def work(number: int) -> bool:
        torch.manual_seed(number)
        module(torch.ones(2))
        return threading.current_thread() is threading.main_thread()

    passes = Passes(module)
    return [*passes(work, range(3), CPU), *passes(work, range(3), CPU)]


@pytest.mark.usefixtures("two_threads")
def test_passes_are_side_by_side_once_one_has_left_no_trace() -> None:
    alone = threads_of_passes(Watched(lambda module: None))
    assert alone == [True, True, True, False, False, True]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "trace",
    [
        lambda module: setattr(module, "kept", torch.zeros(1)),
        lambda module: module.register_buffer("late", torch.zeros(1)) if not hasattr(module, "late") else None,
        lambda module: module.seen.add_(1),
        draws_where_a_gradient_is_wanted,
        lambda module: nn.functional.dropout(torch.ones(2), 0.5, training=module.training),
    ],
)
def test_passes_that_leave_a_trace_are_done_in_turn(trace: Callable[[nn.Module], object]) -> None:
    assert all(threads_of_passes(Watched(trace)))


@pytest.mark.usefixtures("two_threads")
def test_passes_that_a_hook_looks_on_are_done_in_turn() -> None:
    module = Watched(lambda module: None)
    module.register_forward_hook(lambda module, inputs, output: None)
    assert all(threads_of_passes(module))
