"""Whether `torch.compile` can work on this machine's GPU: Triton builds each kernel's launcher with a C compiler."""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from pathlib import Path


@functools.cache
def lacking() -> str | None:
    """What `torch.compile` lacks here to compile for a GPU, and how to get it; None where it lacks nothing."""
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton (pip install triton)"
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "clang") if name):
        return "a C compiler (apt install gcc)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (apt install python3-dev)"
    return None
