"""The event loop of callers that have none: one thread, shared by all sync calls."""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

from reflux.agents.errors import UsageError

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own; it ends with the program.

    `asyncio.run` would not do: it refuses where a loop is running (a notebook), and what one call
    opens the next could not use.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="reflux-sync", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do async work and wait for it; an interrupt of the waiting cancels the work.

        Raises:
            UsageError: called from the loop itself, which would wait for ever.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("a sync call from within a sync call would wait for ever: await it")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


@cache
def loop_thread() -> LoopThread:
    """The one that all share."""
    return LoopThread()
