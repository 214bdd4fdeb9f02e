"""Batch normalisation has the numbers of its declared batch, whatever micro-batch and processes it is computed in."""

import sys
from pathlib import Path

import pytest
from torch import nn

from ssl_models import train
from ssl_models.config import Model, Train
from ssl_models.training.batch_norm import GlobalBatchNorm, has_batch_norm, layout
from ssl_models.training.job import Job, JobError
from ssl_models.training.parallel import World
from stages.dispatch.local import Lease, Running
from tests.ssl_models import corpora
from tests.ssl_models.objectives import pictures
from tests.ssl_models.test_train import Asked

STEPS, BATCH = 5, 16
RUN = """
import sys, torch
torch.set_num_threads(1)
from ssl_models.train import main
sys.exit(main())
"""
TASKS = {"rotation": {"augment": {}}, "contrastive": {"projector": [16, 8]}}


@pytest.mark.parametrize(
    ("batch", "group", "processes", "expected"),
    [(16, 16, 1, (16, 1)), (16, 16, 3, (6, 3)), (16, 4, 2, (4, 1)), (16, 8, 4, (4, 2)), (16, 4, 4, (4, 1))],
)
def test_a_group_lies_on_one_process_or_fills_several(
    batch: int, group: int, processes: int, expected: tuple[int, int]
) -> None:
    assert layout(batch, group, processes) == expected


@pytest.mark.parametrize(("batch", "group", "processes"), [(24, 8, 2), (16, 8, 3)])
def test_a_group_that_would_straddle_processes_is_refused_in_one_sentence(
    batch: int, group: int, processes: int
) -> None:
    with pytest.raises(ValueError, match=rf"^normalisation_batch: groups of {group} of {batch} rows cannot be laid"):
        layout(batch, group, processes)


def test_global_batch_norm_has_the_state_of_the_one_it_replaces() -> None:
    assert set(GlobalBatchNorm(4).state_dict()) == set(nn.BatchNorm2d(4).state_dict())
    assert has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not has_batch_norm(nn.Linear(2, 2))


def job(folder: Path, objective: str, shards: Path, normalisation_batch: int | None, micro_batch: int) -> Path:
    settings = Train(
        steps=STEPS, batch=BATCH, normalisation_batch=normalisation_batch, evaluate_every=STEPS, validation_rows=24
    )
    model = Model(
        corpus="pictures",
        objective=objective,
        backbone=pictures.resnet(layers=[1, 1, 1, 1]),
        task=TASKS[objective],
        train=settings,
    )
    return corpora.job(folder, model, shards, micro_batch=micro_batch)


def curve(folder: Path) -> list[float]:
    lines = (folder / "output" / "loss.csv").read_text().splitlines()[1:]
    return [float(number) for line in lines for number in line.split(",")[1:] if number]


@pytest.mark.slow
@pytest.mark.parametrize("objective", TASKS)
def test_the_loss_curve_is_the_same_for_any_micro_batch_and_number_of_processes(objective: str, tmp_path: Path) -> None:
    shards = corpora.picture_shards(tmp_path / "shards")
    for group, settings in ((None, ((16, 1), (16, 2))), (4, ((16, 1), (8, 1), (4, 1), (16, 2), (4, 2)))):
        curves = []
        for micro_batch, processes in settings:
            folder = tmp_path / f"{group}-{micro_batch}-{processes}"
            command = [sys.executable, "-c", RUN, str(job(folder, objective, shards, group, micro_batch))]
            assert Running(command, corpora.environment(), processes, Lease()).wait() == 0
            curves.append(curve(folder))
        assert len(curves[0]) == STEPS + 1
        for other in curves[1:]:
            assert other == pytest.approx(curves[0], rel=1e-5)


def test_a_group_that_no_process_can_hold_is_one_sentence_that_names_key_and_mend(tmp_path: Path) -> None:
    shards = corpora.picture_shards(tmp_path / "shards")
    with pytest.raises(JobError) as error:
        train.run(Job.load(job(tmp_path / "job", "rotation", shards, None, 8)), World(), Asked())
    assert str(error.value) == (
        "models.tiny.train.normalisation_batch: 16 rows share the statistics of batch normalisation, which makes 16 "
        "rows on each process, and micro_batch is 8; raise compute.yaml's micro_batch or the number of processes, or "
        "set normalisation_batch to a divisor of the batch of at most 8"
    )


def test_a_normalisation_batch_divides_the_batch() -> None:
    with pytest.raises(ValueError, match="normalisation_batch: 3 does not divide a batch of 8"):
        Train(steps=1, batch=8, normalisation_batch=3)
