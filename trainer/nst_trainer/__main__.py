"""`python -m nst_trainer` is `nst-train`: what `torchrun` can start."""

from nst_trainer.cli import app

app()
