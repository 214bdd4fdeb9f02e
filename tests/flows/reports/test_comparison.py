"""A sweep's table says no more than the paired comparison on the same rows allows."""

from __future__ import annotations

import pyarrow as pa

from flows.reports.comparison import Result, gain, table


def result(name: str, wrong: range, rows: str = "same", total: int = 400) -> Result:
    """One with a probe of `total` rows, of which it has those of `wrong` wrong."""
    correct = [row not in wrong for row in range(total)]
    columns = {"row": list(range(total)), "group": list(range(total)), "actual": ["a"] * total, "correct": correct}
    predictions = pa.table(columns).replace_schema_metadata({"probe_rows": rows})
    accuracy = 1 - len(wrong) / total
    metrics = {"pretrained.accuracy": accuracy, "pretrained.low": accuracy - 0.05, "pretrained.high": accuracy + 0.05}
    return Result(name, "m", {"steps": name}, metrics, predictions=predictions)


def test_a_result_is_worse_where_it_errs_on_the_bests_rows_and_more_though_the_intervals_overlap() -> None:
    best, worse, alike = result("1", range(80)), result("2", range(100)), result("3", range(80, 162))
    cells = {line.split(" | ")[2]: line.split(" | ")[5] for line in table([worse, alike, best]).splitlines()[2:]}
    assert cells["1"] == "best"
    assert cells["2"].startswith("worse: -0.050 (-0.0")
    assert cells["3"].startswith("not told apart: -0.005 (-0.")


def test_results_on_other_rows_are_not_compared() -> None:
    best = result("1", range(80))
    assert gain(best, result("2", range(200), rows="other")) is None
    assert gain(best, Result("3", "m", {}, {"pretrained.accuracy": 0.1})) is None
    assert "other test rows" in table([best, result("2", range(200), rows="other")])


def test_failures_come_last() -> None:
    lines = table([Result("4", "m", {"steps": "4"}, failure="x"), result("1", range(80))]).splitlines()
    assert "best" in lines[2] and "failed" in lines[-1]
