"""A digest changes with what code does, and with nothing else."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from stages.digests import syntax as digest
from stages.digests.syntax import Digests, canonical

SOURCE = '''
"""What it is."""
import os
from a.b import c  # why


class Thing:
    """A thing."""

    size: int = 3
    """Of it."""

    def grow(self, by=1):
        """More."""
        return f"{self.size + by:>{3}}" 'grown' if by else None
'''
SAME = """
import os
from a.b import (c,)
class Thing:
    size: int = 3
    def grow(
        self,
        by = 1,
    ):
        # because
        return (f'{self.size + by:>{3}}grown') if by else None
"""


def test_comments_docstrings_and_formatting_do_not_count() -> None:
    assert canonical(SOURCE) == canonical(SAME) == canonical(ast.unparse(ast.parse(SOURCE)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("= 3", "= 4"),
        ("= 3", "= 3.0"),
        ("by=1", "by=True"),
        ("by=1", "by=None"),
        ("+ by", "- by"),
        ("'grown'", "'grows'"),
        ("else None", "else ()"),
        ("size: int", "size: str"),
        ("return f", "yield f"),
        ("def grow", "@property\n    def grow"),
    ],
)
def test_whatever_it_does_counts(old: str, new: str) -> None:
    assert canonical(SOURCE.replace(old, new))[0] != canonical(SOURCE)[0]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digest, "PACKAGES", ("shop",))
    files = {
        "shop/__init__.py": "VERSION = 1",
        "shop/till.py": "import json\nfrom shop.goods import apple\n",
        "shop/goods/__init__.py": "",
        "shop/goods/apple.py": "def peel():\n    from shop.tools.knife import cut\n",
        "shop/tools/__init__.py": "",
        "shop/tools/knife.py": "import shop.goods.apple\nEDGE = 1\n",
        "shop/goods/pear.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_closure_has_imports_within_functions_and_the_packages_on_the_way(root: Path) -> None:
    found = list(Digests(root).modules(["shop.till"]))
    packages = ["shop", "shop.goods", "shop.goods.apple", "shop.till", "shop.tools", "shop.tools.knife"]
    assert found == packages
    assert "shop.tools.knife" not in Digests(root).modules(["shop.till"], beside=["shop.tools"])


@pytest.mark.parametrize("remembered", [False, True])
def test_an_edit_is_seen_by_the_next_look(root: Path, remembered: bool) -> None:
    def look() -> str:
        digests = Digests(root)
        found = digests.code(["shop.till"])
        if remembered:
            digests.remember()
        return found

    before = look()
    assert look() == before
    (root / "shop/tools/knife.py").write_text("import shop.goods.apple\nEDGE = 2\n")
    assert look() != before
    (root / "shop/tools/knife.py").write_text("import shop.goods.apple\nEDGE = 1  # sharp\n")
    assert look() == before
    assert digest.CACHE.exists() == remembered


def test_what_was_remembered_is_forgotten_where_it_is_damaged(root: Path) -> None:
    digests = Digests(root)
    before = digests.code(["shop.till"])
    digests.remember()
    for damage in ("{", "[]", '{"of": "another version"}'):
        digest.CACHE.write_text(damage)
        assert Digests(root).code(["shop.till"]) == before


def test_the_content_of_a_folder_is_its_files_and_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_text("1")
    before = Digests().content(folder)
    os.utime(folder / "deep/a", (1, 1))
    assert Digests().content(folder) == before
    (folder / "deep/a").rename(folder / "deep/b")
    moved = Digests().content(folder)
    (folder / "deep/b").write_text("2")
    assert len({before, moved, Digests().content(folder), Digests().content(folder / "deep/b")}) == 4
    assert Digests().content(tmp_path / "nowhere") == digest.MISSING
