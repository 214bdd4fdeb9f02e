"""All of `params.yaml` and `compute.yaml`, before any stage works: `python -m stages.check`, which is `make check`.

Everything that is wrong is told at once, a sentence each. Whether a model fits its corpus is asked of the objective
itself: it is built for the rows that the corpus will have (a large one without memory), so that no rule stands twice.
What only the data can tell is left to the stages.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_models.config import Model
from ssl_models.data.encoding import Encoding
from ssl_models.models import presets
from ssl_models.sentences import meant
from stages import params
from stages.params import COMPUTE, PARAMS, Corpus, Params, UserError

LARGE = 2**25
"""Parameters, about, of a model that is built without memory."""


def problems() -> list[str]:
    """What is wrong, a sentence each; empty where nothing is."""
    try:
        compute: list[str] = []
        params.find("stages.dispatch", params.load_compute().launcher, "launcher", COMPUTE)
    except UserError as error:
        compute = str(error).splitlines()
    try:
        read = params.load_params()
    except UserError as error:
        return [*str(error).splitlines(), *compute]
    wrong = {name: [*corpus(name, entry), *source(name, entry)] for name, entry in read.corpora.items()}
    models = [
        sentence
        for name, entry in read.models.items()
        if not wrong[entry.corpus]
        for sentence in model(name, entry, read)
    ]
    return [*(sentence for found in wrong.values() for sentence in found), *models, *compute]


def corpus(name: str, entry: Corpus) -> Iterator[str]:
    """What is wrong with one entry of `corpora`: its reader, and the options of every data stage."""
    at = f"corpora.{name}"
    try:
        reader = params.find("stages.readers", entry.ingest.reader, f"{at}.ingest.reader")
    except UserError as error:
        yield str(error)
    else:
        yield from _options(reader.Options, entry.ingest.options, f"{at}.ingest")
        if entry.modality not in reader.MODALITIES:
            reads = ", ".join(sorted(reader.MODALITIES))
            yield f"{PARAMS}: {at}.modality: the reader {entry.ingest.reader} reads {reads}, not {entry.modality}"
    for stage in ("dedup", "tokenize", "shard"):
        module = params.find(f"stages.modalities.{entry.modality}", stage, f"{at}.modality")
        yield from _options(module.Options, getattr(entry, stage), f"{at}.{stage}")
    tokenizer = entry.tokenize.get("tokenizer")
    if isinstance(tokenizer, str) and not Path(tokenizer).exists():
        yield f"{PARAMS}: {at}.tokenize.tokenizer: there is no file or folder {tokenizer}"


def _options(kind: Any, given: dict[str, Any], at: str) -> list[str]:
    try:
        params.options(kind, given, at)
    except UserError as error:
        return str(error).splitlines()
    return []


def source(name: str, entry: Corpus) -> Iterator[str]:
    """A sentence where the source of one entry of `corpora` is nowhere on this machine; a URL or a glob is left to its
    reader."""
    given = entry.ingest.source
    path = Path(given)
    if "://" in given or set("*?[") & set(given) or path.exists():
        return
    beside = [str(path.parent / other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    yield f"{PARAMS}: corpora.{name}.ingest.source: there is no file or folder {given}{meant(given, beside)}"


def model(name: str, entry: Model, read: Params) -> Iterator[str]:
    """What is wrong with one entry of `models` whose corpus is right."""
    at = f"models.{name}"
    if entry.init_from is not None:
        if not Path(entry.init_from).is_dir():
            yield f"{PARAMS}: {at}.init_from: there is no folder {entry.init_from}"
        return  # sizes are the folder's: the training job checks them
    with tempfile.TemporaryDirectory(prefix="pretext-check-") as folder:
        encoding = expected(read.corpora[entry.corpus], Path(folder))
        if encoding is None:
            return
        import torch

        from ssl_models import artifact

        try:
            with torch.device("meta" if _large(entry) else "cpu"):
                artifact.build(entry, encoding, f"{at}.task")
        except RuntimeError:
            return  # it computes while it is built, which the meta device does not: the training job will tell
        except ValueError as error:
            said = str(error)
            yield f"{PARAMS}: {said if said.startswith(at) else f'{at}: {said}'}"


def _large(entry: Model) -> bool:
    """Whether building the model would take longer than loading torch's meta device does: seconds."""
    if entry.backbone.architecture == "resnet":
        return False
    sizes = presets.resolve(entry.backbone)
    return 12 * sizes.layers * sizes.width**2 > LARGE


def expected(entry: Corpus, folder: Path) -> Encoding | None:
    """How the rows of a corpus will be encoded, as far as its options tell; None where only the data can. A codebook of
    the right size is put into `folder`."""
    tokenize = params.find(f"stages.modalities.{entry.modality}", "tokenize", "modality")
    shard = params.find(f"stages.modalities.{entry.modality}", "shard", "modality")
    encoding: Encoding | None = tokenize.expected(tokenize.Options.model_validate(entry.tokenize), folder)
    if encoding is None:
        return None
    described: Encoding = shard.described(encoding, shard.Options.model_validate(entry.shard))
    return described.model_copy(update={"folder": folder})


def main() -> None:
    """Print every problem; exit status 2 where there is one."""
    found = problems()
    for sentence in found:
        print(f"error: {sentence}", file=sys.stderr)
    if found:
        sys.exit(2)
    read = params.load_params()
    print(f"{PARAMS} and {COMPUTE}: {len(read.corpora)} corpora and {len(read.models)} models are well described")


if __name__ == "__main__":
    main()
