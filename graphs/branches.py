"""How much of a tree is open at once: its memory follows from that, not from its size.

Without a bound every sub-question of a level would start together, and a tree of 100,000 would be
in memory whole. There is one gate for each depth. A branch holds the gate of its own depth until
it ends, and waits only for gates of greater depth: no two can wait for each other.
"""

import asyncio
from contextlib import AbstractAsyncContextManager


class Branches:
    """Lets at most `most` sub-questions of each depth be under way; the others wait their turn.

    Questions that share one of these share the bound. It serves one event loop at a time.
    """

    def __init__(self, most: int = 256) -> None:
        """Where `most` is below the requests that the client makes at once, it limits those."""
        self.most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[int, asyncio.Semaphore] = {}

    def at(self, depth: int) -> AbstractAsyncContextManager[None]:
        """To be entered for as long as a sub-question of this depth is under way."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # A semaphore belongs to the loop that it was used in.
            self._loop, self._gates = loop, {}
        if depth not in self._gates:
            self._gates[depth] = asyncio.Semaphore(self.most)
        return self._gates[depth]
