"""Training rows out of accepted trajectories and human corrections.

A row is what TRL takes, `{"prompt": [messages], "completion": [messages]}`; its provenance stands
beside it. No row holds a true answer: trajectories have none.

A run's rows are the overseer's own answers to its primitives, the accepted answers of the
amplified system, the base's answers to the anchor, and corrections. Answers in a chat or at the
command line become rows only when a human edits their tree. A sub-question that a human answered
is a separate row, beside the root that was recomputed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import Message
from reflux.graphs.evals.task import Task, is_held_out
from reflux.graphs.traces.review import edited_by_humans, rejected_by_humans
from reflux.graphs.traces.revisions import NEWEST, before, first_of, overrides_made
from reflux.graphs.traces.store import TraceStore

ALL_ROUNDS = 10**6


@dataclass(frozen=True)
class Row:
    """One training example."""

    prompt: tuple[Message, ...]
    completion: str
    question: str
    """Text of the question, for the leak check."""
    task: str
    provenance: dict[str, Any]
    """Trajectory, node path, run, round, system and model digests."""
    rejected: str | None = None
    """Another answer to the question, which a check refused or a human replaced."""

    def train(self) -> dict[str, Any]:
        """The row in TRL's conversational prompt-completion form."""
        completion = [{"role": "assistant", "content": self.completion}]
        return {"prompt": list(self.prompt), "completion": completion}


def run_rows(
    store: TraceStore, task: Task, up_to_round: int = ALL_ROUNDS
) -> tuple[list[Row], list[Row]]:
    """The rows of a run: (answers to primitives, all others), none of a held-out question.

    Raises:
        RefluxError: a held-out question of the task is among them.
    """
    prompt = task.system_prompt
    primitives = list(accepted(store, "primitive", "overseer", 0, prompt))
    others = [
        *accepted(store, "train", "amplified", up_to_round, prompt),
        *accepted(store, "train", "anchor", 0, ""),
        *corrections(store, task),
    ]
    check_leaks([*primitives, *others], task)
    return primitives, others


def training_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows in an order that the seed and their content decide, not ids or time of recording."""
    copies: Counter[str] = Counter()
    keys: list[str] = []
    for row in rows:
        content = json.dumps(row.train(), sort_keys=True)
        keys.append(hashlib.sha256(f"{seed}:{copies[content]}:{content}".encode()).hexdigest())
        copies[content] += 1
    order = sorted(range(len(rows)), key=keys.__getitem__)
    return [rows[index] for index in order]


def rows_digest(rows: Sequence[Row]) -> str:
    """Hash of all that a student learns from, in order (hex, 32)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.train(), sort_keys=True).encode())
    return digest.hexdigest()[:32]


def check_leaks(rows: Sequence[Row], task: Task) -> None:
    """Check that no held-out question of the task is among the rows.

    Raises:
        RefluxError: one is.
    """
    for row in rows:
        if row.task == task.name and is_held_out(task, row.question):
            raise RefluxError(
                f"held-out question {row.question!r} is in the training rows (trajectory "
                f"{row.provenance.get('trajectory')}); nothing was trained, please report this"
            )


ACCEPTED = f"""
SELECT q.*, (SELECT group_concat(DISTINCT digest) FROM (
    SELECT c.model_digest AS digest FROM calls c WHERE c.question = q.id UNION ALL
    SELECT b.detail ->> 'model_digest' FROM judgements b
    WHERE b.question = q.id AND b.kind = 'chain_begun')) AS models
FROM roots q WHERE q.ok = 1 AND {NEWEST} AND {{condition}}
ORDER BY q.round, q.id
"""  # noqa: S608 - every part is a constant of ours
OF_SYSTEM = "q.split = :split AND q.system = :system AND q.round <= :up_to"


def accepted(
    store: TraceStore, split: str, system: str, up_to_round: int, system_prompt: str
) -> Iterator[Row]:
    """Rows of every accepted root answer of a system.

    The newest revision of an edited trajectory counts; a trajectory with a node that a human
    rejected has no row.
    """
    values = {"split": split, "system": system, "up_to": up_to_round}
    return _root_rows(store, OF_SYSTEM, values, lambda task: system_prompt)


def _root_rows(
    store: TraceStore,
    condition: str,
    values: Mapping[str, Any],
    system_prompt: Callable[[str], str],
) -> Iterator[Row]:
    """Rows of the accepted roots `q` that an SQL condition selects."""
    rejected = rejected_by_humans(store)
    edited = edited_by_humans(store)
    for root in store.select(ACCEPTED.format(condition=condition), values):
        first = first_of(root["id"])
        if first in rejected:
            continue
        answer = json.loads(root["detail"])["answer"]
        replaced = _replaced_root(store, root["id"], answer) if first in edited else None
        models = root["models"].split(",") if root["models"] else []
        other = replaced or _refused_root(store, root["id"], answer)
        yield _row(root, answer, system_prompt(root["task"]), other, models)


def _row(
    node: Any,
    answer: str,
    system_prompt: str,
    rejected: str | None,
    models: Sequence[str] = (),
    path: str = "",
) -> Row:
    """The row of a recorded question; `node` has its text and the columns of its root."""
    return Row(
        prompt=tuple(
            {"role": role, "content": content}
            for role, content in answer_prompt(node["text"], system_prompt)
        ),
        completion=answer,
        question=node["text"],
        task=node["task"],
        provenance={
            "trajectory": node["id"],
            "path": path,
            "run": node["run"],
            "round": node["round"],
            "system": node["system"],
            "models": list(models),
        },
        rejected=rejected,
    )


def _replaced_root(store: TraceStore, question: str, answer: str) -> str | None:
    """The root's answer before the newest edit that changed it."""
    for id, earlier in pairwise((question, *before(question))):
        edits = [edit for _, edit in overrides_made(store, id) if edit["answer"] is not None]
        outcome = store.how_ended(earlier)
        if edits and outcome and outcome["answer"] not in (None, answer):
            return str(outcome["answer"])
    return None


def _refused_root(store: TraceStore, question: str, answer: str) -> str | None:
    """The first answer to the root that its check refused."""
    sql = (
        "SELECT detail FROM judgements WHERE question=? AND path='' AND kind='check' AND ok=0"
        " ORDER BY id"
    )
    for check in store.select(sql, (question,)):
        if (text := json.loads(check["detail"])["answer"]) != answer:
            return str(text)
    return None


EDITED_ROOTS = """
q.revises IS NOT NULL AND q.split NOT IN ('train', 'primitive', 'held_out', 'canary')
"""
EDITED_PARTS = f"""
SELECT q.id, q.run, q.round, q.system, q.task, o.path, o.detail ->> 'question' AS text,
  o.detail ->> 'answer' AS answer
FROM questions q JOIN judgements o ON o.question = q.id AND o.kind = 'outcome' AND o.path != ''
WHERE q.revises IS NOT NULL AND q.split NOT IN ('held_out', 'canary') AND {NEWEST}
  AND o.detail ->> 'by' = 'human' AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.path = o.path
    AND c.question = substr(q.id, 1, instr(q.id, '~') - 1) AND c.role = 'tool')
ORDER BY q.round, q.id, o.path
"""  # noqa: S608 - the part is a constant of ours
"""Sub-questions that a human answered, without those that the overseer asked a tool."""


def corrections(store: TraceStore, task: Task) -> Iterator[Row]:
    """Rows of the newest revision of every edited trajectory, none of a held-out question.

    They are its root, unless `accepted` has it as a training question of the run, and each
    sub-question that a human answered.
    """
    edited = edited_by_humans(store)

    def system_prompt(name: str) -> str:
        return task.system_prompt if name == task.name else ""

    for row in _root_rows(store, EDITED_ROOTS, {}, system_prompt):
        if first_of(row.provenance["trajectory"]) in edited and not _is_withheld(task, row):
            yield row
    rejected = rejected_by_humans(store)
    for part in store.select(EDITED_PARTS):
        replaced = _replaced_part(store, part)
        row = _row(part, part["answer"], system_prompt(part["task"]), replaced, path=part["path"])
        if first_of(part["id"]) not in rejected and not _is_withheld(task, row):
            yield row


def _replaced_part(store: TraceStore, part: Any) -> str | None:
    """The last other answer to a sub-question in the revisions before."""
    for earlier in before(part["id"]):
        outcome = store.how_ended(earlier, part["path"])
        if outcome is None or outcome["question"] != part["text"]:
            continue
        if outcome["answer"] not in (None, part["answer"]):
            return str(outcome["answer"])
    return None


def _is_withheld(task: Task, row: Row) -> bool:
    """True of a held-out question, in the task's own form or as a user types it."""
    try:
        return is_held_out(task, task.from_user(row.question))
    except UsageError:
        return False
