"""The champion by hand: `python -m flows.promote CORPUS` lists the versions, `... CORPUS VERSION` moves the alias to
one, `... CORPUS --back` moves it to the champion before. `python -m flows.promote --register` makes versions of what
was probed while the tracking server was away, or came from DVC's cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ssl_models.tracking import store
from ssl_models.training.job import Tracking
from stages import params
from stages.params import UserError
from stages.registry.decision import DECISION
from stages.registry.probed import catch_up
from stages.registry.versions import ACCURACY, EXPERIMENT, MODEL, STEPS, Registry
from stages.results import provenance


def promote(registry: Registry, corpus: str, version: str | None = None, back: bool = False) -> str:
    """Do what the command line asks for; returns what there is to say. UserError where it cannot be done."""
    versions = registry.versions(corpus)
    if not versions:
        raise UserError(f"{corpus}: has no registered version; probe a model of it first (dvc repro linear-probe)")
    if back:
        return f"{corpus}: version {registry.take_back(corpus)} is champion again"
    champion = registry.champion(corpus)
    present = str(champion.version) if champion else None
    if version is None:
        return listed(versions, present)
    if version not in {str(entry.version) for entry in versions}:
        known = ", ".join(str(entry.version) for entry in versions)
        raise UserError(f"{corpus}: has no version {version} (versions: {known})")
    if version == present:
        return f"{corpus}: version {version} is the champion already"
    before = registry.promote_by_hand(corpus, version)
    return f"{corpus}: version {version} is champion now; it was {before or 'none'} (back: --back)"


def listed(versions: Sequence[Any], champion: str | None) -> str:
    """The versions as a table; `*` marks the champion. The experiment is DVC's, of a version taken over from one."""
    rows = [["", "version", "date", "model", "steps", "accuracy", "experiment", "decision"]]
    for version in versions:
        made = datetime.fromtimestamp(version.creation_timestamp / 1000).astimezone()
        tags = [version.tags.get(tag, "-") for tag in (MODEL, STEPS, ACCURACY, EXPERIMENT, DECISION)]
        mark = "*" if str(version.version) == champion else ""
        rows.append([mark, str(version.version), f"{made:%Y-%m-%d %H:%M}", *tags])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument("corpus", nargs="?", help="the registered model")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("version", nargs="?", help="the version to make champion; default: list them all")
    chosen.add_argument("--back", action="store_true", help="return to the champion before")
    chosen.add_argument("--register", action="store_true", help="register what was probed and is no version yet")
    given = parser.parse_args()
    try:
        store.quiet()
        if given.register:
            catch_up()
            return
        if given.corpus is None:
            raise UserError(f"name a corpus (corpora: {', '.join(sorted(params.load_params().corpora))})")
        params.corpus(given.corpus)
        registry = Registry(Tracking(uri=provenance.tracking_uri(), experiment=given.corpus))
        print(promote(registry, given.corpus, given.version, given.back))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
