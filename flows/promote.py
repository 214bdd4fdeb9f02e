"""The champion by hand: `python -m flows.promote CORPUS` lists the versions, `... CORPUS VERSION` moves the alias to
one, `... CORPUS --back` moves it to the champion before.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ssl_models.tracking import store
from ssl_models.training.job import Tracking
from stages import params, provenance
from stages.params import UserError
from stages.registry.versions import ACCURACY, CHAMPION, DECISION, MODEL, Registry


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
        return "\n".join(_line(entry, present) for entry in versions)
    if version not in {str(entry.version) for entry in versions}:
        known = ", ".join(str(entry.version) for entry in versions)
        raise UserError(f"{corpus}: has no version {version} (versions: {known})")
    if version == present:
        return f"{corpus}: version {version} is the champion already"
    registry.promote(corpus, version)
    registry.client.set_model_version_tag(corpus, version, DECISION, f"promoted by hand, after version {present}")
    return f"{corpus}: version {version} is champion now; it was {present or 'none'} (back: --back)"


def _line(version: Any, champion: str | None) -> str:
    mark = CHAMPION if str(version.version) == champion else ""
    model, accuracy, decision = (version.tags.get(tag, "") for tag in (MODEL, ACCURACY, DECISION))
    return f"{version.version:>4}  {model:20}  {accuracy:8}  {mark:8}  {decision}".rstrip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument("corpus", help="the registered model")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("version", nargs="?", help="the version to make champion; default: list them all")
    chosen.add_argument("--back", action="store_true", help="return to the champion before")
    given = parser.parse_args()
    try:
        params.corpus(given.corpus)
        store.quiet()
        registry = Registry(Tracking(uri=provenance.tracking_uri(), experiment=given.corpus))
        print(promote(registry, given.corpus, given.version, given.back))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
