"""The tasks that ship with Reflux: one file each, named here.

All but addition, multiplication and hanoi draw their questions from packages of the extra `tasks`,
which are imported when the first question is drawn.
"""

from collections.abc import Callable

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.evals.task import Task, writing_of
from reflux.tasks.addition import Addition
from reflux.tasks.chain_sum import chain_sum
from reflux.tasks.family_relationships import family_relationships
from reflux.tasks.hanoi import Hanoi
from reflux.tasks.letter_counting import letter_counting
from reflux.tasks.multihop import multihop
from reflux.tasks.multiplication import Multiplication, MultiplicationLeaves
from reflux.tasks.needle_haystack import needle_haystack
from reflux.tasks.number_filtering import number_filtering
from reflux.tasks.number_sorting import number_sorting
from reflux.tasks.products import products
from reflux.tasks.spell_backward import spell_backward
from reflux.tasks.time_intervals import time_intervals
from reflux.tasks.word_sorting import word_sorting

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
"""Where neither the user nor the run names one."""


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}; there are: {', '.join(sorted(TASKS))}")
    return TASKS[name]()


def writing_named(name: str | None) -> str:
    """How a task of that name writes, where that is not as people do; empty, too, where
    there is
    no such task, or what it needs is not installed."""
    try:
        return writing_of(task_named(name or ""))
    except RefluxError:
        return ""
