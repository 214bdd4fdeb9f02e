from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssl_models import artifact, keyed
from ssl_models.encoding import Encoding
from ssl_models.gradient import Learner, summed
from ssl_models.parallel import World
from ssl_models.shards import Shards
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


@pytest.mark.parametrize("case", ["next_token", "text_infilling", "clip"])
def test_micro_batches_side_by_side_have_the_same_bytes_each_time(case: str, shards: Path) -> None:
    first, second = (gradient_cases.gradients(case, shards, World(), 2, sides=2) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def learner(shards: Path, objective: str = "toy_words", **task: object) -> Learner:
    model = corpora.model(objective, dict(task), batch=64)
    built = artifact.build(model, Encoding.load(shards / "encoding"))
    return Learner(built, World(), model.train, bfloat16=False, compiled=False)


@pytest.mark.parametrize(("objective", "task"), [("toy_words", {}), ("toy_pairs", {"norm": True})])
def test_fitting_a_micro_batch_leaves_nothing_behind(
    objective: str, task: dict[str, object], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = learner(shards, objective, **task)
    before = {name: value.clone() for name, value in subject.objective.state_dict().items()}
    index = torch.arange(64)
    batch = subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index))
    assert subject.fit(batch, 64) == 64
    monkeypatch.setattr("ssl_models.gradient.ACTIVATIONS", 20_000)
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


def test_a_forward_pass_that_changes_a_buffer_is_not_paired(two_threads: None, shards: Path) -> None:
    subject = learner(shards)
    subject.objective.register_buffer("seen", torch.zeros(()))
    subject.objective.register_forward_pre_hook(lambda module, inputs: module.seen.add_(1) and None)
    index = torch.arange(8)
    subject.pair(subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index)))
    assert subject.sides == 1
    assert subject.objective.seen == 0


def test_one_thread_has_no_second_side(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    subject = learner(shards)
    index = torch.arange(8)
    subject.pair(subject.prepare(Shards.open(shards).split("train").rows(index.numpy()), keyed.keys(0, 0, index)))
    assert subject.sides == 1


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("micro_batch", "rows"), [(1, 5), (2, 7), (64, 1), (64, 9)])
def test_no_more_rows_are_computed_at_once_than_the_micro_batch_has(
    micro_batch: int, rows: int, sides: int, shards: Path
) -> None:
    subject = learner(shards)
    subject.micro_batch, subject.sides = micro_batch, sides
    micros = subject.micro_batches({"tokens": torch.arange(rows)}, rows)
    assert torch.cat([micro["tokens"] for _, micro in micros]).tolist() == list(range(rows))
    together = min(sides, micro_batch)
    for first in range(0, len(micros), together):
        assert sum(len(micro["tokens"]) for _, micro in micros[first : first + together]) <= micro_batch


def test_a_sum_of_gradients_is_new_and_laid_out_like_its_parameter() -> None:
    parameter, transposed = torch.zeros(3, 2), torch.arange(6.0).view(2, 3).T
    assert summed(parameter, [None, None]) is None
    for gradients, expected in (([None, transposed], transposed), ([transposed] * 3, 3 * transposed)):
        found = summed(parameter, gradients)
        assert found is not None
        assert found.stride() == parameter.stride()
        assert found.data_ptr() != transposed.data_ptr()
        torch.testing.assert_close(found, expected.contiguous())
