from pathlib import Path

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
@pytest.mark.parametrize(("micro_batch", "pieces"), [(2, 1), (3, 1), (8, 2), (3, 2)])
def test_accumulated_micro_batches_have_the_gradient_of_the_whole_batch(
    case: str, micro_batch: int, pieces: int, shards: Path
) -> None:
    whole = gradient_cases.gradients(case, shards, World(), 8)
    parts = gradient_cases.gradients(case, shards, World(), micro_batch, pieces)
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
def test_no_pass_of_ours_leaves_a_trace(case: str, shards: Path) -> None:
    subject, prepared = gradient_cases.learner(CASES[case], shards, World(), bfloat16=False)
    batch = prepared(3)
    subject.gradient(3, batch, subject.objective.count(batch), CASES[case].rows)
    assert subject._passes._traceless
    assert all(subject._passes._traceless.values())


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
    monkeypatch.setattr("ssl_models.training.micro_batch.ACTIVATIONS", 20_000)
    small = subject.fit(batch, 64)
    assert 1 <= small < 64
    assert subject.fit(batch, 64) == small
    torch.testing.assert_close(subject.objective.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in subject.objective.parameters())


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_parameters_are_read_through_the_objectives_call_alone(micro_batch: int, shards: Path) -> None:
    subject = learner(shards, "toy_pairs")
    subject.micro_batch = micro_batch
    called = list[str]()
    subject.objective.register_forward_pre_hook(lambda module, given: called.append(given[1]))
    batch = some_batch(subject, shards)
    subject.gradient(0, batch, subject.objective.count(batch), 8)
    assert all(parameter.grad is not None for parameter in subject.objective.parameters())
    pieces = 8 // micro_batch * 2
    assert called == ["embed"] * pieces + ["couple"] + ["embed"] * (pieces if micro_batch < 8 else 0)


def test_what_couples_a_batch_gets_its_keys_in_order(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, given = learner(shards, "toy_pairs"), list[torch.Tensor]()
    subject.micro_batch = 2
    couple = type(subject.objective).couple
    monkeypatch.setattr(
        type(subject.objective), "couple", lambda self, all, keys: (given.append(keys), couple(self, all, keys))[1]
    )
    batch = some_batch(subject, shards)
    subject.gradient(0, batch, subject.objective.count(batch), 8)
    assert torch.equal(given[0], keyed.keys(0, 0, torch.arange(8)))


def test_statistics_are_summed_over_micro_batches(shards: Path) -> None:
    parts, whole = (gradient_cases.gradients("toy_teacher", shards, World(), size) for size in (2, 8))
    assert parts["statistic rows"] == 8
    assert parts["statistic outputs"].abs().max() > 0.1
    # Normalised rows sum to the normalisation's bias, whatever batch they are normalised in.
    torch.testing.assert_close(parts["statistic outputs"], whole["statistic outputs"], rtol=1e-4, atol=1e-4)


def test_a_loss_without_a_gradient_is_an_error(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = learner(shards)
    loss = type(subject.objective).loss

    def detached(self: Objective, batch: Batch) -> Outcome:
        return Outcome(loss(self, batch).loss.detach())

    monkeypatch.setattr(type(subject.objective), "loss", detached)
    batch = some_batch(subject, shards)
    for subject.pieces in (1, 2):
        with pytest.raises(RuntimeError, match="does not require grad"):
            subject.gradient(0, batch, torch.tensor(8.0), 8)


def test_a_sum_of_gradients_is_new_and_laid_out_like_its_parameter() -> None:
    parameter, transposed = torch.zeros(3, 2), torch.arange(6.0).view(2, 3).T
    assert summed(parameter, [None, None]) is None
    for gradients, expected in (([None, transposed], transposed), ([transposed] * 3, 3 * transposed)):
        found = summed(parameter, gradients)
        assert found is not None
        assert found.stride() == parameter.stride()
        assert found.data_ptr() != transposed.data_ptr()
        torch.testing.assert_close(found, expected.contiguous())
