"""Pipeline floor: one module per DVC stage. Imports `ssl_models.config`, never `flows`, and no torch in data stages."""

import sys

_programs = [word for word in sys.orig_argv if word.startswith("stages.")]
if _programs:  # `python -m stages.NAME`: its libraries load after this
    from stages import portable

    portable.hold(_programs[0])
