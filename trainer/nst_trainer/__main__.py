"""`python -m nst_trainer` is `nst-train`: what `torchrun` can start."""

import os

# What the command says of a lost machine is one line; PyTorch would write its C++ frames above it.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from nst_trainer.cli import app

app()
