"""Started by torchrun in a test: the leading process writes the gradients of a training's first step."""

import sys
from pathlib import Path

import torch

from nst_trainer.training.distributed.team import Team, join_team
from nst_trainer.training.loop import Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import vgg16_weights

Team.precision = lambda self: (torch.float32, "rounding of bfloat16 would hide what differs")  # type: ignore[method-assign]
style, photos, output = map(Path, sys.argv[1:])
with join_team() as team:
    settings = TrainingSettings(width=0.125, crop=64, batch=4, iterations=3, style_size=128)
    training = Training([style], photos, output, Vgg16(vgg16_weights()), settings, team=team)
    next(training.steps())
    if team.leads:
        torch.save({name: values.grad for name, values in training.state.network.named_parameters()}, output)
