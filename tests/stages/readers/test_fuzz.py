"""A short run of the fuzzer over every reader; the long one is a command (docs/data-sources.md)."""

from __future__ import annotations

import random

import pytest

from tests.stages.readers import fuzz


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name != "hf_datasets"])
def test_mutated_inputs_are_rows_rejects_or_a_sentence(name: str) -> None:
    found, _ = fuzz.run(name, 25, seed=1, seconds=60)
    assert sum(found.values()) == 25
    assert found["rows"] + found["rows and rejects"] and found["rejects"] + found["rows and rejects"]


@pytest.mark.slow
def test_mutated_data_sets_are_rows_rejects_or_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sum(fuzz.run("hf_datasets", 10, seed=1, seconds=60)[0].values()) == 10


def test_an_input_is_a_function_of_seed_and_number() -> None:
    assert fuzz.inputs("jsonl", 3, 4) == fuzz.inputs("jsonl", 3, 4) != fuzz.inputs("jsonl", 3, 5)
    assert fuzz.mutated(b"", random.Random(0)) is not None
