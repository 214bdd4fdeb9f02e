"""Digests of code and of folders: what they are made of is up to `stages.digests.policy`.

The code of a module is its import closure: imports at the top or within a function, and the packages on the way. Each
counts by its syntax tree, so comments, docstrings and formatting do not, nor does the version of Python that reads it.
What has been read is remembered beside the checkpoints by a file's size, time and inode, so that a stage can ask anew.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

CACHE = Path(".checkpoints/digests.json")
"""Of what was read, below the working directory."""
MISSING = "missing"
PACKAGES = ("stages", "ssl_models")
_NO_CONTENT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def canonical(source: str) -> tuple[str, list[str]]:
    """What a module does, as text, without positions, comments, docstrings and whatever is empty; and every name that
    it imports."""
    tree, parts, imports = ast.parse(source), list[str](), list[str]()
    _dump(tree, parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, "imports are absolute here"
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return "".join(parts), sorted(set(imports))


def _dump(value: object, parts: list[str]) -> None:
    if isinstance(value, ast.Constant):
        parts.append(repr(value.value))
    elif isinstance(value, ast.AST):
        parts.append(type(value).__name__)
        parts.append("(")
        for name in value._fields:
            inner = getattr(value, name, None)
            if inner is None or inner == [] or name in _NO_CONTENT:
                continue
            if isinstance(inner, list):
                inner = _joined(inner) if isinstance(value, ast.JoinedStr) else _without_docstrings(inner)
            parts.append(f"{name}=")
            _dump(inner, parts)
        parts.append(")")
    elif isinstance(value, list):
        parts.append("[")
        for inner in value:
            _dump(inner, parts)
            parts.append(",")
        parts.append("]")
    else:
        parts.append(repr(value))


def _without_docstrings(statements: list[Any]) -> list[Any]:
    """A string that stands alone documents a module, a class, a function or the name above it."""
    return [
        node
        for node in statements
        if not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
    ]


def _joined(values: list[Any]) -> list[Any]:
    """The parts of an f-string; versions of Python differ in how they split its text."""
    found: list[Any] = []
    for value in values:
        if not isinstance(value, ast.Constant):
            found.append(value)
        elif found and isinstance(found[-1], str):
            found[-1] += str(value.value)
        elif value.value:
            found.append(value.value)
    return found


class Digests:
    """Digests of the modules below `root` as they are when first asked for, and of any folder."""

    def __init__(self, root: Path = Path(__file__).parents[2]) -> None:
        self.root = root
        self._path, self._module = functools.cache(self._find), functools.cache(self._look)
        own = blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()
        self._known: dict[str, Any] = {"of": own}
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(CACHE.read_text(encoding="utf-8"))
            if isinstance(stored, dict) and stored.get("of") == own:
                self._known = stored
        self._changed = False

    def code(self, roots: Iterable[str], beside: Iterable[str] = ()) -> str:
        """16 hex digits of the code that `roots` (modules) need."""
        return digest_of(self.modules(roots, beside).items())

    def modules(self, roots: Iterable[str], beside: Iterable[str] = ()) -> dict[str, str]:
        """The modules that `roots` need, themselves among them, in order, each with its digest. Imports of modules and
        packages of `beside` are not followed."""
        new, excepted, found = set(roots), tuple(f"{name}." for name in beside), dict[str, str]()
        while new:
            name = new.pop()
            found[name], needed = self._module(name)
            new |= {other for other in needed if other not in found and not f"{other}.".startswith(excepted)}
        return dict(sorted(found.items()))

    def content(self, path: Path) -> str:
        """16 hex digits of a file, or of a folder's files and their names; `MISSING` where there is none."""
        if path.is_file():
            return self._file(path)
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        return (
            digest_of((inner.relative_to(path).as_posix(), self._file(inner)) for inner in files) if files else MISSING
        )

    def remember(self) -> None:
        """Keep what was read for the next process; without a place to write, it reads again."""
        if not self._changed:
            return
        partial = CACHE.with_name(f".{CACHE.name}.{os.getpid()}.partial")
        with contextlib.suppress(OSError):
            CACHE.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._known), encoding="utf-8")
            partial.replace(CACHE)

    def _find(self, name: str) -> Path | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        path = self.root.joinpath(*name.split("."))
        return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)

    def _look(self, name: str) -> tuple[str, set[str]]:
        """The digest of a module, and the modules that it and its imports lie in."""
        path = self._path(name)
        if path is None:
            return MISSING, set()

        def read() -> list[Any]:
            text, imports = canonical(path.read_text(encoding="utf-8"))
            return [digest_of([(name, text)]), [name, *imports]]

        digest, imports = self._once(path, read)
        needed = {package for dotted in imports for package in _on_the_way(dotted)}
        return digest, {package for package in needed if self._path(package) is not None}

    def _file(self, path: Path) -> str:
        def read() -> list[Any]:
            digest = blake2b(digest_size=8)
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            return [digest.hexdigest()]

        return str(self._once(path, read)[0])

    def _once(self, path: Path, read: Any) -> Any:
        """What `read` finds in a file, or has found in it as it is."""
        stat = path.stat()
        key, as_it_is = str(path.absolute()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        if (known := self._known.get(key)) is None or known[0] != as_it_is:
            self._known[key] = known = [as_it_is, read()]
            self._changed = True
        return known[1]


def _on_the_way(dotted: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = dotted.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def digest_of(parts: Iterable[tuple[str, str]]) -> str:
    """16 hex digits of names and their contents."""
    digest = blake2b(digest_size=8)
    for name, content in parts:
        for text in (name.encode("utf-8", "surrogateescape"), content.encode()):
            digest.update(f"{len(text)}:".encode())
            digest.update(text)
    return digest.hexdigest()
