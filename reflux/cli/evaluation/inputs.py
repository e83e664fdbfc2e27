"""What an evaluation is given: the pairs to decide between, a file's questions, an overseer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reflux.agents.errors import UsageError
from reflux.agents.overseers.demonstrations import Demonstrations
from reflux.agents.overseers.scripted import asks_humans
from reflux.graphs.evals.eval_task import FileEvalTask, file_eval_task
from reflux.graphs.evals.questions.files import read_questions
from reflux.graphs.evals.questions.forms import Keys
from reflux.overseers import overseer_named, with_demos

AUTOMATIC = ("model", "plain")
"""Overseers without human input."""


def pairs_of(texts: Sequence[str], keys: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of systems to decide between.

    Raises:
        UsageError: one does not name two of the systems.
    """
    pairs: list[tuple[str, str]] = []
    for text in texts:
        names = [name.strip() for name in text.split(",")]
        if len(names) != 2 or names[0] == names[1] or not set(names) <= set(keys):
            raise UsageError(
                f"--compare {text!r} must name two of --systems {','.join(keys)}, as "
                f"{','.join(reversed(keys[:2])) if len(keys) > 1 else 'amplified,direct'}"
            )
        pairs.append((names[0], names[1]))
    return pairs


def file_task_of(data: str, keys: Keys, score: str, limit: int | None) -> FileEvalTask:
    if Path(keys.template).is_file():
        keys = replace(keys, template=Path(keys.template).read_text(encoding="utf-8"))
    return file_eval_task(read_questions(data, keys), score, limit)


def overseer_of(name: str, demos: Demonstrations | None) -> str:
    name = name or "model"
    if asks_humans(with_demos(overseer_named(name), demos)):
        raise UsageError(
            f"--overseer {name} waits for human input, for which an evaluation cannot wait; use "
            f"{' or '.join(AUTOMATIC)}"
        )
    return name
