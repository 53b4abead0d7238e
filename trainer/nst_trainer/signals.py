"""Ctrl-C and SIGTERM between two steps of a computation, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class AtOnce(KeyboardInterrupt):
    """The second signal of an impatient person: end now, save nothing."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block, where Python handles them (in the main thread only).

    A second signal inside the block does not wait: it raises `AtOnce`, and what the block does is half done.
    """
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def hold(*received: object) -> None:
        if waiting:
            raise AtOnce
        waiting.append(received)  # type: ignore[arg-type]

    ended = False
    try:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(name)):
                    handlers[name] = handler
                    signal.signal(name, hold)
        yield
        ended = True
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if ended:  # an error in the block is the news, not the signal
            for number, where in waiting:
                handlers[number](number, where)
