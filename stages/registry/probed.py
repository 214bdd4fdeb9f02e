"""From what the probe has left in `data/` to a version: by the probe's end, and made up for later.

A tracking server that is away at that moment, or a result that DVC restores from its cache, without running anything,
must not cost a model its version. So registering needs nothing but the files of the two stages, and may be asked for as
often as one likes: `python -m flows.promote --register`, with which `make run` and the flow end. The points of a DVC
experiment are no versions: hundreds of them on the same test rows would crown one by luck. One that is worth it is
taken over first (`dvc exp apply`), and then is a result like any other.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ssl_models import artifact
from ssl_models.addresses import public
from ssl_models.probing import report
from ssl_models.probing.intervals import Gain
from ssl_models.tracking import probe as probe_tracking
from ssl_models.tracking.execution import REPORT
from ssl_models.tracking.probe import Run
from ssl_models.training.job import Tracking
from stages import params
from stages.files import tables
from stages.registry import versions as registry
from stages.registry.decision import DECISION
from stages.results import provenance

EXPERIMENT = "DVC_EXP_NAME"
"""Set by DVC for the stages of an experiment."""


def folders(name: str) -> tuple[Path, Path]:
    """Where the model `models.NAME` lies, and what its probe has left."""
    return tables.address("pretrain", name) / "model", tables.address("linear-probe", name)


def trained(name: str) -> probe_tracking.Trained:
    """The model `models.NAME` as its run in MLflow knows it."""
    training = provenance.execution("pretrain", name)
    weights = registry.weights(folders(name)[0])
    return probe_tracking.Trained(name, weights, training.run_id if training else None)


def register(name: str, run: Run, store: Tracking) -> None:
    """Make a version of the probed model `models.NAME` and say what was decided, in one line."""
    if experiment := os.environ.get(EXPERIMENT):
        print(
            f"{name}: {experiment} is an experiment and so no version; dvc exp apply makes it a candidate", flush=True
        )
        return
    content = _probed(name)
    if content is None:
        return
    corpus, (model, probed) = params.model(name).corpus, folders(name)
    gain = content["gains"]["pretrained - random_init"]
    score = content["encoders"]["pretrained"]
    facts = registry.Facts(
        feature=score["feature"],
        accuracy=score["accuracy"],
        description=f"**{name}**\n\n{report.markdown(content)}",
        over_random=Gain(**gain) if gain else None,
        steps=artifact.read_model(model).train.steps,
        every=int(params.corpus(corpus).tokenize.get("every", 1)),
    )
    version = registry.register(name, corpus, model, probed / registry.PREDICTIONS, facts, run, store)
    if version is not None:
        print(f"{corpus} version {version.version}: {version.tags.get(DECISION, '')}", flush=True)


def _probed(name: str) -> dict[str, Any] | None:
    """`report.json` of a model with an accuracy whose weights are those that were probed; else None."""
    model, probed = folders(name)
    if not all(path.exists() for path in (probed / REPORT, probed / registry.PREDICTIONS, model / registry.WEIGHTS)):
        return None
    content: dict[str, Any] = json.loads((probed / REPORT).read_text(encoding="utf-8"))
    known = content.get("weights") == registry.weights(model)
    return content if known and content.get("encoders", {}).get("pretrained") else None


def catch_up() -> int:
    """Register every probed model of `params.yaml` that the registry lacks, its results into its run; how many."""
    made = 0
    for name, entry in params.load_params().models.items():
        if os.environ.get(EXPERIMENT) or (content := _probed(name)) is None:
            continue
        model, probed = folders(name)
        store = provenance.tracking(entry.corpus, f"linear-probe@{name}", ())
        try:
            mark = registry.fingerprint(model, probed / registry.PREDICTIONS)
            if registry.Registry(store).knows(entry.corpus, mark) is not None:
                continue
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(public(f"warning: the registry of {store.uri} cannot be asked: {reason}")[:400], file=sys.stderr)
            return made
        run = probe_tracking.log_file(trained(name), content, store)
        if run is not None:
            register(name, run, store)
            made += 1
    return made
