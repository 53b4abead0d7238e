"""Run `nst train` as `python -m nst_trainer`, the form that `torchrun` starts."""

import os

# A lost machine is reported in one line; otherwise PyTorch prints its C++ stack above it.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from nst_trainer.cli import app

app()
