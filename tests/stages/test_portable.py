"""Instructions are held to one level before a library loads, whatever the machine has preset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import params, portable
from tests.ssl_models import corpora

LOADED = """
import os, stages, sys
assert not {"numpy", "torch"} & set(sys.modules)
import json, numpy, scipy.linalg, torch
from numpy._core._multiarray_umath import __cpu_features__
from threadpoolctl import threadpool_info
print(json.dumps({
    "aten": torch.backends.cpu.get_cpu_capability(),
    "openblas": sorted({found["architecture"] for found in threadpool_info() if found["user_api"] == "blas"}),
    "numpy": [name for name in ("X86_V3", "X86_V4") if __cpu_features__[name]],
}))
"""
ELSEWHERE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Prescott",
    "NUMBA_CPU_NAME": "nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
}
"""Another make, as far as one machine can be one: every library is told to do without AVX."""
NO_MLFLOW = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""Nobody listens there: the stages warn, and are quicker."""
PARAMS = """
corpora:
  tiny: {modality: text, ingest: {reader: jsonl, source: here}, dedup: {}, tokenize: {}, shard: {}}
models:
  gpt:
    corpus: tiny
    objective: next_token
    backbone: {preset: llama, layers: 2, width: 48, heads: 2}
    train: {steps: 8, batch: 16, evaluate_every: 8, validation_rows: 16}
probe: {draws: 2}
"""


def run(folder: Path, *words: str, **environment: str) -> str:
    held = portable.LITTLE | portable.MUCH
    root = str(Path(portable.__file__).parents[1])
    outside = {name: value for name, value in os.environ.items() if name not in held}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**outside, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("stage", "text", "aten"),
    [
        ("linear_probe", "portable: false\n", "AVX2"),
        ("pretrain", "portable: true\n", "AVX2"),
        ("pretrain", "portable: false\n", "DEFAULT"),
    ],
)
def test_libraries_are_held_before_they_load_but_for_torch_in_training_unless_it_is_asked_for(
    tmp_path: Path, stage: str, text: str, aten: str
) -> None:
    (tmp_path / "compute.yaml").write_text(text)
    found = json.loads(run(tmp_path, "-c", LOADED, f"stages.{stage}", **ELSEWHERE))
    assert found == {"aten": aten, "openblas": ["Haswell"], "numpy": ["X86_V3"]}


def test_what_imports_a_stage_without_being_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "compute.yaml").write_text("portable: true\n")
    said = run(tmp_path, "-c", "import os, stages.files.tables; print(os.environ.get('OPENBLAS_CORETYPE'))")
    assert said == "None\n"


def test_a_processor_without_avx2_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compute.yaml").write_text("portable: true\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(portable, "capable", lambda: False)
    params.load_compute.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            portable.hold("stages.shard")
    finally:
        params.load_compute.cache_clear()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: compute.yaml: portable: needs an x86-64 processor with AVX2")


@pytest.mark.slow
def test_a_model_and_its_probe_are_the_same_bytes_on_another_make(tmp_path: Path) -> None:
    found = []
    for name, preset in (("here", dict[str, str]()), ("elsewhere", ELSEWHERE)):
        folder = tmp_path / name
        corpora.text_shards(folder / "data/shard/tiny/shards", {"train": 200, "validation": 40, "probe": 120})
        (folder / "params.yaml").write_text(PARAMS)
        (folder / "compute.yaml").write_text("portable: true\n")
        for stage in ("pretrain", "linear_probe"):
            run(folder, "-m", f"stages.{stage}", "gpt", **preset, **NO_MLFLOW)
        files = (
            "pretrain/gpt/model/model.safetensors",
            "pretrain/gpt/loss.csv",
            "linear-probe/gpt/predictions.parquet",
        )
        found.append([(folder / "data" / file).read_bytes() for file in files])
    assert found[0] == found[1]
