"""One set of words for metrics, table, Markdown, plots and figures."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ssl_models.probing import report as reports
from ssl_models.probing.intervals import Gain
from ssl_models.probing.probe import Point, Report, Score, Share, Task, few_shot_gains

TASK = Task(
    np.arange(6), np.array([0, 1, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1], bool), np.arange(6), ("cat", "dog")
)
CURVE = (Point(1, 0.51234, 0.4, 0.6, (0.5, 0.6)), Point(5, 0.6, 0.5, 0.7, (0.6, 0.6)), Point(2, 2 / 3, 0.2, 0.94))


def score(feature: str = "mean") -> Score:
    return Score(feature, 0.1, 8, 0.5, True, np.array([1, 0, 0]), 2 / 3, 0.2, 0.94, CURVE)


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
            **{f"random_init_labels_{labels}{low}": 0.0 for labels in (1, 5) for low in ("", "_low")},
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
    assert found["rows"] == {"train": 3, "test": 3, "classes": 2}
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
def test_readers_see_every_line_and_every_note(write: Callable[[Report], str]) -> None:
    text = write(report(score()))
    for word in ("pretrained", "random_init", "raw_input", "knn", "shuffled_labels", "majority", "0.667", "a note"):
        assert word in text
    assert "pretrained - random_init: +0.123 (95 % interval +0.050 to +0.200, p < 0.001)" in text
    assert "not finite" in write(report(None))


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
    assert "zero_shot" in reports.table(told)
    assert "zero_shot" not in reports.metrics(report(score()))
    assert "zero_shot" not in reports.table(report(score()))


def test_the_map_has_every_point_in_the_colour_of_its_label() -> None:
    plane = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    figure = reports.plane_figure(replace(report(score()), plane=plane))
    clouds = {cloud.get_label(): len(cloud.get_offsets()) for cloud in figure.axes[0].collections}
    assert clouds == {"cat": 1, "dog": 2}
    assert reports.plane_figure(report(None)) is None


def test_few_labels_are_compared_draw_by_draw() -> None:
    ahead = replace(score(), curve=(Point(5, 0.7, 0.5, 0.9, (0.6, 0.7, 0.8)), CURVE[-1]))
    behind = replace(score(), curve=(Point(5, 0.6, 0.4, 0.8, (0.5, 0.6, 0.7)), CURVE[-1]))
    both = replace(report(ahead), scores={"pretrained": ahead, "random_init": behind, "raw_input": None})
    (gain,) = few_shot_gains(both, "random_init")
    assert (gain.labels, round(gain.accuracy, 9), round(gain.low, 9)) == (5, 0.1, 0.1)
    assert few_shot_gains(both, "raw_input") == []
