"""The tasks that ship with Reflux, by name.

All but addition, multiplication and hanoi draw their questions from packages of the extra `tasks`,
which are imported when the first question is drawn.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from reflux.agents.errors import RefluxError, UsageError, check_has
from reflux.agents.prompts import is_unicode
from reflux.finetune.configs.task import DEFAULT_TASK, TaskConfig
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import AS_OVERSEER
from reflux.graphs.evals.task import Task, writing_of
from reflux.graphs.external.user_code import load_instance, user_traceback
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
from reflux.tasks.of_run import task_of_config
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


def task_of(folder: RunFolder, name: str | None) -> str:
    """The name of the task: the given one, else that of the folder's run, else addition."""
    config = folder.rounds_config() if name is None else None
    return name or (config.task_name if config else DEFAULT_TASK)


def own_task(folder: RunFolder) -> Task | None:
    """The task of the folder's run; None without a run, or where it cannot be found here: it is a
    program's own, or another version wrote the config."""
    try:
        config = folder.rounds_config()
        return run_task(config) if config else None
    except RefluxError:
        return None


def task_named(name: str, folder: RunFolder | None = None) -> Task:
    """The task of this name: that of the folder's run, a shipped one, or a user's.

    Raises:
        UsageError: there is none.
    """
    config = folder.rounds_config() if folder is not None else None
    if config is not None and name == config.task_name:
        return run_task(config)
    if name in TASKS:
        return TASKS[name]()
    if is_reference(name):
        return _own_task(name)
    if config is not None and name == run_task(config).name:
        return run_task(config)
    raise UsageError(
        f"there is no task {name!r}; there are: {', '.join(sorted(TASKS))}, and your own as "
        "FILE.py:NAME"
    )


def run_task(config: TaskConfig) -> Task:
    """The task of a run's config.

    Raises:
        UsageError, MissingError: as `task_of_config`.
    """
    body = {key: getattr(config, key) for key in TaskConfig.model_fields}
    return _run_task(TaskConfig(**body).model_dump_json())


@lru_cache(maxsize=16)
def _run_task(config: str) -> Task:
    return task_of_config(TaskConfig.model_validate_json(config), task_named)


@cache
def _own_task(name: str) -> Task:
    """A user's task, an object or a class without arguments."""
    made = load_instance(name)
    parts = [part for part in vars(Task) if not part.startswith("_")]
    if lacking := [part for part in ("name", *parts) if not hasattr(made, part)]:
        raise UsageError(
            f"{name} is no task: it lacks {', '.join(lacking)}; make it a subclass of reflux.Task"
        )
    for part in ("questions", "primitives"):
        for text in _of_task(name, made, part):
            if not (isinstance(text, str) and is_unicode(text)):
                raise UsageError(f"{name}: {part}() gives {text!r:.80}; let it return texts")
    overseers = _of_task(name, made, "overseers")
    if not overseers:
        raise UsageError(f"{name}: overseers() gives none; return one, or leave the method out")
    check_has("an overseer", ("act", "name"), AS_OVERSEER, *overseers)
    return made


def _of_task(name: str, task: Task, part: str) -> list[Any]:
    """What a method of a user's task returns.

    Raises:
        RefluxError: it fails, or returns no sequence.
    """
    try:
        return list(getattr(task, part)())
    except RefluxError:
        raise
    except Exception as error:
        failure = RefluxError(
            f"{name}: {part}() fails or gives no list ({type(error).__name__}: {error}); correct it"
        )
        failure.add_note(user_traceback(error))
        raise failure from error


def writing_named(name: str | None) -> str:
    """A note on how a task of that name writes its numbers, where it differs from people.

    Empty for an unknown task, and where a package that the task needs is missing.
    """
    try:
        return writing_of(task_named(name or ""))
    except RefluxError:
        return ""
