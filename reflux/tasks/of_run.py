"""The task of a run's config: a shipped one, a user's class, or a file of questions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from reflux.agents.answer_checks import AnswerChecks, Reason, compact_json, json_check, schema_check
from reflux.agents.errors import UsageError
from reflux.agents.overseers.demonstration_file import read_demonstrations
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.verifiers import Checker, Verdict, as_verdict, verdict_of
from reflux.finetune.configs.task import OverseerConfig, TaskConfig
from reflux.finetune.data.demonstrations import check_demonstrations, learned_from
from reflux.graphs.evals.file_task import MAX_TOKENS, UNTESTED, FileTask
from reflux.graphs.evals.task import Task
from reflux.graphs.external.user_code import load_instance
from reflux.graphs.external.user_sources import is_reference
from reflux.overseers import overseer_named, with_max_tokens

JSON = "json"


class ConfiguredTask:
    """A task with the overseer, tools and token limit of a config in the place of its own; all else
    is the task's."""

    def __init__(self, task: Task, overseers: Sequence[Overseer], config: TaskConfig) -> None:
        self._task, self._max_tokens = task, config.max_tokens
        self._overseers = overseers or task.overseers()
        self.tool_names = config.tools or task.tool_names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def overseers(self) -> Sequence[Overseer]:
        return tuple(with_max_tokens(each, self._max_tokens) for each in self._overseers)

    def answer_tokens(self, question: str) -> int:
        return self._max_tokens or self._task.answer_tokens(question)


def task_of_config(config: TaskConfig, named: Callable[[str], Task]) -> Task:
    """The task of a config; `named` finds a task by its name.

    Raises:
        UsageError, MissingError: there is no such task, file, overseer or check, or it cannot be
            used.
    """
    if config.questions:
        return _file_task(config)
    task = named(config.task)
    overseers = _overseers(config.overseer, task)
    if not overseers and not config.tools and config.max_tokens is None:
        return task
    return cast(Task, ConfiguredTask(task, overseers, config))


def _overseers(config: OverseerConfig, task: Task | None = None) -> Sequence[Overseer]:
    """The overseer of a config; none where the task has its own.

    Raises:
        UsageError: there is none of the name, or the task holds out one of its demonstrations.
    """
    fields = config.prompted
    if not fields:
        return (overseer_named(config.name),) if config.name else ()
    if config.demos:
        demos = read_demonstrations(config.demos)
        if task is not None:
            check_demonstrations(demos, task, config.demos)
            demos = replace(demos, canonical=task.canonical)
        fields["demos"] = demos
    return (ModelOverseer(**fields),)


def _file_task(config: TaskConfig) -> FileTask:
    checks = [(Path(name).name, _check_named(name)) for name in config.check]
    of_form = [name == JSON or name.endswith(".json") for name in config.check]
    overseers = _overseers(config.overseer) or (overseer_named(),)
    task = FileTask(
        config.task_name,
        config.questions,
        config.keys,
        score=config.score,
        checker=AnswerChecks(checks, form_only=all(of_form)) if checks else UNTESTED,
        normalise=compact_json if any(of_form) else str.strip,
        overseers=[with_max_tokens(overseer, config.max_tokens) for overseer in overseers],
        tool_names=config.tools,
        max_tokens=config.max_tokens or MAX_TOKENS,
    )
    if source := config.overseer.demos:
        learned_from(source, task)
    return task


def _check_named(name: str) -> Reason:
    """A check by its name: `json`, a file of a JSON Schema, or a user's function or checker.

    Raises:
        UsageError: there is no such check.
    """
    if name == JSON:
        return json_check
    if name.endswith(".json"):
        return schema_check(Path(name))
    if not is_reference(name):
        raise UsageError(
            f"there is no check {name!r}: write json, the file of a JSON Schema as FILE.json, or "
            "FILE.py:NAME"
        )
    made = load_instance(name)
    if not hasattr(made, "check") and not callable(made):
        raise UsageError(
            f"{name} is no check: it needs to be a function (question, answer) that returns True "
            "or False, or to have `check(question, answer)`"
        )
    checker = cast(Checker, made) if hasattr(made, "check") else _FunctionChecker(name, made)

    def check(question: str, answer: str) -> str:
        verdict = verdict_of(checker, question, answer)
        return "" if verdict.ok else verdict.reason or verdict.rule or "refused"

    return check


class _FunctionChecker:
    """A user's function as a checker; `ValueError` refuses what it cannot read."""

    def __init__(self, name: str, function: Callable[[str, str], Any]) -> None:
        self._name, self._function = name, function

    def check(self, question: str, answer: str) -> Any:
        try:
            result = self._function(question, answer)
        except ValueError as error:
            return Verdict(False, self._name, str(error))
        if result is False:
            return Verdict(False, self._name, "it returned False")
        return as_verdict(self._function, result)
