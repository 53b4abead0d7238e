"""Command lines of `nst train`, `nst optimize` and `nst texture`."""

from nst_core.options import CommandLine
from nst_trainer.commands.optimize import optimize
from nst_trainer.commands.texture import texture
from nst_trainer.commands.train import train

app = CommandLine()
app.command()(train)
optimize_app = CommandLine()
optimize_app.command()(optimize)
texture_app = CommandLine()
texture_app.command()(texture)
