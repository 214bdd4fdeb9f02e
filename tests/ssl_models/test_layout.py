"""Names of nested numbers, and tables for a console and in Markdown."""

from __future__ import annotations

from ssl_models import layout

NESTED = {"a": {"b": 1, "c": {"d": None}}, "e": "x", "f": True, "g": 2.5}


def test_leaves_are_named_by_their_path() -> None:
    assert layout.flat(NESTED) == {"a.b": 1, "a.c.d": None, "e": "x", "f": True, "g": 2.5}
    assert layout.flat({"a": {"b": 1}}, at="probe") == {"probe.a.b": 1}
    assert layout.flat({"a": {"b": 1}}, separator=":") == {"a:b": 1}


def test_numbers_are_neither_truth_values_nor_what_is_missing() -> None:
    assert layout.numbers(NESTED) == {"a.b": 1.0, "g": 2.5}
    assert layout.numbers([1, 2]) == {}


def test_a_table_in_markdown() -> None:
    shown = layout.markdown(["model", "loss"], [["gpt", "1.5"]], right=[False, True])
    assert shown.splitlines() == ["| model | loss |", "| --- | ---: |", "| gpt | 1.5 |"]


def test_columns_of_a_console_are_as_wide_as_their_widest_cell() -> None:
    rows = [["a", "1.0", ""], ["long", "10.25", "x"]]
    assert layout.console(["", "loss", "y"], rows) == ["      loss   y", "a     1.0", "long  10.25  x"]
    assert layout.console(["", "loss", "y"], rows, right=True) == ["       loss  y", "a       1.0", "long  10.25  x"]
    assert layout.console(["model"], []) == ["model"]
