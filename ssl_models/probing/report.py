"""What a probe's report looks like: DVC's metrics and the report, the table on the console and in Markdown, the rows of
the plots, and the figures. One place for names, so that every reader of them sees the same words.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ssl_models.layout import console, flat
from ssl_models.layout import markdown as grid
from ssl_models.probing.probe import Report, Score, Share, few_shot_gains

CURVE_COLUMNS = ("labels", "encoder", "accuracy", "low", "high")
CONFUSION_COLUMNS = ("actual", "predicted")
DIGITS = 4
HEADLINE = {
    "accuracy": "pretrained.accuracy",
    "gain": "gain.random_init",
    "gain_low": "gain.random_init_low",
    "raw_input": "raw_input.accuracy",
}
"""`metrics.json`, and where each number stands in `metrics`: `gain` is that over the random encoder."""
MOST_CLASSES_NAMED = 30
"""Classes whose names still fit beside a confusion matrix."""

DETAILS = ("rows", "encoders", "curve", "gains", "few_shot_gains", "unseen_classes", "warnings", "weights")
"""What `report.json` holds beside `metrics`."""

Json = dict[str, Any]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def headline(report: Report | None) -> Json:
    """`metrics.json`: the few numbers that `dvc metrics` shows; null where there is none. Few labels are the middle one
    of `probe.shots`."""
    if report is None:
        return dict.fromkeys(HEADLINE)
    shown = flat(metrics(report))
    few = [key for key in shown if key.startswith("pretrained.labels_")]
    some = {few[len(few) // 2].removeprefix("pretrained."): shown[few[len(few) // 2]]} if few else {}
    return {name: shown[key] for name, key in HEADLINE.items()} | some


def metrics(report: Report | None) -> Json:
    """Every number by its name. A report of None is of a corpus without labels; what does not exist is null."""
    if report is None:
        return {"labels": 0, "classes": 0}
    shots = [point.labels for score in report.scores.values() if score for point in score.curve[:-1]]
    named = [f"labels_{count}" for count in dict.fromkeys(shots)]
    gains: Json = {}
    for other, gain in report.gains.items():
        gains[other] = _rounded(gain.mean if gain else None)
        gains[f"{other}_low"] = _rounded(gain.low if gain else None)
    for point in few_shot_gains(report, "random_init"):
        gains[f"random_init_labels_{point.labels}"] = _rounded(point.accuracy)
        gains[f"random_init_labels_{point.labels}_low"] = _rounded(point.low)
    pretrained = report.scores["pretrained"]
    return {
        **{name: _score(score, named) for name, score in report.scores.items()},
        "majority": {"accuracy": _rounded(report.majority)},
        "shuffled_labels": {"accuracy": _rounded(report.shuffled_labels)},
        "knn": {"accuracy": _rounded(report.knn)},
        **({"zero_shot": _share(report.zero_shot)} if report.zero_shot else {}),
        "gain": gains,
        "feature": pretrained.feature if pretrained else None,
        "labels": len(report.task.labels),
        "classes": report.task.classes,
    }


def _share(share: Share) -> Json:
    return {name: _rounded(value) for name, value in asdict(share).items()}


def _score(score: Score | None, named: list[str]) -> Json:
    if score is None:
        return dict.fromkeys(["accuracy", "low", "high", *named])
    curve = {f"labels_{point.labels}": _rounded(point.accuracy) for point in score.curve[:-1]}
    return {"accuracy": _rounded(score.accuracy), "low": _rounded(score.low), "high": _rounded(score.high), **curve}


def details(report: Report | None) -> Json:
    """`report.json`: all of `metrics`, and what was chosen, every interval, every comparison, every warning."""
    if report is None:
        return metrics(None)
    task = report.task
    rows = {"train": len(task.trained), "test": len(task.tested), "test_groups": len(np.unique(task.tested_groups))}
    chosen = ("feature", "strength", "width", "slice_accuracy", "converged", "accuracy", "low", "high")
    return {
        **metrics(report),
        "rows": {**rows, "classes": task.classes},
        "encoders": {
            name: score and {**{key: getattr(score, key) for key in chosen}, "seeds": len(score.correct)}
            for name, score in report.scores.items()
        },
        "curve": [dict(zip(CURVE_COLUMNS, row, strict=True)) for row in curve_rows(report)],
        "gains": {f"pretrained - {name}": gain and asdict(gain) for name, gain in report.gains.items()},
        "few_shot_gains": [
            {"labels": point.labels, "mean": point.accuracy, "low": point.low, "high": point.high}
            for point in few_shot_gains(report, "random_init")
        ],
        "unseen_classes": task.unseen,
        "warnings": list(report.warnings),
    }


def curve_rows(report: Report | None) -> list[tuple[int, str, float, float, float]]:
    """Rows of `label_efficiency.csv`: CURVE_COLUMNS. An encoder's last point is all labels, per class on average."""
    scores = report.scores.items() if report else ()
    return [
        (point.labels, name, round(point.accuracy, DIGITS), round(point.low, DIGITS), round(point.high, DIGITS))
        for name, score in scores
        if score
        for point in score.curve
    ]


def confusion_rows(report: Report | None) -> list[tuple[str, str]]:
    """Rows of `confusion.csv`: CONFUSION_COLUMNS, one for each test row of the pre-trained encoder."""
    score = report.scores["pretrained"] if report else None
    if report is None or score is None:
        return []
    names = report.task.names
    pairs = zip(report.task.tested, score.predicted, strict=True)
    return [(names[actual], names[predicted]) for actual, predicted in pairs]


def _cells(content: Json) -> tuple[list[str], list[list[str]]]:
    counts = list(dict.fromkeys(row["labels"] for row in content["curve"]))
    curves = {name: [row for row in content["curve"] if row["encoder"] == name][:-1] for name in content["encoders"]}
    shots = counts[: max(map(len, curves.values()), default=0)]
    header = ["", "accuracy", "95 % interval", *(f"{count} a class" for count in shots), "feature"]
    blank = [""] * len(shots)
    rows = []
    for name, score in content["encoders"].items():
        if score is None:
            rows.append([name, "none", "", *blank, "not finite"])
            continue
        points = [f"{row['accuracy']:.3f}" for row in curves[name]]
        rows.append([name, f"{score['accuracy']:.3f}", _interval(score), *points, score["feature"]])
    if (share := content.get("zero_shot")) is not None:
        rows.append(["zero_shot", f"{share['accuracy']:.3f}", _interval(share), *blank, ""])
    singles = {name: content[name]["accuracy"] for name in ("knn", "shuffled_labels", "majority")}
    rows += [[name, f"{value:.3f}", "", *blank, ""] for name, value in singles.items() if value is not None]
    return header, rows


def _interval(of: Json) -> str:
    return f"{of['low']:.3f}-{of['high']:.3f}"


def verdicts(content: Json) -> list[str]:
    """One line for each comparison on the same test rows."""
    lines = [f"{name}: {_difference(gain)}, p {_p(gain['p'])})" for name, gain in content["gains"].items() if gain]
    lines += [
        f"pretrained - random_init, {gain['labels']} a class: {_difference(gain)})"
        for gain in content["few_shot_gains"]
    ]
    return lines


def _difference(gain: Json) -> str:
    return f"{gain['mean']:+.3f} (95 % interval {gain['low']:+.3f} to {gain['high']:+.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def asked(content: Json) -> str:
    """One sentence on what the numbers are of."""
    rows, fresh = content["rows"], content["encoders"]["random_init"]
    seeds = f", random_init the mean of {fresh['seeds']} random encoders" if fresh else ""
    tested = f"{rows['test']} to test in {rows['test_groups']} groups"
    return f"{rows['train']} labelled rows to train on, {tested}, {rows['classes']} classes{seeds}."


def table(content: Json) -> str:
    """`details` for a console."""
    warnings = [f"note: {warning}" for warning in content["warnings"]]
    return "\n".join([*console(*_cells(content)), asked(content), *verdicts(content), *warnings])


def markdown(content: Json) -> str:
    """`details` for a reviewer."""
    points = [f"- {line}" for line in [*verdicts(content), *content["warnings"]]]
    return "\n".join(["## Linear probe", "", asked(content), "", grid(*_cells(content)), "", *points, ""])


def curve_figure(report: Report) -> Any:
    """Accuracy over labels per class, a line and a band for each encoder: a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, score in report.scores.items():
        if score is None:
            continue
        labels = [point.labels for point in score.curve]
        (line,) = axes.plot(labels, [point.accuracy for point in score.curve], marker="o", label=name)
        low, high = [point.low for point in score.curve], [point.high for point in score.curve]
        axes.fill_between(labels, low, high, color=line.get_color(), alpha=0.15)
    axes.axhline(report.majority, color="grey", linestyle=":", label="majority")
    axes.set(xscale="log", xlabel="labels per class", ylabel="test accuracy", title="Label efficiency")
    axes.legend()
    return figure


def confusion_figure(report: Report) -> Any:
    """Shares of each actual class: a matplotlib Figure; None where there are no predictions."""
    from matplotlib.figure import Figure

    score = report.scores["pretrained"]
    if score is None:
        return None
    present = np.unique(np.concatenate([report.task.tested, score.predicted]))
    place = {label: index for index, label in enumerate(present)}
    counts = np.zeros((len(present), len(present)))
    for actual, predicted in zip(report.task.tested, score.predicted, strict=True):
        counts[place[actual], place[predicted]] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the actual class")
    if len(present) <= MOST_CLASSES_NAMED:
        names = [report.task.names[label] for label in present]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="actual", title="Confusion of the pre-trained encoder")
    return figure


def plane_figure(report: Report) -> Any:
    """The map of the features, coloured by label: a matplotlib Figure; None where there are no features."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if report.plane is None:
        return None
    labels = report.task.tested[: len(report.plane)]
    present = np.unique(labels)
    colours = colormaps["turbo"](np.linspace(0, 1, len(present)))
    named = len(present) <= MOST_CLASSES_NAMED
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, colour in zip(present, colours, strict=True):
        points = report.plane[labels == label]
        name = report.task.names[label] if named else None
        axes.scatter(points[:, 0], points[:, 1], s=8, color=colour, label=name)
    axes.set(xlabel="first principal component", ylabel="second", title="Features of the test rows")
    if named:
        figure.legend(loc="outside right upper")
    return figure
