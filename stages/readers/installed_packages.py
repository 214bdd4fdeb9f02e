"""Functions of the installed packages that a lock file pins: a corpus of Python that needs no network.

Only files that a wheel's RECORD lists, with their very hash, are read, and only of pure-Python wheels: so one lock
gives the same documents on every machine. A document is a function or a method with its decorators and docstring.
"""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages import readers
from stages.files.sources import partitions
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject

MODALITIES = frozenset({"text"})
SOURCE_BYTES = 2 * 2**20
"""Source code in one partition: parsing, not reading, is the work."""
PLACEHOLDER = "function"
"""Stands for a function's own name where the label is taken from it."""
VERBS = frozenset(
    "add build check create from get is load parse read resolve run set to update validate".split()  # noqa: SIM905
)
"""Verbs that begin the names of many functions, in many packages."""


class Options(readers.Options):
    """Which packages, which functions of them, and what the label is."""

    packages: tuple[str, ...] = Field(min_length=1, description="distributions, each pinned in the lock")
    label: Literal["package", "verb"] = Field(
        default="package", description="the distribution, or the verb that begins the function's (hidden) name"
    )
    min_bytes: int = Field(default=200, ge=1, description="shorter functions are no documents")
    max_bytes: int = Field(default=8000, ge=1, description="longer functions are no documents")


def plan(source: str, options: Options) -> list[Partition]:
    """The Python files of the packages, in the order of package and path. UserError where the environment is not the
    one that the lock pins."""
    pins = _pins(Path(source))
    files: list[File] = []
    for package in sorted(set(map(normal, options.packages))):
        if package not in pins:
            raise UserError(f"{source}: does not pin the package {package!r} that ingest.packages names")
        files.extend(_python_files(package, pins[package], source))
    return partitions(files, size=SOURCE_BYTES)


def normal(name: str) -> str:
    """A distribution's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(lock: Path) -> dict[str, str]:
    try:
        content = lock.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"ingest.source: {lock}: cannot be read as a lock file: {error}") from None
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\#]+)", content, re.MULTILINE)
    return {normal(name): version for name, version in found}


def _python_files(package: str, version: str, lock: str) -> list[File]:
    mend = f"install the lock (pip install -r {lock})"
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(f"{lock} pins {package}=={version}, which is not installed: {mend}") from None
    if distribution.version != version:
        raise UserError(f"{lock} pins {package}=={version}, but {distribution.version} is installed: {mend}")
    if "Root-Is-Purelib: true" not in (distribution.read_text("WHEEL") or ""):
        raise UserError(f"ingest.packages: {package} is not a pure-Python wheel, so its files differ between machines")
    paths = [path for path in distribution.files or () if path.suffix == ".py" and ".." not in path.parts and path.hash]
    return sorted(
        (File(f"{package}=={version}/{path.as_posix()}", path.size or 0) for path in paths), key=lambda file: file.path
    )


@functools.cache
def _distribution(package: str) -> metadata.Distribution:
    return metadata.distribution(package)


@functools.cache
def _hashes(package: str) -> dict[str, str]:
    """What RECORD says: path to urlsafe base64 of sha256."""
    files = _distribution(package).files or ()
    return {path.as_posix(): path.hash.value for path in files if path.hash and path.hash.mode == "sha256"}


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """Every function between `min_bytes` and `max_bytes`; one Reject for every file that cannot be used."""
    for file in partition.files:
        pin, _, path = file.path.partition("/")
        package = pin.partition("==")[0]
        try:
            content = Path(str(_distribution(package).locate_file(path))).read_bytes()
        except OSError as error:
            yield Reject(file.path, f"cannot be read ({error.strerror})")
            continue
        if not content.strip():
            continue  # an empty __init__.py holds no function
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if digest != _hashes(package).get(path):
            yield Reject(file.path, "sha256 differs from the wheel's RECORD")
            continue
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in others' code
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            yield Reject(file.path, "not valid Python")
            continue
        lines = text.split("\n")
        for function in _functions(tree):
            document = _text(function, lines)
            if not options.min_bytes <= len(document.encode()) <= options.max_bytes:
                continue
            label: str | None = package
            if options.label == "verb":
                label = verb(function.name)
                document = re.sub(rf"\b{re.escape(function.name)}\b", PLACEHOLDER, document)
            yield Record({"text": document}, label, f"{file.path}:{function.lineno}", file.path)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions of a module and methods of its classes, in order; functions inside functions are part of these."""
    for node in tree.body:
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node)


def _text(function: Function, lines: list[str]) -> str:
    """The source of a function from its first decorator on, without the indentation of its class."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    indent = " " * function.col_offset
    return "\n".join(line.removeprefix(indent) for line in lines[first - 1 : function.end_lineno])


def verb(name: str) -> str | None:
    """The verb that begins a function's name, where it is one of VERBS."""
    first = re.match(r"_*([a-z]+)", name)
    return first[1] if first and first[1] in VERBS else None
