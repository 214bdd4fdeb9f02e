"""Next frame: causal in time, beside the copy of the last frame, teacher-forced and free-running named apart."""

import pytest
import torch

from tests.ssl_models.objectives.pictures import encoding, keys, objective, train, vit


def learner():
    return objective("next_frame", vit("mae"), encoding("video", channels=1, frames=6))


def moving(batch: int = 6) -> torch.Tensor:
    """A bright square that moves by one pixel a frame, wrapping around."""
    frame = torch.zeros(batch, 1, 16, 16, dtype=torch.uint8)
    for row in range(batch):
        frame[row, :, 2 + row : 8 + row, 4:10] = 255
    return torch.stack([frame.roll(step, dims=3) for step in range(6)], dim=1)


def test_a_later_frame_changes_no_earlier_prediction():
    task = learner().eval()
    torch.nn.init.normal_(task.head.weight)
    video = moving()[:, :-1]
    before = task.predict(video)
    for frame in range(1, 5):
        changed = video.clone()
        changed[:, frame] = 255 - changed[:, frame]
        after = task.predict(changed)
        torch.testing.assert_close(after[:, :frame], before[:, :frame], atol=1e-5, rtol=0)
        assert (after[:, frame:] - before[:, frame:]).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-3


def test_a_prefix_is_predicted_as_within_the_whole():
    task = learner().eval()
    torch.nn.init.normal_(task.head.weight)
    torch.testing.assert_close(task.predict(moving()[:, :3]), task.predict(moving()[:, :-1])[:, :3], atol=1e-5, rtol=0)


def test_untrained_it_copies_the_last_frame():
    task = learner().eval()
    batch = task.prepare({"pixels": moving()}, keys(6))
    outcome = task(batch)
    unit = moving().float() / 255
    assert float(task.count(batch)) == 6 * 5 * 16 * 16
    expected = ((unit[:, 1:] - unit[:, :-1]) ** 2).mean()
    values = {name: float(total / of) for name, (total, of) in outcome.sums.items()}
    assert float(outcome.loss.detach() / task.count(batch)) == pytest.approx(float(expected))
    assert values["copy_last_frame_mse"] == values["teacher_forced_mse"] == pytest.approx(float(expected))
    held = ((unit[:, 3:] - unit[:, 2:3]) ** 2).mean()
    assert values["free_running_mse"] == values["free_running_copy_mse"] == pytest.approx(float(held))


def test_free_running_sees_no_true_frame_after_the_given_ones():
    task = learner().eval()
    torch.nn.init.normal_(task.head.weight, std=0.01)
    other = moving().clone()
    other[:, 3:] = 77
    assert torch.equal(task.run_on(moving(), 3), task.run_on(other, 3))
    assert task.run_on(moving(), 3).shape == (6, 3, 1, 16, 16)


def test_features_read_all_frames_but_the_first():
    task = learner().eval()
    before = task.features({"pixels": moving()})
    for frame in range(6):
        video = moving()
        video[:, frame] = 255 - video[:, frame]
        for name, values in task.features({"pixels": video}).items():
            assert torch.allclose(values, before[name]) == (frame == 0)


def test_it_beats_the_copy_of_the_last_frame():
    task = learner()
    train(task, {"pixels": moving()}, 60, rate=5e-3)
    task.eval()
    sums = task(task.prepare({"pixels": moving()}, keys(6))).sums
    assert float(sums["teacher_forced_mse"][0]) < 0.5 * float(sums["copy_last_frame_mse"][0])
