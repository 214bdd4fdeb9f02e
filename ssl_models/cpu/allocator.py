"""The C library's allocator, told to keep what it frees.

glibc gives a freed tensor of 32 MB or more back to the kernel, which clears its pages anew when the next one like it is
asked for, at every step: three operations on 64 MB take 3.1 times the processor time. Steps of gpt, whose tensors are
smaller, take 1.00 of it (benchmarks/cpu.py).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed() -> None:
    """Let this process reuse its freed memory, whatever the size (glibc: mallopt(3)); elsewhere nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
