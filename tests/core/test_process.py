"""Settings of a process: the allocator's, in processes of their own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from nst_core.process import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def work():
    for _ in range(20):
        np.ones(40 * 2**20, np.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

work()
before = faults()
work()
print(faults() - before)
"""


def faults(keep: bool) -> int:
    """Page faults of twenty arrays of 40 MiB, after twenty others."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "keep" if keep else "leave"], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    """A page is 4 KiB, or a huge page of 2 MiB."""
    assert faults(keep=True) < 20 < faults(keep=False)
