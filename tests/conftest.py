"""Corpora made by the real stages, for every test that needs rows or shards; and no skipped test where CI says so."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import settings
from ruamel.yaml import YAML

from stages import params, shard, tokenize
from stages.files import tables

settings.register_profile("shared machine", deadline=None)  # a busy neighbour must not fail a property
settings.load_profile("shared machine")

NO_SKIPS = "PRETEXT_NO_SKIPS"
"""Set by `.ci/run`, which installs what tests need: a test or a file of tests that is skipped all the same fails."""

LONGEST = ("tests/test_docs.py", "tests/test_kill.py")
"""Files that a worker is busy with for minutes: they come first, so that in the end nobody waits for them."""

MakeShards = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def _refused(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get(NO_SKIPS) and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{NO_SKIPS} is set, but it was skipped: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refused(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refused(report)
    return report


class Document(NamedTuple):
    text: str
    label: str | None = None
    group: str | None = None


def little_documents(count: int = 300, seed: int = 0) -> list[Document]:
    """Recipes and logs: two classes that words tell apart, a document in ten without a label, groups of three."""
    draw = random.Random(seed)
    words = {
        "recipe": ["stir", "the", "soup", "with", "salt", "and", "a", "little", "butter", "then", "bake", "it"],
        "log": ["error:", "worker", "restarted", "at", "line", "[42]", "status=ok", "retry", "timeout"],
    }
    documents = []
    for number in range(count):
        label = ("recipe", "log")[number % 2]
        text = " ".join(draw.choice(words[label]) for _ in range(draw.randint(12, 60)))
        documents.append(Document(text + "\n", None if number % 10 == 7 else label, f"file-{number // 3}"))
    return documents


def write_corpus(
    root: Path,
    documents: Sequence[Document],
    tokenize_options: dict[str, Any] | None = None,
    shard_options: dict[str, Any] | None = None,
    partitions: int = 2,
) -> None:
    """`params.yaml` with one corpus `tiny`, and its rows as the dedup stage leaves them, under `root`."""
    corpus = {
        "modality": "text",
        "ingest": {"reader": "jsonl", "source": "tiny.jsonl"},
        "dedup": {},
        "tokenize": tokenize_options or {"vocabulary": 512},
        "shard": {"sequence": 32, "validation": 0.1, **(shard_options or {})},
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"corpora": {"tiny": corpus}}, file)
    rows = [
        {
            "id": tables.content_id({"text": text}),
            "text": text,
            "label": label,
            "source": f"x:{line}",
            "group": group,
        }
        for line, (text, label, group) in enumerate(documents, 1)
    ]
    schema = tables.rows_schema([pa.field("text", pa.string())])
    size = max(1, -(-len(rows) // partitions))
    folder = root / "data/dedup/tiny/rows"
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), size)):
        part = pa.Table.from_pylist(rows[start : start + size], schema=schema)
        tables.write_parquet(folder / tables.part(number), part)


def run_stages(root: Path, *stages: Callable[[str], None], workers: int = 1) -> None:
    """Run data stages on the corpus `tiny` of `root`, as their commands would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PRETEXT_WORKERS", str(workers))
        params.load_params.cache_clear()
        params.load_compute.cache_clear()
        try:
            for stage in stages:
                stage("tiny")
        finally:
            params.load_params.cache_clear()
            params.load_compute.cache_clear()


@pytest.fixture(scope="session")
def make_text_shards(tmp_path_factory: pytest.TempPathFactory) -> MakeShards:
    """A function of (documents, tokenize_options, shard_options) that returns the folder of real shards."""

    def make(documents: Sequence[Document] | None = None, **options: Any) -> Path:
        root = tmp_path_factory.mktemp("corpus")
        write_corpus(root, documents if documents is not None else little_documents(), **options)
        run_stages(root, tokenize.run, shard.run)
        return root / "data/shard/tiny/shards"

    return make


@pytest.fixture(scope="session")
def tiny_text_shards(make_text_shards: MakeShards) -> Path:
    """Real shards of 300 little labelled documents: 512 tokens, rows of 32. Read only."""
    return make_text_shards()


@pytest.fixture(name="little_documents")
def _little_documents() -> Callable[..., list[Document]]:
    return little_documents


@pytest.fixture(name="write_corpus")
def _write_corpus() -> Callable[..., None]:
    return write_corpus


@pytest.fixture(name="run_stages")
def _run_stages() -> Callable[..., None]:
    return run_stages
