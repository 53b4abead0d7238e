"""Run coroutines with or without an event loop, so that a client's code is written once for both.

A blocking transport's coroutines never suspend, so they are finished after their first step.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking transport has suspended")


async def maybe_await(value: Any) -> Any:
    """Return the result of an awaitable, or any other value as it is."""
    return await value if inspect.isawaitable(value) else value


async def sleep(seconds: float, *, aio: bool) -> None:
    """Sleep as `asyncio.sleep` does, or without `aio` as `time.sleep` does."""
    if aio:
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)


async def in_thread(work: Callable[..., T], *arguments: Any, aio: bool) -> T:
    """Return the result of `work(*arguments)`; with `aio` run it in a thread, so that it does not block the loop."""
    return await asyncio.to_thread(work, *arguments) if aio else work(*arguments)
