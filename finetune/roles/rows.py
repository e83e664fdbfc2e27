"""Rows of the roles in a tree: what an answerer, an aggregator and a verifier learn from it."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from reflux.agents.errors import UsageError
from reflux.agents.overseers.step_forms import LEARNED, StepStyle
from reflux.finetune.data.demonstrations import MAX_TREES, from_record, withheld_by
from reflux.finetune.data.overseer_rows import row_of_example
from reflux.finetune.data.preferences import accepted_votes
from reflux.finetune.data.recorded import LeftOut
from reflux.finetune.data.rows import Row, messages, reply_of, run_rows, training_order
from reflux.finetune.roles.verdicts import verifier_rows
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.store import TraceStore

TreeRole = Literal["answerer", "aggregator", "verifier"]
"""A role beside the overseer's."""
BY_STEPS = replace(LEARNED, plan=False)
"""How an aggregator is asked."""


@dataclass
class RoleRows:
    """The rows of a role, in the order of training, and why others were left out."""

    rows: list[Row]
    style: StepStyle | None = None
    """Of an aggregator, which is an overseer of the steps after the first."""
    left_out: LeftOut = field(default_factory=LeftOut)


def rows_of_role(
    role: TreeRole,
    store: TraceStore,
    task: Task,
    tools: Collection[str] = (),
    last_round: int = 10**6,
    seed: int = 0,
) -> RoleRows:
    """The rows of a role, out of a run's accepted trees up to a round; none is of a held-out
    question.

    Args:
        tools: names of those that the overseer has.

    Raises:
        UsageError: there are none; the message says what left them out.
    """
    made = RoleRows([])
    if role == "answerer":
        made.rows = _answerer(store, task, last_round, made.left_out)
    elif role == "aggregator":
        made.rows, made.style = _aggregator(store, task, tools, last_round, made.left_out), BY_STEPS
    else:
        primitives, others = run_rows(store, task, last_round)
        made.rows = verifier_rows(store, [*primitives, *others], task, made.left_out, last_round)
    if not made.rows:
        raise UsageError(f"{task.name} has no rows of {_an(role)}: {_why(role, made.left_out)}")
    made.rows = training_order(made.rows, seed)
    return made


def _answerer(store: TraceStore, task: Task, last_round: int, left_out: LeftOut) -> list[Row]:
    """The overseer's primitives, the base's answers to the anchor, and what the copies answered
    in accepted trees; each question and answer once."""
    primitives, others = run_rows(store, task, last_round)
    kept = [*primitives, *(row for row in others if row.provenance["system"] == "anchor")]
    for root, each in accepted_votes(store, task, last_round, left_out):
        kept.append(
            Row(
                prompt=tuple(messages(each.question, task.system_prompt)),
                completion=reply_of(str(each.answer)),
                question=each.question,
                task=root["task"],
                provenance={"trajectory": each.root, "node": "answer", "round": root["round"]},
            )
        )
    unique = {(row.question, row.reply): row for row in kept}
    if twice := len(kept) - len(unique):
        left_out.counts["asked more than once"] += twice
    return list(unique.values())


def _aggregator(
    store: TraceStore, task: Task, tools: Collection[str], last_round: int, left_out: LeftOut
) -> list[Row]:
    """The overseer's steps after the first sub-answers."""
    made = from_record(store, MAX_TREES, True, withheld_by(task), last_round)
    left_out.counts += made.left_out
    rows: list[Row] = []
    for demo in made.items:
        examples = demo.later()
        if not examples:
            left_out.counts["not combined"] += 1
        rows += [row_of_example(each, BY_STEPS, task.name, tools, "reflux") for each in examples]
    return rows


def _an(role: str) -> str:
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


REMEDIES = {
    "answerer": "run `reflux run` first, so that copies answer sub-questions",
    "aggregator": "have an overseer combine sub-answers, with `reflux run`",
    "verifier": "it takes answers that a check, a vote or a human refused: give the task a check, "
    "or edit answers with `reflux review`",
}


def _why(role: TreeRole, left_out: LeftOut) -> str:
    note = left_out.note
    return f"left out: {note}; {REMEDIES[role]}" if note else REMEDIES[role]
