"""One set of words for metrics, table, Markdown, plots and figures."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ssl_models.probing import report as reports
from ssl_models.probing.intervals import Gain, paired
from ssl_models.probing.probe import Point, Report, Score, Share, Task, few_shot_gains

TASK = Task(
    np.arange(6), np.array([0, 1, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1], bool), np.arange(6), ("cat", "dog")
)
DRAWS = np.array([[1, 0, 1], [0, 1, 1]], bool)
CURVE = (Point(1, 0.51234, 0.4, 0.6, DRAWS), Point(5, 0.6, 0.5, 0.7, DRAWS), Point(2, 2 / 3, 0.2, 0.94))


def score(feature: str = "mean") -> Score:
    return Score(feature, 0.1, 8, 0.5, True, np.array([1, 0, 0]), np.array([[1, 0, 1]], bool), 2 / 3, 0.2, 0.94, CURVE)


def report(pretrained: Score | None = None) -> Report:
    scores = {"pretrained": pretrained, "random_init": score("cls"), "raw_input": score("raw")}
    gain = Gain(0.123456, 0.05, 0.2, 0.0005) if pretrained else None
    known = 0.5 if pretrained else None
    return Report(TASK, scores, 0.6, known, known, {"random_init": gain, "raw_input": gain}, ("a note",))


def test_metrics_have_the_one_shape() -> None:
    found = reports.metrics(report(score()))
    shape = {"accuracy": 0.6667, "low": 0.2, "high": 0.94, "labels_1": 0.5123, "labels_5": 0.6}
    assert found == {
        "pretrained": shape,
        "random_init": shape,
        "raw_input": shape,
        "majority": {"accuracy": 0.6},
        "shuffled_labels": {"accuracy": 0.5},
        "knn": {"accuracy": 0.5},
        "gain": {
            **{"random_init": 0.1235, "random_init_low": 0.05, "raw_input": 0.1235, "raw_input_low": 0.05},
            **{f"random_init_labels_{labels}": 0.0 for labels in (1, 5)},
            **{f"random_init_labels_{labels}_low": -1.0 for labels in (1, 5)},  # three groups tell nothing
        },
        "feature": "mean",
        "labels": 6,
        "classes": 2,
    }


def test_the_headline_is_few_numbers_of_the_report() -> None:
    assert reports.headline(report(score())) == {
        **{"accuracy": 0.6667, "gain": 0.1235, "gain_low": 0.05, "raw_input": 0.6667},
        "labels_5": 0.6,
    }
    assert set(reports.headline(report(None)).values()) == {None, 0.6667}
    assert set(reports.headline(None).values()) == {None}


def test_the_report_holds_every_number_and_nothing_of_the_clock() -> None:
    found = reports.details(report(score()))
    assert reports.metrics(report(score())).items() <= found.items()
    assert "seconds" not in json.dumps(found)


def test_what_does_not_exist_is_null_and_valid_json() -> None:
    found = reports.metrics(report(None))
    assert set(found["pretrained"].values()) == {None}
    assert list(found["pretrained"]) == list(found["random_init"])
    json.dumps([found, reports.details(report(None))], allow_nan=False)
    assert reports.metrics(None) == reports.details(None) == {"labels": 0, "classes": 0}


def test_details_hold_choices_intervals_and_comparisons() -> None:
    found = json.loads(json.dumps(reports.details(report(score())), allow_nan=False))
    assert found["rows"] == {"train": 3, "test": 3, "test_groups": 3, "classes": 2}
    assert found["few_shot_gains"][0] == {"labels": 1, "mean": 0.0, "low": -1.0, "high": 1.0}
    assert found["encoders"]["random_init"]["seeds"] == 1
    assert found["encoders"]["pretrained"]["feature"] == "mean"
    assert found["encoders"]["pretrained"]["strength"] == 0.1
    assert found["gains"]["pretrained - random_init"] == {"mean": 0.123456, "low": 0.05, "high": 0.2, "p": 0.0005}
    assert len(found["curve"]) == 9
    assert found["warnings"] == ["a note"]


def test_plots_have_a_row_per_encoder_and_point_and_per_test_row() -> None:
    curve = reports.curve_rows(report(score()))
    assert curve[0] == (1, "pretrained", 0.5123, 0.4, 0.6)
    assert [row[1] for row in curve].count("raw_input") == 3
    assert reports.confusion_rows(report(score())) == [("dog", "dog"), ("dog", "cat"), ("cat", "cat")]
    assert reports.curve_rows(None) == reports.confusion_rows(None) == reports.confusion_rows(report(None)) == []


@pytest.mark.parametrize("write", [reports.table, reports.markdown])
def test_readers_see_every_line_and_every_note(write: Callable[[reports.Json], str]) -> None:
    text = write(reports.details(report(score())))
    for word in ("pretrained", "random_init", "raw_input", "knn", "shuffled_labels", "majority", "0.667", "a note"):
        assert word in text
    assert "pretrained - random_init: +0.123 (95 % interval +0.050 to +0.200, p < 0.001)" in text
    assert "pretrained - random_init, 5 a class: +0.000 (95 % interval -1.000 to +1.000)" in text
    assert "3 to test in 3 groups" in text
    kept = json.loads(json.dumps(reports.details(report(score()))))
    assert write(kept) == text  # of a file as of the report
    assert "not finite" in write(reports.details(report(None)))


def test_figures_draw_what_there_is() -> None:
    axes = reports.curve_figure(report(score())).axes[0]
    assert [line.get_label() for line in axes.lines] == ["pretrained", "random_init", "raw_input", "majority"]
    image = reports.confusion_figure(report(score())).axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), [[1, 0], [0.5, 0.5]])
    assert reports.confusion_figure(report(None)) is None
    assert len(reports.curve_figure(report(None)).axes[0].lines) == 3


def test_a_class_that_nobody_predicts_has_a_row_in_the_confusion() -> None:
    odd = replace(score(), predicted=np.array([0, 0, 0]))
    assert reports.confusion_figure(report(odd)).axes[0].images[0].get_array().shape == (2, 2)


def test_zero_shot_stands_beside_the_probe_where_there_is_one() -> None:
    told = replace(report(score()), zero_shot=Share(0.43211, 0.4, 0.5))
    assert reports.metrics(told)["zero_shot"] == {"accuracy": 0.4321, "low": 0.4, "high": 0.5}
    assert reports.details(told)["zero_shot"]["accuracy"] == 0.4321
    assert "zero_shot" in reports.table(reports.details(told))
    assert "zero_shot" not in reports.metrics(report(score()))
    assert "zero_shot" not in reports.table(reports.details(report(score())))


def test_the_map_has_every_point_in_the_colour_of_its_label() -> None:
    plane = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    figure = reports.plane_figure(replace(report(score()), plane=plane))
    clouds = {cloud.get_label(): len(cloud.get_offsets()) for cloud in figure.axes[0].collections}
    assert clouds == {"cat": 1, "dog": 2}
    assert reports.plane_figure(report(None)) is None


def test_few_labels_are_compared_row_by_row_and_draw_by_draw() -> None:
    rows = np.arange(40)
    of = Task(np.arange(80), np.zeros(80, np.int64), np.arange(80) >= 40, np.arange(80), ("cat",))
    right = np.stack([rows < 20, rows < 24, rows < 28])
    ahead = replace(score(), curve=(Point(5, 0.6, 0.5, 0.9, right), CURVE[-1]))
    behind = replace(score(), curve=(Point(5, 0.5, 0.4, 0.8, right & (rows % 6 > 0)), CURVE[-1]))
    scores = {"pretrained": ahead, "random_init": behind, "raw_input": None}
    both = replace(report(ahead), task=of, scores=scores)
    (gain,) = few_shot_gains(both, "random_init")
    expected = paired(right, right & (rows % 6 > 0), rows)
    assert (gain.labels, gain.accuracy, gain.low, gain.high) == (5, expected.mean, expected.low, expected.high)
    assert gain.accuracy > 0.09 and gain.low > 0
    assert few_shot_gains(both, "raw_input") == []
