"""Run a command as a child process that ends with its parent.

`python -m nst_apps.web.child PID MODULE ...` runs `python -m MODULE ...`, which stops when its parent PID is gone.
On Linux the kernel sends SIGTERM when the parent ends, however it ends. Elsewhere a killed parent leaves it running.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""The option of prctl(2) that sets the signal."""


def main() -> None:
    """Run the module that the arguments name."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the call
            sys.exit(f"process {parent}, which started this, is gone")
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


main()
