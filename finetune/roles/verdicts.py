"""Training rows of a verifier: answers that stood are RIGHT, answers that were refused are WRONG.

    a check of the root     its verdict on each attempt's answer, with the sub-answers it came from
    a human                 an approved answer, and one that an edit replaced
    votes at the leaves     the answer that won, and the one that lost most

The prompt is that of `reflux.agents.verifiers.CriticVerifier`. There are as many rows of either
word, or a verifier would learn to say the more frequent one.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from reflux.agents.prompts import critic_prompt
from reflux.agents.types import Exchange, Message
from reflux.finetune.data.preferences import preference_rows
from reflux.finetune.data.recorded import LeftOut
from reflux.finetune.data.rows import Row, is_withheld, reply_of, training_order
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.review import rejected_by_humans
from reflux.graphs.traces.revisions import NEWEST, first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree

RIGHT, WRONG = "RIGHT", "WRONG"
CHECKED = f"""
SELECT q.id, q.text, q.task, q.run, q.round, q.system, j.ok, j.key, j.detail ->> 'answer' AS answer
FROM judgements j JOIN questions q ON q.id = j.question
WHERE j.kind = 'check' AND j.path = '' AND j.detail ->> 'answer' IS NOT NULL
  AND q.split NOT IN ('held_out', 'canary', 'replay') AND q.round <= ? AND {NEWEST}
ORDER BY q.id, j.id
"""  # noqa: S608 - the part is a constant of ours


def verifier_rows(
    store: TraceStore,
    rows: Sequence[Row],
    task: Task,
    left_out: LeftOut,
    last_round: int = 10**6,
    seed: int = 0,
) -> list[Row]:
    """The rows of a verifier, half of them WRONG, none of a held-out question.

    Args:
        rows: of the run, whose rejected answers are learned, too.
        left_out: counts what is left out, by reason.
    """
    found: dict[str, dict[str, Row]] = {RIGHT: {}, WRONG: {}}
    for row in (*checked(store, task, last_round, left_out), *preferred(store, rows, task)):
        found[row.reply].setdefault(json.dumps(row.prompt), row)
    # An answer that stood in one tree and was refused in another teaches nothing.
    doubtful = found[RIGHT].keys() & found[WRONG].keys()
    sides = [
        training_order([row for key, row in side.items() if key not in doubtful], seed)
        for side in found.values()
    ]
    n = min(map(len, sides))
    for reason, count in (
        ("judged both ways", len(doubtful)),
        ("more of the other verdict", sum(map(len, sides)) - 2 * n),
    ):
        if count:
            left_out.counts[reason] += count
    return training_order([row for side in sides for row in side[:n]], seed)


def checked(store: TraceStore, task: Task, last_round: int, left_out: LeftOut) -> Iterator[Row]:
    """What the check of the root said of each attempt's answer."""
    rejected = rejected_by_humans(store)
    for each in store.select(CHECKED, (last_round,)):
        if first_of(each["id"]) in rejected:
            left_out.add("rejected by a human", each["id"], each["text"])
        elif is_withheld(task, each["text"]):
            left_out.add("held out", each["id"], each["text"])
        else:
            attempt = each["key"].rsplit(":", 2)[1]
            stem = f"/{attempt}."
            children = load_tree(store, each["id"]).children
            parts = [
                Exchange(child.question, child.answer, child.error)
                for child in children
                if child.path.startswith(stem)
            ]
            verdict = RIGHT if each["ok"] else WRONG
            yield row_of(each["text"], each["answer"], parts, verdict, each)


def preferred(store: TraceStore, rows: Sequence[Row], task: Task) -> Iterator[Row]:
    """Both answers of each pair."""
    for pair in preference_rows(store, rows, task):
        about = {"id": pair.provenance["trajectory"], "task": pair.task}
        for answer, verdict in ((pair.reply, RIGHT), (str(pair.rejected), WRONG)):
            yield row_of(pair.question, answer, (), verdict, {**pair.provenance, **about})


def row_of(question: str, answer: str, parts: Sequence[Exchange], verdict: str, about: Any) -> Row:
    """The row of one verdict."""
    turns = critic_prompt(question, answer, parts)
    prompt: list[Message] = [{"role": turn[0], "content": turn[1]} for turn in turns]
    provenance = {key: about[key] for key in ("run", "round", "system")}
    return Row(
        prompt=tuple(prompt),
        completion=reply_of(verdict),
        question=question,
        task=about["task"] or "",
        provenance={"trajectory": about["id"], "node": "check", "outcome": verdict, **provenance},
    )
