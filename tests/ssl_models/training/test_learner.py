from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssl_models import artifact
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from ssl_models.objectives import Batch, Objective, Outcome
from ssl_models.training.learner import Learner, summed
from ssl_models.training.parallel import World
from tests.ssl_models import corpora, gradient_cases
from tests.ssl_models.gradient_cases import CASES


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gradient_cases.folder(tmp_path_factory.mktemp("gradient") / "shards")


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case.batch_norm])
@pytest.mark.parametrize(("micro_batch", "sides"), [(2, 1), (3, 1), (8, 2), (3, 2)])
def test_accumulated_micro_batches_have_the_gradient_of_the_whole_batch(
    case: str, micro_batch: int, sides: int, shards: Path
) -> None:
    whole = gradient_cases.gradients(case, shards, World(), 8)
    parts = gradient_cases.gradients(case, shards, World(), micro_batch, sides)
    assert sum(name.startswith("gradient") for name in whole) >= 3
    assert any(value.abs().max() > 1e-6 for name, value in whole.items() if name.startswith("gradient"))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_the_second_pass_of_a_coupled_batch_counts_batch_statistics_once(shards: Path) -> None:
    found = gradient_cases.gradients("toy_pairs_norm", shards, World(), 4)
    assert found["buffer norm.num_batches_tracked"] == 2  # two micro-batches, not two passes over each


@pytest.mark.parametrize("case", ["next_token", "text_infilling", "masked_pixels", "clip"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_micro_batches_side_by_side_have_the_same_bytes_each_time(case: str, bfloat16: bool, shards: Path) -> None:
    first, *others = (gradient_cases.gradients(case, shards, World(), 2, 2, bfloat16) for _ in range(6))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case.batch_norm])
def test_no_forward_pass_of_ours_leaves_a_trace(case: str, two_threads: None, shards: Path) -> None:
    subject, prepared = gradient_cases.learner(CASES[case], shards, World(), bfloat16=False)
    subject.pair(prepared(3))
    assert subject.sides == 2


def learner(shards: Path, objective: str = "toy_words", **task: object) -> Learner:
    model = corpora.model(objective, dict(task), batch=64)
    built = artifact.build(model, Encoding.load(shards / "encoding"))
    return Learner(built, World(), model.train, bfloat16=False, compiled=False)


def some_batch(subject: Learner, shards: Path) -> Batch:
    index = torch.arange(8)
    return subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index))


@pytest.mark.parametrize(("objective", "task"), [("toy_words", {}), ("toy_pairs", {"norm": True})])
def test_fitting_a_micro_batch_leaves_nothing_behind(
    objective: str, task: dict[str, object], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = learner(shards, objective, **task)
    before = {name: value.clone() for name, value in subject.objective.state_dict().items()}
    index = torch.arange(64)
    batch = subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index))
    assert subject.fit(batch, 64) == 64
    monkeypatch.setattr("ssl_models.training.learner.ACTIVATIONS", 20_000)
    small = subject.fit(batch, 64)
    assert 1 <= small < 64
    assert subject.fit(batch, 64) == small
    torch.testing.assert_close(subject.objective.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in subject.objective.parameters())


@pytest.mark.parametrize(("limit", "sizes"), [(20, [64, 32, 16]), (64, [64]), (0, [64, 32, 16, 8, 4, 2, 1])])
def test_a_micro_batch_on_a_gpu_is_halved_until_it_fits(
    limit: int, sizes: list[int], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = learner(shards)
    index = torch.arange(64)
    batch = subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    trial, tried = subject._trial, list[int]()

    def limited(part: dict[str, torch.Tensor]) -> torch.Tensor:
        tried.append(len(part["tokens"]))
        if tried[-1] > limit:
            raise torch.OutOfMemoryError
        return trial(part)

    monkeypatch.setattr(subject, "_trial", limited)
    assert subject._fit_gpu(batch, 64) == sizes[-1]
    assert tried == sizes
    assert all(parameter.grad is None for parameter in subject.objective.parameters())


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("objective", "task", "sides"),
    [
        ("toy_words", {}, 2),
        ("toy_words", {"dropout": 0.5}, 1),
        ("toy_pairs", {}, 2),
        ("toy_pairs", {"norm": True}, 1),
    ],
)
def test_micro_batches_are_paired_where_their_order_is_nothing_to_the_forward_pass(
    objective: str, task: dict[str, object], sides: int, shards: Path
) -> None:
    subject = learner(shards, objective, **task)
    subject.objective.train()
    before = {name: value.clone() for name, value in subject.objective.state_dict().items()}
    index = torch.arange(64)
    batch = subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index))
    subject.pair(batch)
    assert subject.sides == sides
    assert len(subject.micro_batches(batch, 64)) == sides
    torch.testing.assert_close(subject.objective.state_dict(), before, rtol=0, atol=0)


def draws_where_a_gradient_is_wanted(module: torch.nn.Module) -> None:
    if torch.is_grad_enabled():
        torch.rand(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "trace",
    [
        lambda module: setattr(module, "kept", torch.zeros(1)),
        lambda module: module.register_buffer("late", torch.zeros(1)),
        lambda module: module.seen.add_(1),
        draws_where_a_gradient_is_wanted,
    ],
)
def test_a_forward_pass_that_leaves_a_trace_is_not_paired(
    trace: Callable[[torch.nn.Module], object], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = learner(shards)
    subject.objective.register_buffer("seen", torch.zeros(()))
    forward = type(subject.objective).forward
    monkeypatch.setattr(type(subject.objective), "forward", lambda self, batch: (trace(self), forward(self, batch))[1])
    subject.pair(some_batch(subject, shards))
    assert subject.sides == 1
    assert subject.objective.seen == 0


def test_a_forward_pass_that_a_hook_looks_on_is_not_paired(two_threads: None, shards: Path) -> None:
    subject = learner(shards)
    next(subject.objective.children()).register_forward_hook(lambda module, inputs, output: None)
    subject.pair(some_batch(subject, shards))
    assert subject.sides == 1


def test_a_forward_pass_that_changes_its_batch_is_not_paired(
    two_threads: None, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = learner(shards)
    forward = type(subject.objective).forward
    monkeypatch.setattr(
        type(subject.objective), "forward", lambda self, batch: (batch["tokens"].add_(0), forward(self, batch))[1]
    )
    subject.pair(some_batch(subject, shards))
    assert subject.sides == 1


def test_a_micro_batch_of_one_row_is_computed_alone(two_threads: None, shards: Path) -> None:
    subject = learner(shards)
    subject.micro_batch = 1
    subject.pair(some_batch(subject, shards))
    assert subject.sides == 1


def test_a_loss_without_a_gradient_is_an_error(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = learner(shards)
    forward = type(subject.objective).forward

    def detached(self: Objective, batch: Batch) -> Outcome:
        return Outcome(forward(self, batch).loss.detach())

    monkeypatch.setattr(type(subject.objective), "forward", detached)
    batch = some_batch(subject, shards)
    for sides in (1, 2):
        subject.sides = sides
        with pytest.raises(RuntimeError, match="does not require grad"):
            subject.gradient(0, batch, torch.tensor(8.0), 8)


def test_one_thread_has_no_second_side(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    subject = learner(shards)
    subject.pair(some_batch(subject, shards))
    assert subject.sides == 1


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("micro_batch", "rows"), [(2, 7), (3, 8), (5, 23), (9, 9), (64, 1), (64, 9)])
def test_no_more_rows_are_computed_at_once_than_the_micro_batch_has(
    micro_batch: int, rows: int, sides: int, shards: Path
) -> None:
    subject = learner(shards)
    subject.micro_batch, subject.sides = micro_batch, sides
    micros = subject.micro_batches({"tokens": torch.arange(rows)}, rows)
    assert torch.cat([micro["tokens"] for _, micro in micros]).tolist() == list(range(rows))
    largest = sorted(len(micro["tokens"]) for _, micro in micros)[-sides:]
    assert sum(largest) <= micro_batch


def test_a_sum_of_gradients_is_new_and_laid_out_like_its_parameter() -> None:
    parameter, transposed = torch.zeros(3, 2), torch.arange(6.0).view(2, 3).T
    assert summed(parameter, [None, None]) is None
    for gradients, expected in (([None, transposed], transposed), ([transposed] * 3, 3 * transposed)):
        found = summed(parameter, gradients)
        assert found is not None
        assert found.stride() == parameter.stride()
        assert found.data_ptr() != transposed.data_ptr()
        torch.testing.assert_close(found, expected.contiguous())
