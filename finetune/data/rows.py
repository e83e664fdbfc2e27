"""Training rows out of accepted trajectories, human corrections and files.

A row is what TRL takes, `{"prompt": [messages], "completion": [messages]}`, with `"tools"` where
the model had some; its provenance stands beside it. The loss counts the assistant's messages of the
completion, without those of `"weight": 0`. No row holds a true answer: trajectories have none.

A run's rows are the overseer's own answers to its primitives, the accepted answers of the
amplified system, the base's answers to the anchor, and corrections. Answers in a chat, at the
command line or in an evaluation become rows only when a human approves them or edits their tree. A
sub-question that a human answered is a separate row, beside the root that was recomputed.
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
from reflux.graphs.traces.trajectories import refused_answers

Turn = Mapping[str, Any]
"""A message of the chat protocol: `role`, `content`, and `tool_calls`, `tool_call_id`, `name`,
`reasoning_content`, `weight` where it has them."""


@dataclass(frozen=True)
class Row:
    """One training example."""

    prompt: tuple[Turn, ...]
    completion: tuple[Turn, ...]
    """From the first reply that is learned to the last, with tool results and users between."""
    question: str
    """Text of the question, for the leak check."""
    task: str
    provenance: dict[str, Any]
    """Trajectory, node path, run, round, system and model digests."""
    rejected: str | None = None
    """Another answer to the question, which a check refused or a human replaced."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Those that the model could call, as requests list them."""
    weight: float = 1.0
    """What the row counts beside others."""
    teacher: tuple[Turn, ...] = ()
    """The prompt of a teacher, which sees more than the student: the question's sub-answers."""
    logged: tuple[Any, ...] = ()
    """The reply's tokens, each as (text, log-probability, alternatives as such pairs)."""
    masked: tuple[int, ...] = ()
    """Which of the reply's tokens are not learned, by their number."""

    def train(self) -> dict[str, Any]:
        """The row in TRL's conversational prompt-completion form, with what else is known of it."""
        body: dict[str, Any] = {"prompt": list(self.prompt), "completion": list(self.completion)}
        if self.tools:
            body["tools"] = list(self.tools)
        if self.weight != 1:
            body["weight"] = self.weight
        if self.teacher:
            body["teacher"] = list(self.teacher)
        if self.masked:
            body["masked"] = list(self.masked)
        return {**body, "logged": [list(token) for token in self.logged]} if self.logged else body

    @property
    def reply(self) -> str:
        """The text of the last message."""
        return str(self.completion[-1].get("content") or "")


def reply_of(text: str) -> tuple[Turn, ...]:
    """The completion that is one plain reply."""
    return ({"role": "assistant", "content": text},)


def run_rows(store: TraceStore, task: Task, last_round: int = 10**6) -> tuple[list[Row], list[Row]]:
    """The rows of a run: (answers to primitives, all others), none of a held-out question.

    Raises:
        RefluxError: a held-out question of the task is among them.
    """
    prompt = task.system_prompt
    primitives = list(accepted(store, "primitive", "overseer", 0, prompt))
    others = [
        *accepted(store, "train", "amplified", last_round, prompt),
        *accepted(store, "train", "anchor", 0, ""),
        *corrections(store, task),
    ]
    check_leaks([*primitives, *others], task)
    return primitives, others


def training_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows in an order that the seed and their content decide, not ids or time of recording."""
    copies: Counter[str] = Counter()

    def key(row: Row) -> str:
        content = json.dumps(row.train(), sort_keys=True)
        copies[content] += 1
        return hashlib.sha256(f"{seed}:{copies[content] - 1}:{content}".encode()).hexdigest()

    return sorted(rows, key=key)


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
SELECT q.*, '' AS path, q.detail ->> 'answer' AS answer,
  (SELECT group_concat(DISTINCT digest) FROM (
    SELECT c.model_digest AS digest FROM calls c WHERE c.question = q.id UNION ALL
    SELECT b.detail ->> 'model_digest' FROM judgements b
    WHERE b.question = q.id AND b.kind = 'chain_begun')) AS models
FROM roots q WHERE {NEWEST} AND {{condition}}
ORDER BY q.round, q.id
"""  # noqa: S608 - every part is a constant of ours
OF_SYSTEM = "q.ok = 1 AND q.split = :split AND q.system = :system AND q.round <= :last"


def accepted(
    store: TraceStore, split: str, system: str, last_round: int, system_prompt: str
) -> Iterator[Row]:
    """Rows of every accepted root answer of a system.

    The newest revision of an edited trajectory counts; a trajectory with a node that a human
    rejected has no row.
    """
    values = {"split": split, "system": system, "last": last_round}
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
        other = _replaced(store, root) if first in edited else None
        yield _row(root, system_prompt, other or _refused(store, root))


def _row(node: Any, system_prompt: Callable[[str], str], rejected: str | None) -> Row:
    """The row of a root or a part, which an SQL row describes."""
    provenance = {key: node[key] for key in ("path", "run", "round", "system")}
    models = node["models"].split(",") if node["models"] else []
    return Row(
        prompt=tuple(messages(node["text"], system_prompt(node["task"]))),
        completion=reply_of(node["answer"]),
        question=node["text"],
        task=node["task"],
        provenance={"trajectory": node["id"], **provenance, "models": models},
        rejected=rejected,
    )


ASKED = (
    "q.split NOT IN ('train', 'primitive', 'held_out', 'canary', 'defence', 'judge', 'replay', "
    "'recorded', 'attack')"
)
NOT_ACCEPTED = f"""
SELECT q.detail ->> 'status' AS status, q.detail ->> 'error' AS error, count(*) AS n FROM roots q
WHERE q.ok IS NOT 1 AND q.split IN ('train', 'primitive') AND q.round <= ? AND {NEWEST}
GROUP BY 1, 2 ORDER BY n DESC
"""  # noqa: S608 - the part is a constant of ours
UNAPPROVED = f"SELECT count(*) FROM roots q WHERE q.ok = 1 AND {ASKED} AND {NEWEST}"  # noqa: S608


def why_no_rows(store: TraceStore, last_round: int = 10**6) -> str:
    """What kept the answers of a record from being rows: how many, by status and reason."""
    found = [
        f"{row['n']} {row['status']}" + (f" ({row['error']:.120})" if row["error"] else "")
        for row in store.select(NOT_ACCEPTED, (last_round,))
    ]
    if rejected := len(rejected_by_humans(store)):
        found.append(f"{rejected} rejected by a human")
    if asked := next(store.select(UNAPPROVED))[0]:
        found.append(f"{asked} asked and not approved")
    return "left out: " + (", ".join(found[:6]) or "nothing, as no question was answered")


def messages(question: str, system_prompt: str = "") -> list[Message]:
    """The prompt that asks a model a question."""
    turns = answer_prompt(question, system_prompt)
    return [{"role": role, "content": content} for role, content in turns]


def _replaced(store: TraceStore, node: Any) -> str | None:
    """The last other answer to a part in the revisions before; to a root, the one before the newest
    edit that changed it."""
    for id, earlier in pairwise((node["id"], *before(node["id"]))):
        outcome = store.how_ended(earlier, node["path"])
        if outcome is None or (node["path"] and outcome["question"] != node["text"]):
            continue
        edits = [edit for _, edit in overrides_made(store, id) if edit["answer"] is not None]
        if (edits or node["path"]) and outcome["answer"] not in (None, node["answer"]):
            return str(outcome["answer"])
    return None


def _refused(store: TraceStore, root: Any) -> str | None:
    """The first answer to the root that its check refused."""
    refused = refused_answers(store, root["id"])
    return next((answer for answer in refused if answer != root["answer"]), None)


EDITED_ROOTS = f"q.ok = 1 AND q.revises IS NOT NULL AND {ASKED}"
APPROVED_ROOTS = f"""
{ASKED} AND answer IS NOT NULL AND (SELECT v.ok FROM judgements v
  WHERE v.question = q.id AND v.path = '' AND v.kind = 'verdict' ORDER BY v.id DESC LIMIT 1) = 1
"""  # noqa: S608 - the part is a constant of ours
"""Answers of `ask`, `chat` and `eval` that a human approved, whatever a check said."""
EDITED_PARTS = f"""
SELECT q.id, q.run, q.round, q.system, q.task, o.path, o.detail ->> 'question' AS text,
  o.detail ->> 'answer' AS answer, NULL AS models
FROM questions q JOIN judgements o ON o.question = q.id AND o.kind = 'outcome' AND o.path != ''
WHERE q.revises IS NOT NULL AND q.split NOT IN ('held_out', 'canary', 'attack') AND {NEWEST}
  AND o.detail ->> 'by' = 'human' AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.path = o.path
    AND c.question = substr(q.id, 1, instr(q.id, '~') - 1) AND c.role = 'tool')
ORDER BY q.round, q.id, o.path
"""  # noqa: S608 - the part is a constant of ours
"""Sub-questions that a human answered, without those that the overseer asked a tool."""


def corrections(store: TraceStore, task: Task) -> Iterator[Row]:
    """Rows of the newest revision of every edited trajectory, none of a held-out question.

    They are its root, unless `accepted` has it as a training question of the run, and each
    sub-question that a human answered. Roots that a human approved are rows, too.
    """
    edited = edited_by_humans(store)

    def system_prompt(name: str) -> str:
        return task.system_prompt if name == task.name else ""

    for row in _root_rows(store, EDITED_ROOTS, {}, system_prompt):
        if first_of(row.provenance["trajectory"]) in edited and not is_withheld(task, row.question):
            yield row
    for row in _root_rows(store, APPROVED_ROOTS, {}, system_prompt):
        if first_of(row.provenance["trajectory"]) not in edited and not is_withheld(
            task, row.question
        ):
            yield row
    rejected = rejected_by_humans(store)
    for part in store.select(EDITED_PARTS):
        row = _row(part, system_prompt, _replaced(store, part))
        if first_of(part["id"]) not in rejected and not is_withheld(task, row.question):
            yield row


def is_withheld(task: Task, question: str) -> bool:
    """True of a held-out question, in the task's own form or as a user types it."""
    try:
        return is_held_out(task, task.from_user(question))
    except UsageError:
        return False
