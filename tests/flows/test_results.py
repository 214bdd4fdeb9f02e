"""The table of every probed model says what the metrics say, and marks a gain beyond its interval."""

import json
from pathlib import Path

import pytest

from flows import results
from ssl_models.tracking.execution import Execution, result
from tests.flows.conftest import Project

PROBED = {
    "pretrained": {"accuracy": 0.5489, "low": 0.5227, "high": 0.5749, "labels_5": 0.29},
    "random_init": {"accuracy": 0.4784},
    "raw_input": {"accuracy": 0.78, "labels_5": 0.487},
    "knn": {"accuracy": 0.44},
    "shuffled_labels": {"accuracy": 0.158},
    "majority": {"accuracy": 0.2},
    "gain": {"random_init": 0.0705, "random_init_low": 0.0396},
}


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(project.root)
    monkeypatch.setattr("sys.argv", ["results"])
    return project


def write(shown: dict[str, object]) -> None:
    for name, content in shown.items():
        path = Path(f"data/linear-probe/{name}/report.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def table(shown: dict[str, object], capsys: pytest.CaptureFixture[str]) -> list[str]:
    write(shown)
    results.main()
    return capsys.readouterr().out.splitlines()


def test_a_model_is_a_row(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    header, row, *legend = table({"gpt": PROBED}, capsys)
    assert header.split()[:2] == ["model", "pretrained"] and "95 % interval" in legend[-1]
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


def test_a_gain_within_its_interval_has_no_star(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    row = table({"gpt": {**PROBED, "gain": {"random_init": 0.01, "random_init_low": -0.02}}}, capsys)[1]
    assert "+0.010" in row
    assert "*" not in row


def test_a_narrow_terminal_has_the_columns_that_fit(
    inside: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in (20, 80, 135, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = table({f"model-{number}": PROBED for number in range(100)}, capsys)
        assert all(len(line) <= max(columns, 20) and line.startswith("model") for line in shown[:101])
        missing = shown[103].split(": ")[1].split("; ") if len(shown) > 103 else []
        assert [name for name in results.COLUMNS if name not in shown[0]] == missing


def test_where_nothing_was_probed_that_is_said(inside: Project) -> None:
    with pytest.raises(SystemExit, match="error: no model has been probed yet"):
        results.main()


def test_the_change_is_that_since_the_last_commit_or_another(
    inside: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for accuracy in (0.25, 0.5):
        write({"gpt": {"pretrained": {"accuracy": accuracy}}})
        inside.git("add", "-A")
        inside.git("commit", "-qm", "results")
    same = table({}, capsys)[1]
    assert same.split()[:3] == ["gpt", "0.500", "-"]
    changed = {"gpt": {"pretrained": {"accuracy": 0.625}}, "new": {"pretrained": {"accuracy": 0.5}}}
    _, gpt, new, legend, _ = table(changed, capsys)
    assert gpt.split()[:3] == ["gpt", "0.625", "+0.125"] and new.split()[:3] == ["new", "0.500", "-"]
    assert "since HEAD" in legend
    monkeypatch.setattr("sys.argv", ["results", "--since", "HEAD~"])
    assert table({}, capsys)[1].split()[:3] == ["gpt", "0.625", "+0.375"]


def test_seconds_are_shown_of_a_training_that_ran_here(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = Path("data/pretrain/gpt/model"), Path("data/pretrain/other/model")
    for weights in (folder, other):
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(b"weights")
    for name in ("gpt", "other"):
        written = result(Path("data/pretrain") / name)
        assert written is not None
        Execution(result=written, started="", seconds=17.46, peak_memory_mb=1).save(Path(f".runs/pretrain/{name}.json"))
    (other / "model.safetensors").write_bytes(b"from DVC's cache")
    rows = table({"gpt": PROBED, "other": PROBED}, capsys)
    assert rows[1].split()[-1] == "17.5" and rows[2].split()[-1] == "0.487"


def test_a_corpus_without_labels_has_no_figures(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table({"gpt": PROBED, "mine": {"labels": 0, "classes": 0}}, capsys)
    assert set(rows[2].split()) == {"mine", "-"}
