import subprocess
import sys

PAGES = """
import resource, sys, torch
from ssl_models.cpu import allocator
if sys.argv[1] == "keep":
    allocator.keep_freed()
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PAGES, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_large_tensors_take_memory_that_was_freed_before() -> None:
    large = 2**24 * 4 // 4096  # pages of one tensor
    assert faults("give back") - faults("keep") > 10 * large
