"""Demonstrations for a model overseer, out of accepted trees of the record.

None is of a held-out question: an overseer that has seen its division is judged on it no more.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.overseers.batch import alike
from reflux.agents.overseers.demonstration_file import demonstration_of, read_demonstrations
from reflux.agents.overseers.demonstrations import Demonstration, Demonstrations, DemoStep
from reflux.agents.types import (
    Answer,
    Ask,
    step_from_json,
)
from reflux.finetune.data.rows import is_withheld
from reflux.graphs.amplify.state import is_accepted, is_usable
from reflux.graphs.amplify.weighing import agree
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.review import rejected_by_humans
from reflux.graphs.traces.revisions import NEWEST, before, first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree

ORIGINAL = "original"
"""The system of a run in which an overseer is asked so that another one learns from it."""
MAX_TREES = 10_000
"""Accepted trees that an overseer learns from: the newest."""
ENDED = f"""
SELECT q.id, q.text, q.task, q.split, q.system, q.detail ->> 'answer' AS answer,
  q.detail ->> 'status' AS status, q.detail ->> 'candidates' AS candidates
FROM roots q WHERE {NEWEST} AND coalesce(q.round, 0) <= ? AND q.system IS NOT 'anchor'
ORDER BY q.created DESC
"""  # noqa: S608 - the part is a constant of ours
UNFINISHED = f"""
SELECT count(*) FROM questions q WHERE {NEWEST} AND NOT EXISTS (
  SELECT 1 FROM roots r WHERE r.id = q.id)
"""  # noqa: S608 - the part is a constant of ours
BY_HUMANS = """
SELECT question FROM judgements
WHERE author = 'human' AND (kind IN ('override', 'review') OR kind = 'verdict' AND ok = 1)
UNION SELECT question FROM calls WHERE role = 'overseer' AND kind = 'script' AND model = 'human'
"""
"""Trajectories that a human edited, divided or approved."""
STEPS = """
SELECT attempt, step, completion FROM calls WHERE question = ? AND path = '' AND role = 'overseer'
  AND kind = 'script' AND error IS NULL ORDER BY attempt DESC, step
"""


@dataclass
class Made:
    """Demonstrations, where they come from, and why questions were left out."""

    items: list[Demonstration] = field(default_factory=list[Demonstration])
    sources: Counter[str] = field(default_factory=Counter[str])
    left_out: Counter[str] = field(default_factory=Counter[str])
    direct: list[str] = field(default_factory=list[str])
    """Sub-questions of the accepted trees that the agent answered undivided."""
    _seen: set[str] = field(default_factory=set[str])

    def add(self, question: str, source: str, body: Mapping[str, Any] | str) -> None:
        """Add what is known of a question, unless it is no demonstration; a text says why."""
        if isinstance(body, str):
            self.left_out[body] += 1
        elif alike(question) in self._seen:
            self.left_out["asked more than once"] += 1
        else:
            try:
                self.items.append(demonstration_of({"question": question, **body}))
            except ValueError:
                self.left_out["its steps repeat the question or each other"] += 1
                return
            self._seen.add(alike(question))
            self.sources[source] += 1


def from_record(
    store: TraceStore,
    n: int,
    unchecked: bool,
    withheld: Callable[[str], bool],
    last_round: int = 10**6,
) -> Made:
    """Up to `n` demonstrations out of the accepted trees of a run folder, the newest first, but
    before them those that a human edited, divided or approved.

    Accepted is what a check accepted, and of answers that were weighed the one on which a
    decomposition and another way agree, or that outweighed another.

    Args:
        unchecked: take answers that nothing tested, too.
        withheld: whether a question is held out, wherever it was asked.
        last_round: of a run's rounds.
    """
    made, rejected = Made(), rejected_by_humans(store)
    human = {first_of(row["question"]) for row in store.select(BY_HUMANS)}
    roots = list(store.select(ENDED, (last_round,)))
    if (unfinished := next(store.select(UNFINISHED))[0]) > 0:
        made.left_out["unfinished"] = unfinished
    for root in sorted(roots, key=lambda root: first_of(root["id"]) not in human):
        if len(made.items) == n:
            made.left_out["beyond the limit"] += 1
            continue
        by_human = first_of(root["id"]) in human
        body: Mapping[str, Any] | str
        weighed: list[dict[str, Any]] = json.loads(root["candidates"] or "[]")
        agreed = is_agreed(weighed, root["answer"])
        if root["split"] in ("held_out", "canary") or withheld(root["text"]):
            body = "held out"
        elif first_of(root["id"]) in rejected or not is_accepted(root["status"]):
            body = "not accepted"
        elif root["status"] == "unchecked" and not (
            unchecked or by_human or agreed or root["system"] == ORIGINAL
        ):
            body = "unchecked"
        else:
            body, direct = recorded_body(store, root["id"], root["answer"], bool(weighed))
            made.direct += direct
        source = "agreed on" if agreed and root["status"] == "unchecked" else "accepted"
        made.add(root["text"], "edited or approved by a human" if by_human else source, body)
    return made


def is_agreed(weighed: Sequence[Mapping[str, Any]], answer: str) -> bool:
    """True if a decomposition gave the answer, and another way gave the same, or less weight to
    another."""
    ways = sum(group["votes"] for group in weighed)
    chosen = [group for group in weighed if agree(group["answer"], answer)]
    return ways > 1 and any(group["votes"] > group["direct"] for group in chosen)


def recorded_body(
    store: Rows, id: str, answer: str, weighed: bool
) -> tuple[Mapping[str, Any] | str, list[str]]:
    """The steps at the root of a tree, from its newest revision that has any, with the answer; and
    the sub-questions, at every depth, that the agent answered undivided.

    Of several attempts it is the newest; where they were weighed, one that gave the answer.
    """
    for revision in (id, *before(id)):
        rows = list(store.select(STEPS, (revision,)))
        if rows:
            break
    else:
        return "undivided", []
    nodes = {node.path: node for node in load_tree(store, revision).walk()}
    batches: list[tuple[Ask, list[str]]] = []
    reason = ""
    steps = [(row, step_from_json(json.loads(row["completion"]))) for row in rows]
    attempts = [
        row["attempt"]
        for row, step in steps
        if not weighed or (isinstance(step, Answer) and agree(step.text, answer))
    ]
    if not attempts:
        return "undivided", []
    for row, step in steps:
        if row["attempt"] != attempts[0]:  # An attempt that failed its check, or lost.
            continue
        if isinstance(step, Ask):
            stem = f"/{row['attempt']}.{row['step']}."
            children = [nodes.get(f"{stem}{index}") for index in range(len(step.subquestions))]
            known = [
                child.answer
                for child in children
                if child and child.answer is not None and is_usable(child.status, child.answer)
            ]
            batches.append((step, known))
        elif isinstance(step, Answer):
            reason = step.reason if step.text == answer else ""
        else:
            return "a chain, or for a human", []
    direct = [
        node.question
        for path, node in nodes.items()
        if path.startswith(f"/{attempts[0]}.") and not node.children and _by_agent(node)
    ]
    return steps_and_answer(batches, answer, reason), direct


def _by_agent(node: Node) -> bool:
    """Whether a copy answered, neither a tool, the overseer nor a human."""
    usable = is_usable(node.status, node.answer)
    return usable and node.votes > 0 and node.answered_by not in ("H", "human")


def steps_and_answer(
    batches: Sequence[tuple[Ask, list[str]]], answer: str, reason: str
) -> Mapping[str, Any] | str:
    """The steps of a demonstration, up to the first with an unknown answer."""
    asked = [(ask, answers) for ask, answers in batches if ask.subquestions]
    if not asked:
        return "undivided"
    receivers = (sub.to for ask, _ in asked for sub in ask.subquestions)
    experts = (to for to in receivers if to and not to.startswith("tool:"))
    if (other := next(experts, None)) is not None:
        return f"its sub-questions go to {other}"
    steps: list[dict[str, Any]] = []
    for ask, answers in asked:
        steps.append(DemoStep(ask.subquestions).to_json())
        if len(answers) < len(ask.subquestions):
            return {"steps": steps}
        steps[-1]["answers"] = answers
    return {"steps": steps, "answer": answer, "reason": reason if answer else ""}


def withheld_by(task: Task | None) -> Callable[[str], bool]:
    """Whether a question is a held-out one of a task.

    Of a task with a list of questions, only those are: any other text may be shown.
    """
    if task is None:
        return lambda question: False
    listed = {task.canonical(question) for question in task.questions()}
    return lambda question: (
        is_withheld(task, question)
        and (not listed or task.canonical(task.from_user(question)) in listed)
    )


def learned_from(path: str, task: Task) -> Sequence[Demonstration]:
    """The demonstrations that an overseer of a task is to learn.

    Raises:
        UsageError: as `read_demonstrations` and `check_demonstrations`.
    """
    demos = read_demonstrations(path)
    check_demonstrations(demos, task, path)
    return demos.items


def check_demonstrations(demos: Demonstrations, task: Task, source: str) -> None:
    """Check that no demonstration is of a held-out question of the task.

    Raises:
        UsageError: one is.
    """
    withheld = withheld_by(task)
    held_out = [demo.question for demo in demos.items if withheld(demo.question)]
    if held_out:
        raise UsageError(
            f"{source}: {held_out[0]!r:.200} is a held-out question of {task.name}, by which "
            f"students are judged ({len(held_out)} of {len(demos.items)} demonstrations are): "
            "remove it"
        )
