"""Export checkpoints to verified models in Triton's model repository."""
