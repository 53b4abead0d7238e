"""Triton's process: start, watch, restart and end it, in the foreground or the background."""
