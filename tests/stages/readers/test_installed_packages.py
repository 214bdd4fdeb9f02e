"""Functions of installed packages: the same for one lock, honest labels, and a lock that must be installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from stages.params import UserError
from stages.readers import Record, Reject, installed_packages

RICH = f"rich=={metadata.version('rich')}"


def read(tmp_path: Path, lock: str = RICH, **options: Any) -> list[Record | Reject]:
    (tmp_path / "requirements.lock").write_text(f"# pinned\n{lock} \\\n    --hash=sha256:00\n")
    chosen = installed_packages.Options.model_validate({"packages": ["Rich"], **options})
    plan = installed_packages.plan(str(tmp_path / "requirements.lock"), chosen)
    return [item for part in plan for item in installed_packages.read(part, chosen)]


def test_functions_are_documents_grouped_by_file(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert len(found) > 300
    for item in found:
        assert isinstance(item, Record)
        text = str(item.payload["text"])
        assert text.startswith(("def ", "async def ", "@"))
        assert 200 <= len(text.encode()) <= 8000
        assert item.label == "rich"
        assert str(item.group).startswith(f"{RICH}/rich/") and item.source.startswith(f"{item.group}:")
    assert found == read(tmp_path)


def test_a_verb_is_a_label_that_is_not_in_the_text(tmp_path: Path) -> None:
    found = [item for item in read(tmp_path, label="verb") if isinstance(item, Record)]
    labels = {item.label for item in found}
    assert None in labels and {"get", "from"} <= labels
    assert labels - {None} <= installed_packages.VERBS
    for item in found:
        head = next(line for line in str(item.payload["text"]).splitlines() if line.startswith(("def", "async def")))
        assert f"def {installed_packages.PLACEHOLDER}(" in head


@pytest.mark.parametrize(
    ("name", "label"),
    [("get_x", "get"), ("_is", "is"), ("isolate", None), ("getX", "get"), ("__init__", None), ("X", None)],
)
def test_the_verb_begins_the_name(name: str, label: str | None) -> None:
    assert installed_packages.verb(name) == label


@pytest.mark.parametrize(
    ("lock", "options", "sentence"),
    [
        ("rich==0.0.1", {}, r"but .* is installed: install the lock"),
        (RICH, {"packages": ["no-such"]}, "does not pin the package 'no-such'"),
        ("no-such==1", {"packages": ["no-such"]}, "which is not installed: install the lock"),
        (f"numpy=={metadata.version('numpy')}", {"packages": ["numpy"]}, "numpy is not a pure-Python wheel"),
    ],
)
def test_an_environment_that_is_not_the_lock_is_refused(
    tmp_path: Path, lock: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, lock, **options)


def test_a_file_that_is_not_the_wheels_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = installed_packages._hashes("rich")
    monkeypatch.setattr(installed_packages, "_hashes", lambda package: {**known, "rich/box.py": "edited"})
    (reject,) = [item for item in read(tmp_path) if isinstance(item, Reject)]
    assert reject == Reject(f"{RICH}/rich/box.py", "sha256 differs from the wheel's RECORD")
