"""Let Ctrl-C and SIGTERM take effect between the steps of a computation, never within a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class SecondInterrupt(KeyboardInterrupt):
    """A second signal while the first still waits: stop at once without saving."""


def interrupt_on_signals() -> None:
    """Treat SIGTERM as Ctrl-C, and accept Ctrl-C also under nohup, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block (in the main thread, where Python handles them).

    A second signal inside the block raises `SecondInterrupt` at once and leaves the block incomplete.
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
        if completed:  # an error in the block matters more than the signal
            for number, frame in waiting:
                handlers[number](number, frame)
