"""One level of instructions for the libraries that decide a result: another processor then computes the same bytes.

Each library chooses its kernels by the processor, unless a variable says otherwise when it loads: NumPy, two OpenBLAS
(NumPy and SciPy bring one each), ATen, oneDNN, MKL and Numba. A stage holds them all to AVX2 with FMA, whatever a
machine has preset: a probe takes 1.0 to 1.3 times its time. Training is the exception: half the speed of a matrix
product comes from AVX-512, so those it spends its time in are held only where `compute.yaml` says `portable`. Processes
below a stage inherit the variables, its training and its workers among them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LITTLE = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # what NumPy has kernels for, beyond AVX2
}
"""Training spends little time in these."""
MUCH = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",  # Intel's processors obey; on AMD's, MKL takes kernels of its own
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "",  # those of that processor
}
"""Training spends its time in these."""
NEEDED = {"avx2", "fma"}
TRAINING = "stages.pretrain"
_CPU = Path("/proc/cpuinfo")


def capable() -> bool:
    """Whether this is an x86-64 processor with AVX2 and FMA, as far as Linux says."""
    lines = _CPU.read_text().splitlines() if _CPU.exists() else []
    return any(line.startswith("flags") and set(line.split()) >= NEEDED for line in lines)


def hold(stage: str) -> None:
    """Set the variables of the module `stage`, before NumPy or torch is imported; without AVX2 nothing is set. A
    mistake in `compute.yaml` ends the process with one sentence, and status 2."""
    from stages.params import COMPUTE, UserError, load_compute

    try:
        portable = load_compute().portable
        if portable and not capable():
            raise UserError(f"{COMPUTE}: portable: needs an x86-64 processor with AVX2 and FMA: set it to false here")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if capable():
        os.environ.update(LITTLE | (MUCH if portable or stage != TRAINING else {}))
