from pathlib import Path

import pytest
import torch

from ssl_models.training import checkpoint
from ssl_models.training.checkpoint import Checkpoint
from ssl_models.training.job import JobError


def example(step: int) -> Checkpoint:
    tensors = {"model/weight": torch.arange(6.0).view(2, 3) * step, "losses": checkpoint.history([0.1] * step)}
    return Checkpoint(step, tensors, {"seconds": 0.1, "evaluations": {"4": {"validation_loss": 1.25}}})


def assert_equal(found: Checkpoint | None, wanted: Checkpoint) -> None:
    assert found is not None
    assert (found.step, found.meta) == (wanted.step, wanted.meta)
    torch.testing.assert_close(found.tensors, wanted.tensors, rtol=0, atol=0)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(3))
    found, damaged = checkpoint.load(tmp_path)
    assert_equal(found, example(3))
    assert not damaged


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent") == (None, [])


def test_the_newest_two_are_kept_by_number_of_steps(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, example(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-0000000010", "step-0000000100"]


@pytest.mark.parametrize("file", [checkpoint.STATE, checkpoint.META])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.save(tmp_path, example(5))
    checkpoint.save(tmp_path, example(6))
    path = tmp_path / "step-0000000006" / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    found, damaged = checkpoint.load(tmp_path)
    assert_equal(found, example(5))
    assert len(damaged) == 1 and "step-0000000006" in damaged[0]
    assert checkpoint.load(tmp_path)[1] == []  # the damaged one is gone


def test_a_write_that_was_killed_is_never_taken_for_whole(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(5))
    partial = tmp_path / ".step-0000000006.partial"
    partial.mkdir()
    (partial / checkpoint.STATE).write_bytes(b"half")
    assert_equal(checkpoint.load(tmp_path)[0], example(5))
    assert not partial.exists()


def test_the_writer_saves_the_values_at_the_time_of_asking(tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path)
    asked = example(2)
    writer.save(asked)
    asked.tensors["model/weight"].zero_()
    writer.wait()
    assert_equal(checkpoint.load(tmp_path)[0], example(2))


def test_a_write_that_fails_is_warned_of_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = checkpoint.Writer(tmp_path)
    writer.save(example(1))
    writer.wait()

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(checkpoint, "save_file", full)
        writer.save(example(2))
        writer.wait()
    error = capsys.readouterr().err
    assert "the checkpoint of step 2 could not be written" in error and "No space left on device" in error
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    writer.save(example(3))
    writer.wait()
    assert not writer.busy
    assert_equal(checkpoint.load(tmp_path)[0], example(3))


def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, example(5))

    def stale(path: Path) -> str:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as disk:
        disk.setattr(checkpoint, "checksum", stale)
        with pytest.raises(JobError, match=r"step-0000000005 cannot be read \(Stale file handle\); try again"):
            checkpoint.load(tmp_path)
    assert_equal(checkpoint.load(tmp_path)[0], example(5))
