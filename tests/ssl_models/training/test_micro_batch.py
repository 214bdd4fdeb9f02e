from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ssl_models.objectives import Batch
from ssl_models.training.micro_batch import cut, fit_gpu
from ssl_models.training.parallel import World


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(("micro_batch", "rows"), [(2, 7), (3, 8), (5, 23), (9, 9), (64, 1), (64, 9)])
def test_no_more_rows_are_computed_at_once_than_the_micro_batch_has(micro_batch: int, rows: int, pieces: int) -> None:
    micros = cut({"tokens": torch.arange(rows)}, rows, World(), micro_batch, pieces)
    assert torch.cat([micro["tokens"] for _, micro in micros]).tolist() == list(range(rows))
    assert [first for first, _ in micros] == [int(micro["tokens"][0]) for _, micro in micros]
    largest = sorted(len(micro["tokens"]) for _, micro in micros)[-pieces:]
    assert sum(largest) <= micro_batch


@pytest.mark.parametrize(("limit", "sizes"), [(20, [64, 32, 16]), (64, [64]), (0, [64, 32, 16, 8, 4, 2, 1])])
def test_a_micro_batch_on_a_gpu_is_halved_until_it_fits(
    limit: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    model, tried = nn.Linear(3, 1), list[int]()

    def trial(batch: Batch) -> Tensor:
        tried.append(len(batch["x"]))
        if tried[-1] > limit:
            raise torch.OutOfMemoryError
        return model(batch["x"]).sum()

    assert fit_gpu(model, trial, {"x": torch.ones(64, 3)}, 64, torch.device("cpu")) == sizes[-1]
    assert tried == sizes
    assert model.weight.grad is None
