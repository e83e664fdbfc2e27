"""The tasks that ship with Reflux: one file each, named here."""

from collections.abc import Callable

from agents.errors import UsageError
from graphs.task import Task
from reflux.tasks.addition import Addition

TASKS: dict[str, Callable[[], Task]] = {"addition": Addition}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}; there are: {', '.join(sorted(TASKS))}")
    return TASKS[name]()
