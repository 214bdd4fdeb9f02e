"""Pipeline floor: one module per DVC stage. Imports `ssl_models.config`, never `flows`, and no torch in data stages."""

import sys

_programs = [word for word in sys.orig_argv if word.startswith("stages.")]
_computes_nothing = {"stages.check", "stages.code"}
if _programs and _programs[0] not in _computes_nothing:  # `python -m stages.NAME`: its libraries load after this
    from stages import portable

    portable.hold(_programs[0])
