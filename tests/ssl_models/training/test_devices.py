"""No pretext task mixes devices: what would stop a job on a GPU stops `device_cases` on any machine."""

import subprocess
import sys

import pytest

from tests.ssl_models import corpora
from tests.ssl_models.gradient_cases import CASES

BEYOND_FAKE_TENSORS = {"vicreg", "patch_position", "patch_position_norm"}
"""`torch.cov` asks for values, and a list as an index is moved by the device itself."""


def go_through(*names: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.ssl_models.device_cases", *names]
    return subprocess.run(command, env=corpora.environment(), capture_output=True, text=True, timeout=290, check=False)


@pytest.mark.slow
def test_no_pretext_task_mixes_devices() -> None:
    names = [name for name in CASES if not name.startswith("toy") and name not in BEYOND_FAKE_TENSORS]
    done = go_through(*names, "toy_pairs")  # the last one makes its targets on the CPU
    assert done.stdout.split() == names, done.stderr[-3000:]
    assert "Expected all tensors to be on the same device" in done.stderr
