"""How nested data and tables are shown: flat names such as `backbone.layers`, and a table for a console or in Markdown.

One place, so that a number has the same name in a report, in MLflow and on Prefect's pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GAP = 2
"""Spaces between the columns of a console."""

Rows = Sequence[Sequence[str]]


def flat(content: Any, at: str = "", separator: str = ".") -> dict[str, Any]:
    """The leaves of nested mappings by their path: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    if not isinstance(content, Mapping):
        return {at: content}
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        leaves |= flat(value, f"{at}{separator}{key}" if at else str(key), separator)
    return leaves


def numbers(content: Any, at: str = "") -> dict[str, float]:
    """The numbers among `flat(content, at)`; neither truth values nor what is missing."""
    return {
        key: float(value)
        for key, value in flat(content, at).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def markdown(header: Sequence[str], rows: Rows, right: Sequence[bool] = ()) -> str:
    """A table in Markdown; columns for which `right` holds are aligned to the right."""
    rule = ["---:" if column < len(right) and right[column] else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def widths(header: Sequence[str], rows: Rows) -> list[int]:
    """Characters that each column needs."""
    return [max(map(len, column)) for column in zip(header, *rows, strict=True)]


def console(header: Sequence[str], rows: Rows, right: bool = False) -> list[str]:
    """The lines of a table in fixed width, the header first; with `right`, all columns but the first are aligned so."""
    room = widths(header, rows)
    lines = []
    for first, *cells in [header, *rows]:
        rest = (cell.rjust(width) if right else cell.ljust(width) for cell, width in zip(cells, room[1:], strict=True))
        lines.append((" " * GAP).join([first.ljust(room[0]), *rest]).rstrip())
    return lines
