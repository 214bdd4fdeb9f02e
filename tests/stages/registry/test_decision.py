"""The champion moves on evidence: on documents that both know, by groups, and not by luck however often it is tried."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from ssl_models.probing.intervals import Gain, paired
from stages.registry.decision import AGAINST, LEVEL, RANDOM, challenge, first, level


def predictions(path: Path, correct: np.ndarray, groups: np.ndarray | None = None, start: int = 0) -> Path:
    """Of the documents from number `start` on, in an order that differs from file to file."""
    order = np.random.default_rng(start + len(correct)).permutation(len(correct))
    columns = {
        "id": [f"{start + number:016x}" for number in order],
        "group": (np.arange(len(correct)) if groups is None else groups)[order],
        "actual": ["x"] * len(correct),
        "correct": correct[order],
    }
    pq.write_table(pa.table(columns), path)
    return path


def right(share: float, rows: int = 400) -> np.ndarray:
    return np.arange(rows) < share * rows


def test_a_version_that_beats_the_champion_takes_its_place(tmp_path: Path) -> None:
    new, old = predictions(tmp_path / "new", right(0.8)), predictions(tmp_path / "old", right(0.6))
    better = challenge(new, old, "3", 1)
    assert better.promoted and better.gain and better.gain.mean == pytest.approx(0.2)
    assert "beats version 3 by +0.2000 (95 % interval +0.1" in better.reason
    assert "0.03 is needed of challenger 1) on 400 probe rows in 400 groups" in better.reason
    assert better.tags()[AGAINST] == "3" and float(better.tags()["champion.gain.low"]) > 0.1
    assert better.tags()["champion.level"] == f"{level(1):.6g}"
    for other in (old, new):
        assert not challenge(other, new, "3", 1).promoted
    close = challenge(predictions(tmp_path / "close", right(0.605)), old, "3", 1)
    assert not close.promoted and "does not beat" in close.reason


def test_the_later_a_challenger_comes_the_more_it_must_show(tmp_path: Path) -> None:
    new, old = predictions(tmp_path / "new", right(0.62)), predictions(tmp_path / "old", right(0.6))
    assert challenge(new, old, "1", 1).promoted and not challenge(new, old, "1", 20).promoted
    assert sum(level(number) for number in range(1, 100_000)) == pytest.approx(LEVEL, rel=1e-4)


def test_rows_of_a_group_are_not_evidence_of_their_own(tmp_path: Path) -> None:
    files = np.repeat(np.arange(20), 20)
    old = np.random.default_rng(0).random(400) < 0.5
    new = np.where(files < 3, True, old)  # three files of twenty became easy
    by_file = challenge(predictions(tmp_path / "a", new, files), predictions(tmp_path / "b", old, files), "1", 1)
    by_row = challenge(predictions(tmp_path / "c", new), predictions(tmp_path / "d", old), "1", 1)
    assert by_row.promoted and not by_file.promoted


def test_the_documents_that_both_know_are_compared(tmp_path: Path) -> None:
    old = predictions(tmp_path / "old", right(0.5))
    grown = challenge(predictions(tmp_path / "grown", np.ones(400, bool), start=100), old, "1", 1)
    assert grown.promoted and "on 300 probe rows" in grown.reason
    other = challenge(predictions(tmp_path / "other", np.ones(400, bool), start=300), old, "1", 1)
    assert not other.promoted and "version 1 has answered 100, too few" in other.reason
    assert AGAINST not in other.tags()  # no look was taken, so none is paid for


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    new = predictions(tmp_path / "new", right(0.9))
    assert "are gone" in challenge(new, None, "1", 1).reason
    pq.write_table(pq.read_table(new).drop_columns(["id"]), tmp_path / "before")
    assert "do not name their documents" in challenge(new, tmp_path / "before", "1", 1).reason


def test_a_first_version_must_beat_its_random_encoder() -> None:
    assert first(Gain(0.1, 0.05, 0.15, 0.001), 1).promoted
    for gain in (Gain(-0.04, -0.06, -0.02, 0.0005), Gain(0.02, -0.01, 0.05, 0.2), None):
        assert not first(gain, 1).promoted
    assert first(Gain(0.1, 0.05, 0.15, 0.001), 1).tags()[AGAINST] == RANDOM


def test_the_champion_hardly_ever_moves_among_twenty_equal_versions() -> None:
    generator, files, moved = np.random.default_rng(4), np.repeat(np.arange(50), 10), 0
    sequences = 400
    for _ in range(sequences):
        hard = 0.5 + generator.normal(0, 1, 50)
        own = generator.normal(0, 0.5, (20, 50))
        answers = generator.random((20, len(files))) < expit((hard + own)[:, files])
        gains = [paired(version, answers[0], files) for version in answers[1:]]
        moved += any(gain.mean > 0 and gain.p <= level(number) for number, gain in enumerate(gains, 1))
    assert moved / sequences < 0.05
