"""The tasks that ship with Reflux, by name.

All but addition, multiplication and hanoi draw their questions from packages of the extra `tasks`,
which are imported when the first question is drawn.
"""

from collections.abc import Callable
from functools import cache

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.evals.task import Task, writing_of
from reflux.graphs.external.user_code import load_instance
from reflux.graphs.external.user_sources import is_reference
from reflux.tasks.addition import Addition
from reflux.tasks.arithmetic import (
    ChainSum,
    NumberFiltering,
    NumberSorting,
    Products,
    TimeIntervals,
    WordSorting,
)
from reflux.tasks.hanoi import Hanoi
from reflux.tasks.multihop import Multihop
from reflux.tasks.multiplication import Multiplication, MultiplicationLeaves
from reflux.tasks.reading import FamilyRelationships, LetterCounting, NeedleHaystack, SpellBackward

TASKS: dict[str, Callable[[], Task]] = {
    kind.name: kind
    for kind in (
        Addition,
        Multiplication,
        MultiplicationLeaves,
        Hanoi,
        ChainSum,
        Products,
        NumberSorting,
        NumberFiltering,
        WordSorting,
        SpellBackward,
        LetterCounting,
        TimeIntervals,
        NeedleHaystack,
        FamilyRelationships,
        Multihop,
    )
}

DEFAULT_TASK = "addition"
"""The task where neither the user nor the run names one."""


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: there is none.
    """
    if name in TASKS:
        return TASKS[name]()
    if is_reference(name):
        return _own_task(name)
    raise UsageError(
        f"there is no task {name!r}; there are: {', '.join(sorted(TASKS))}, and your own as "
        "FILE.py:NAME"
    )


@cache
def _own_task(name: str) -> Task:
    """A user's task, an object or a class without arguments."""
    made = load_instance(name)
    parts = [part for part in vars(Task) if not part.startswith("_")]
    if lacking := [part for part in ("name", *parts) if not hasattr(made, part)]:
        raise UsageError(
            f"{name} is no task: it lacks {', '.join(lacking)}; make it a subclass of reflux.Task"
        )
    return made


def writing_named(name: str | None) -> str:
    """A note on how a task of that name writes its numbers, where it differs from people.

    Empty for an unknown task, and where a package that the task needs is missing.
    """
    try:
        return writing_of(task_named(name or ""))
    except RefluxError:
        return ""
