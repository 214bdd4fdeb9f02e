"""The code stage: `python -m stages.code`. It writes `code.json`, on which every other stage depends, so that it is the
first of a pipeline that has changed: before any other works, all that is asked for is checked."""

from __future__ import annotations

import os
import sys

from stages.digests import policy


def main() -> None:
    """Write `code.json`; check where it says anything new, or DVC asks. A mistake is one sentence and exit status 2."""
    try:
        if policy.write() or "DVC_STAGE" in os.environ:
            from stages import check  # as seldom as it is needed

            check.main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
