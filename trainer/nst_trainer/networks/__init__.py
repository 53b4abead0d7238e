"""Feed-forward networks, which stylize a content image in one pass."""

from nst_trainer.networks.fast import Fast
from nst_trainer.networks.johnson import Johnson
from nst_trainer.networks.styled import ConditionalInstanceNorm, StyledNetwork
from nst_trainer.networks.ulyanov import Ulyanov

ARCHITECTURES: dict[str, type[StyledNetwork]] = {network.name: network for network in (Johnson, Fast, Ulyanov)}
"""Every network that a checkpoint can name."""

__all__ = ["ARCHITECTURES", "ConditionalInstanceNorm", "Fast", "Johnson", "StyledNetwork", "Ulyanov"]
