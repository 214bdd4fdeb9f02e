"""A run's description: facts, then the result, then the commands, however often the probe is repeated."""

from __future__ import annotations

from pathlib import Path

from ssl_models.tracking.description import opening, with_result
from ssl_models.training.job import Dataset, Job, Tracking
from tests.ssl_models.corpora import model


def test_the_description_says_what_was_trained_on_what_and_how_to_do_it_again(tmp_path: Path) -> None:
    tracking = Tracking(datasets=(Dataset(name="tiny", digest="abc.dir", source="data/x"),), reproduce="run this")
    places = {"shards": tmp_path, "output": tmp_path, "checkpoints": tmp_path}
    note = opening(Job(name="m", model=model(), tracking=tracking, **places))
    assert note.startswith("**toy_words** on the corpus")
    assert "| tiny | `abc.dir` | `data/x` |" in note
    assert note.endswith("## Reproduce\n\nrun this")


def test_a_result_stands_before_the_commands_and_replaces_an_earlier_one() -> None:
    note = "facts\n\n## Reproduce\n\nrun this"
    first = with_result(note, "## Linear probe\n\n0.5")
    again = with_result(first, "## Linear probe\n\n0.7")
    assert first.index("facts") < first.index("0.5") < first.index("## Reproduce") < first.index("run this")
    assert "0.5" not in again and again.count("## Linear probe") == again.count("## Reproduce") == 1


def test_a_run_without_commands_takes_a_result_as_well() -> None:
    assert with_result("", "## Linear probe\n\n0.5").strip() == "## Linear probe\n\n0.5"
