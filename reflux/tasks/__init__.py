"""The tasks that ship with Reflux, by name.

All but addition, multiplication and hanoi draw their questions from packages of the extra `tasks`,
which are imported when the first question is drawn.
"""

from collections.abc import Callable
from functools import cache

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.evals.task import Task, writing_of
from reflux.graphs.evals.user_code import load_instance
from reflux.graphs.evals.user_sources import is_reference
from reflux.tasks.addition import Addition
from reflux.tasks.arithmetic import (
    chain_sum,
    number_filtering,
    number_sorting,
    products,
    time_intervals,
    word_sorting,
)
from reflux.tasks.hanoi import Hanoi
from reflux.tasks.multihop import multihop
from reflux.tasks.multiplication import Multiplication, MultiplicationLeaves
from reflux.tasks.reading import (
    family_relationships,
    letter_counting,
    needle_haystack,
    spell_backward,
)

TASKS: dict[str, Callable[[], Task]] = {
    "addition": Addition,
    "multiplication": Multiplication,
    "multiplication_leaves": MultiplicationLeaves,
    "hanoi": Hanoi,
    "chain_sum": chain_sum,
    "products": products,
    "number_sorting": number_sorting,
    "number_filtering": number_filtering,
    "word_sorting": word_sorting,
    "spell_backward": spell_backward,
    "letter_counting": letter_counting,
    "time_intervals": time_intervals,
    "needle_haystack": needle_haystack,
    "family_relationships": family_relationships,
    "multihop": multihop,
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
