"""Triton's process: started, watched, started again and ended, in the foreground or the background."""
