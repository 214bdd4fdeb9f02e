"""The text a reviewer reads first on a run's page: what was trained on what, how to do it again, what came out."""

from __future__ import annotations

from ssl_models.layout import markdown
from ssl_models.training.job import Job

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
_RESULT = "\n## Linear probe"
_REPRODUCE = "\n## Reproduce"


def opening(job: Job) -> str:
    """What is known before the first step."""
    model, train = job.model, job.model.train
    sizes = ", ".join(f"{name} {value}" for name, value in model.backbone.overrides.items())
    backbone = f"{model.backbone.preset} ({sizes})" if sizes else model.backbone.preset
    start = f", starting from `{model.init_from}`" if model.init_from else ""
    lines = [
        f"**{model.objective}** on the corpus **{model.corpus}**: {backbone}, {train.steps} steps of {train.batch} "
        f"rows, {train.optimizer}, {train.schedule} schedule, seed {train.seed}{start}."
    ]
    if job.tracking.datasets:
        rows = [[data.name, f"`{data.digest}`", f"`{data.source}`"] for data in job.tracking.datasets]
        lines += ["", markdown(["data", "DVC hash", "where"], rows)]
    if job.tracking.reproduce:
        lines += [_REPRODUCE, "", job.tracking.reproduce]
    return "\n".join(lines)


def with_result(note: str, result: str) -> str:
    """The description with the probe's report in Markdown before the commands; an earlier report is replaced."""
    facts, heading, commands = note.partition(_REPRODUCE)
    facts = facts.split(_RESULT)[0].rstrip()
    return f"{facts}\n\n{result.strip()}\n{heading}{commands}"
