from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssl_models import artifact, keyed
from ssl_models.encoding import Encoding
from ssl_models.gradient import Learner
from ssl_models.parallel import World
from ssl_models.shards import Shards
from tests.ssl_models import corpora, gradient_cases
from tests.ssl_models.gradient_cases import CASES


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gradient_cases.folder(tmp_path_factory.mktemp("gradient") / "shards")


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case.batch_norm])
@pytest.mark.parametrize("micro_batch", [2, 3])
def test_accumulated_micro_batches_have_the_gradient_of_the_whole_batch(
    case: str, micro_batch: int, shards: Path
) -> None:
    whole = gradient_cases.gradients(case, shards, World(), 8)
    parts = gradient_cases.gradients(case, shards, World(), micro_batch)
    assert sum(name.startswith("gradient") for name in whole) >= 3
    assert any(value.abs().max() > 1e-6 for name, value in whole.items() if name.startswith("gradient"))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_the_second_pass_of_a_coupled_batch_counts_batch_statistics_once(shards: Path) -> None:
    found = gradient_cases.gradients("toy_pairs_norm", shards, World(), 4)
    assert found["buffer norm.num_batches_tracked"] == 2  # two micro-batches, not two passes over each


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
