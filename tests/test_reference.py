"""docs/reference.md and the schemas are what the types say, and the schemas take the project's own files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from docs import reference

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return reference.files()


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    return content


def test_the_page_and_the_schemas_are_up_to_date(files: dict[str, str]) -> None:
    for name, content in files.items():
        assert (ROOT / "docs" / name).read_text() == content, f"run python -m docs.reference: {name} is old"


def test_every_key_is_described(files: dict[str, str]) -> None:
    bare = [line for line in files[reference.PAGE].splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert bare == []


def test_the_schema_takes_the_projects_own_parameters(files: dict[str, str], own: dict[str, Any]) -> None:
    jsonschema.validate(own, json.loads(files[reference.PARAMS_SCHEMA]))
    compute = YAML(typ="safe").load((ROOT / "compute.yaml").read_text())
    jsonschema.validate(compute, json.loads(files[reference.COMPUTE_SCHEMA]))


@pytest.mark.parametrize(
    "path",
    [
        "corpora/python/ingest/package",
        "corpora/python/tokenize/vocab",
        "corpora/digits/dedup/distanse",
        "models/gpt/train/step",
        "models/gpt/task",
        "models/simclr/task/temprature",
        "probe/shot",
    ],
)
def test_the_schema_refuses_a_key_that_nobody_reads(path: str, files: dict[str, str], own: dict[str, Any]) -> None:
    content = copy.deepcopy(own)
    *steps, last = path.split("/")
    place = content
    for step in steps:
        place = place[step]
    place[last] = {"x": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads(files[reference.PARAMS_SCHEMA]))
