"""Every pretext task on an accelerator that is not there: `python -m tests.ssl_models.device_cases` prints the name of
each case that went through preparation, loss, gradient, evaluation and features without mixing devices.

Its tensors have a device, types and shapes, but no values (`FakeTensorMode`), so what would stop a job on a GPU - a
mask, an index or a constant made on the CPU - stops it here. A process of its own, for PyTorch is told of the device.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ssl_models import artifact
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.training.learner import Learner
from ssl_models.training.parallel import World
from ssl_models.training.totals import Totals
from tests.ssl_models import corpora, gradient_cases
from tests.ssl_models.gradient_cases import CASES, FRAMES, Case
from tests.ssl_models.objectives import pictures

KIND = "imagined"


class Constants(TorchFunctionMode):
    """`torch.tensor(..., device=accelerator)`, which fake tensors leave to a real device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device).type == KIND:
            del kwargs["device"]
            return moved(func(*args, **kwargs), torch.device(device))
        return func(*args, **kwargs)


def moved(value: Tensor, device: torch.device) -> Tensor:
    """As `value.to(device)`, without the values."""
    return torch.empty(value.shape, dtype=value.dtype, device=device)


def go_through(case: Case, shards: Path, device: torch.device) -> None:
    """All that training does with an objective, on `device`; an exception where devices are mixed."""
    model = corpora.model(case.objective, case.task, batch=case.rows).model_copy(update={"backbone": case.backbone})
    encoding = (
        Encoding.load(shards / "encoding")
        if case.modality == "text"
        else pictures.encoding(case.modality, folder=shards / "pictures", frames=FRAMES)
    )
    objective = artifact.build(model, encoding)
    clean = gradient_cases._rows(case, shards, torch.arange(case.rows))
    with FakeTensorMode(shape_env=ShapeEnv()), Constants():
        for module in objective.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(moved(parameter, device), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else moved(buffer, device)
        rows = {name: moved(value, device) for name, value in clean.items()}
        learner = Learner(objective, World(device=device), model.train, bfloat16=False, compiled=False)
        learner.micro_batch = 4
        learner._seed = lambda step, row: None  # type: ignore[method-assign]  # the device has no generator
        keys = keyed.keys(0, 3, torch.arange(case.rows, device=device))
        batch = learner.prepare(rows, keys)
        learner.gradient(3, batch, objective.count(batch), case.rows)
        objective.eval()
        totals = Totals(device)
        learner.evaluate(learner.prepare(rows, keys), case.rows, totals)
        with torch.no_grad():
            features = objective.features(rows)
        for value in (*batch.values(), totals.loss, *features.values()):
            assert value.device == device
        for parameter in objective.parameters():
            assert parameter.grad is None or parameter.grad.device == device


def main() -> None:
    _setup_privateuseone_for_python_backend(KIND)
    getattr(torch, KIND).get_amp_supported_dtype = lambda: [torch.bfloat16]
    FakeTensor.__bool__ = lambda self: True  # type: ignore[attr-defined]  # padding.any(): the harder way
    with tempfile.TemporaryDirectory() as folder:
        shards = gradient_cases.folder(Path(folder) / "shards")
        for name in sys.argv[1:]:
            go_through(CASES[name], shards, torch.device(KIND, 0))
            print(name, flush=True)


if __name__ == "__main__":
    main()
