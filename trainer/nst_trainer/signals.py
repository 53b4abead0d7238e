"""Ctrl-C and SIGTERM between two steps of a computation, never within a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class SecondInterrupt(KeyboardInterrupt):
    """The second signal while the first still waits: end now, save nothing."""


def interrupt_on_signals() -> None:
    """Make SIGTERM a Ctrl-C, as a supervisor sends it, and hear Ctrl-C also under nohup, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block, where Python handles them (in the main thread only).

    A second signal inside the block does not wait: it raises `SecondInterrupt`, and what the block does is half done.
    """
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if waiting:
            raise SecondInterrupt
        waiting.append((number, frame))

    completed = False
    try:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(name)):
                    handlers[name] = handler
                    signal.signal(name, hold)
        yield
        completed = True
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if completed:  # an error in the block is the news, not the signal
            for number, frame in waiting:
                handlers[number](number, frame)
