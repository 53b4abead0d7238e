"""From a checkpoint to a verified model in Triton's repository."""
