"""The table of every probed model says what the metrics say, and marks a gain beyond its interval."""

import io
import json

import pytest

from flows import results

PROBED = {
    "pretrained": {"accuracy": 0.5489, "low": 0.5227, "high": 0.5749, "labels_5": 0.29},
    "random_init": {"accuracy": 0.4784},
    "raw_input": {"accuracy": 0.78, "labels_5": 0.487},
    "knn": {"accuracy": 0.44},
    "shuffled_labels": {"accuracy": 0.158},
    "majority": {"accuracy": 0.2},
    "gain": {"random_init": 0.0705, "random_init_low": 0.0396},
}


def table(shown: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    files = {f"data/linear-probe/{name}/metrics.json": {"data": metrics} for name, metrics in shown.items()}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"": {"data": files}})))
    results.main()
    return capsys.readouterr().out.splitlines()


def test_a_model_is_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    header, row, legend = table({"gpt": PROBED}, monkeypatch, capsys)
    assert header.split()[:2] == ["model", "pretrained"] and "95 % interval" in legend
    assert row.split() == [
        "gpt",
        "0.549",
        "0.523-0.575",
        "0.478",
        "+0.070*",
        "0.780",
        "0.440",
        "0.158",
        "0.200",
        "0.290",
        "0.487",
    ]


def test_a_gain_within_its_interval_has_no_star(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = table({"gpt": {**PROBED, "gain": {"random_init": 0.01, "random_init_low": -0.02}}}, monkeypatch, capsys)[1]
    assert "+0.010" in row
    assert "*" not in row


def test_a_narrow_terminal_has_the_columns_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in (20, 80, 119, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = table({f"model-{number}": PROBED for number in range(100)}, monkeypatch, capsys)
        assert all(len(line) <= max(columns, 19) and line.startswith("model") for line in shown[:101])
        missing = shown[102].split(": ")[1].split("; ") if len(shown) > 102 else []
        assert [name for name in results.COLUMNS if name not in shown[0]] == missing


def test_what_was_not_probed_has_no_row_and_nothing_at_all_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"data/linear-probe/*/metrics.json": {"error": {"type": "FileNotFoundError"}}}
    for said in ("", json.dumps({"": {"data": missing}}), "{}"):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        with pytest.raises(SystemExit, match="error: "):
            results.main()


def test_a_corpus_without_labels_has_no_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table({"gpt": PROBED, "mine": {"labels": 0, "classes": 0, "seconds": 1.0}}, monkeypatch, capsys)
    assert set(rows[2].split()) == {"mine", "-"}
