"""What varies from run to run is credited to the result it belongs to, and to no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_models.tracking.execution import Execution, Stopwatch, peak_memory_mb, result


def written(folder: Path) -> Execution:
    """A record of what lies in `folder`."""
    found = result(folder)
    assert found is not None
    return Execution(
        result=found, started=Stopwatch().started, seconds=1.5, peak_memory_mb=peak_memory_mb(), run_id="r"
    )


@pytest.mark.parametrize("name", ["model/model.safetensors", "metrics.json"])
def test_a_record_belongs_to_what_it_was_made_of_alone(tmp_path: Path, name: str) -> None:
    output, path = tmp_path / "data", tmp_path / ".runs/pretrain/gpt.json"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_bytes(b"trained here")
    record = written(output)
    record.save(path)
    assert Execution.of(output, path) == record
    (output / name).write_bytes(b"restored from a cache")
    assert Execution.of(output, path) is None
    (output / name).unlink()
    assert Execution.of(output, path) is None


def test_weights_identify_a_model_whatever_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    (tmp_path / "metrics.json").write_text("{}")
    before = result(tmp_path)
    (tmp_path / "metrics.json").write_text('{"loss": 1}')
    assert result(tmp_path) == before


@pytest.mark.parametrize("content", [None, "", "{}", '{"result": 3}', "\ufeffnonsense"])
def test_a_record_that_is_none_is_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "gpt.json"
    if content is not None:
        path.write_text(content)
    assert Execution.load(path) is None


def test_a_folder_without_a_result_has_none(tmp_path: Path) -> None:
    assert result(tmp_path) is None and result(tmp_path / "none") is None
