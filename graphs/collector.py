"""Python's cyclic garbage collector kept out of the way while a tree grows.

A tree makes many objects that live until its end, and few cycles. Each full collection walks them
all, and every library beside them: about a fifth of the processor time of a call, and the tree
stands still meanwhile (`benchmarks.tree`).
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock

THRESHOLDS = (50_000, 20, 20)
"""Objects before a young collection, and younger ones before an older: cycles are still freed."""

_lock = Lock()
_inside = 0
_before = gc.get_threshold()


@contextmanager
def rare_collections() -> Generator[None]:
    """Collect rarely; as before once the last of the blocks that overlap ends.

    Thresholds alone are changed: a collector that the user has switched off stays off.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = gc.get_threshold()
            gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                gc.set_threshold(*_before)


@contextmanager
def settled() -> Generator[None]:
    """For a process that serves: what lives at its start, libraries above all, is walked no more,
    and the rest rarely. A full collection would let every answer under way wait for it."""
    gc.collect()
    gc.freeze()
    try:
        with rare_collections():
            yield
    finally:
        gc.unfreeze()
