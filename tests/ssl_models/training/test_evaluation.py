"""An evaluation sees the same rows under the same keys every time, in eval mode, and leaves training as it was."""

from pathlib import Path

import pytest
import torch

from ssl_models import artifact
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from ssl_models.train import State, evaluate
from ssl_models.training.evaluation import Evaluation
from ssl_models.training.learner import EVALUATION_STEP, Learner
from ssl_models.training.parallel import World
from tests.ssl_models import corpora


@pytest.mark.parametrize("batch", [4, 8])
def test_every_evaluation_is_of_the_same_rows_in_eval_mode(tmp_path: Path, batch: int) -> None:
    shards = Shards.open(corpora.text_shards(tmp_path))
    model = corpora.model("toy_words", {"dropout": 0.5}, batch=batch)
    torch.manual_seed(0)
    objective = artifact.build(model, Encoding.load(tmp_path / "encoding")).train()
    learner = Learner(objective, World(), model.train, bfloat16=False, compiled=False)
    validation = shards.split("validation")
    evaluation, state = Evaluation(learner, shards, validation), State()
    for state.step in (3, 9):
        torch.rand(state.step)  # whatever training drew in between
        evaluate(state, objective, evaluation, None, None)
        assert objective.training
    assert state.evaluations[3] == state.evaluations[9]
    rows, keys = validation.rows(range(10)), keyed.keys(0, EVALUATION_STEP, torch.arange(10))  # validation_rows is 10
    prepared = objective.eval().prepare(rows, keys)
    loss = float(objective(prepared).loss.detach() / objective.count(prepared))
    assert state.evaluations[3]["validation_loss"] == pytest.approx(loss, rel=1e-5)
