"""Coroutines that run with or without an event loop: a client's code is written once, for asyncio and without it.

A blocking transport's coroutines never suspend, so such a coroutine is finished after its first step.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking transport has suspended")


async def maybe_await(value: Any) -> Any:
    """A value, or the result of an awaitable."""
    return await value if inspect.isawaitable(value) else value


async def sleep(seconds: float, *, aio: bool) -> None:
    """As `asyncio.sleep`, or as `time.sleep` without `aio`."""
    if aio:
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)


async def in_thread(work: Callable[..., T], *arguments: Any, aio: bool) -> T:
    """What `work` returns. It takes long, so with `aio` it runs in a thread and does not block the loop."""
    return await asyncio.to_thread(work, *arguments) if aio else work(*arguments)
