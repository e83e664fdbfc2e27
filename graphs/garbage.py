"""Garbage collection while answers are computed: rare, for it visits every object of the trees."""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock

THRESHOLDS = (50_000, 20, 20)
"""Objects before a young garbage collection, and younger collections before an older one."""

_lock = Lock()
_open_blocks = 0
_thresholds = gc.get_threshold()


@contextmanager
def rare_collections() -> Generator[None]:
    """Collect garbage rarely while a tree grows; restore the thresholds after the last such block.

    A tree makes many objects that live until its end, and few cycles: full collections visit them
    all and take a fifth of a call's processor time. A collector that is off stays off.
    """
    global _open_blocks, _thresholds
    with _lock:
        _open_blocks += 1
        if _open_blocks == 1:
            _thresholds = gc.get_threshold()
            gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
            if _open_blocks == 0:
                gc.set_threshold(*_thresholds)


@contextmanager
def settled() -> Generator[None]:
    """Exempt what a server holds at its start from garbage collection, which would delay every
    answer under way; collect the rest rarely."""
    gc.collect()
    gc.freeze()
    try:
        with rare_collections():
            yield
    finally:
        gc.unfreeze()
