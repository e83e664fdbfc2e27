"""Blocking work in a thread that a cancelled command waits for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from reflux.agents.errors import RefluxError

T = TypeVar("T")


async def cancellable(work: Callable[[threading.Event], T]) -> T:
    """The result of blocking work in a thread; on cancellation, signal it to stop and wait for
    it."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(RefluxError):
            await future
        raise
