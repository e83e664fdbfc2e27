"""Preferences: at the nodes of accepted trees, the answer that stood and another that did not.

Where people or a check replaced an answer, a row holds both (`Row.rejected`). Copies that voted on
one question give a pair, too: the answer that won, and the other one with most votes, or one that a
red flag or the check refused. Nothing tells that a winner is right; it is what the amplified system
prefers (SODA, arXiv 2604.03873, prefers a teacher's answer to a student's in the same way).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from reflux.finetune.configs.run import DistillConfig, RoundsConfig
from reflux.finetune.data.export import in_form
from reflux.finetune.data.recorded import LeftOut
from reflux.finetune.data.rows import Row, is_withheld, messages, reply_of, training_order
from reflux.graphs.evals.task import Task
from reflux.graphs.evals.vote_log import VotedQuestion, voted_questions
from reflux.graphs.traces.review import rejected_by_humans
from reflux.graphs.traces.revisions import NEWEST, first_of
from reflux.graphs.traces.store import TraceStore

ACCEPTED = f"""
SELECT q.id, q.run, q.round, q.system, q.task, q.split FROM roots q
WHERE q.ok = 1 AND q.system = 'amplified' AND q.round <= ? AND {NEWEST}
"""  # noqa: S608 - the part is a constant of ours


def preference_rows(
    store: TraceStore,
    rows: Iterable[Row],
    task: Task,
    last_round: int = 10**6,
    left_out: LeftOut | None = None,
) -> list[Row]:
    """Rows with a rejected answer: those of a run's rows that have one, then those of the votes in
    its accepted trees up to a round; no question and pair twice, none of a held-out question.

    Args:
        left_out: counts what has no pair, by reason.
    """
    left_out = left_out if left_out is not None else LeftOut()
    pairs: dict[tuple[str, str, str], Row] = {}
    for row in (*with_other(rows, left_out), *voted(store, task, last_round, left_out)):
        pairs.setdefault((row.question, row.reply, str(row.rejected)), row)
    return list(pairs.values())


def training_pairs(
    store: TraceStore,
    rows: Iterable[Row],
    task: Task,
    last_round: int,
    config: RoundsConfig | DistillConfig,
) -> list[dict[str, Any]]:
    """As `preference_rows`, in TRL's form and in the order of training; none where the config has
    no preferences."""
    if config.preferences is None:
        return []
    ordered = training_order(preference_rows(store, rows, task, last_round), config.seed)
    return [body for row in ordered if (body := in_form(row, "preference")) is not None]


def with_other(rows: Iterable[Row], left_out: LeftOut) -> Iterator[Row]:
    """The rows that have a rejected answer, as it was written, beside another one."""
    for row in rows:
        if row.rejected is None or not row.rejected.strip():
            left_out.add("no answer was rejected", _trajectory(row), row.question)
        elif row.rejected.strip() == row.reply.strip():
            left_out.add("the rejected answer is the accepted one", _trajectory(row), row.question)
        else:
            yield row


def voted(store: TraceStore, task: Task, last_round: int, left_out: LeftOut) -> Iterator[Row]:
    """A row for each question in an accepted tree on whose answer copies disagreed."""
    for root, each in accepted_votes(store, task, last_round, left_out):
        if (other := outvoted(each, task.normalise)) is None:
            left_out.add("no answer was rejected", each.root, each.question)
            continue
        yield Row(
            prompt=tuple(messages(each.question, task.system_prompt)),
            completion=reply_of(str(each.answer)),
            question=each.question,
            task=root["task"],
            provenance={
                "trajectory": each.root,
                "node": "vote",
                **{name: root[name] for name in ("run", "round", "system")},
            },
            rejected=other,
        )


def accepted_votes(
    store: TraceStore, task: Task, last_round: int, left_out: LeftOut
) -> Iterator[tuple[Any, VotedQuestion]]:
    """Each question that copies answered in the accepted trees of a run up to a round, with its
    root, without held-out ones."""
    roots = {root["id"]: root for root in store.select(ACCEPTED, (last_round,))}
    rejected = rejected_by_humans(store)
    for each in voted_questions(store, "amplified"):
        root = roots.get(each.root)
        if root is None:
            left_out.add("its tree was not accepted", each.root, each.question)
        elif each.answer is None or not each.accepted:
            left_out.add("not accepted", each.root, each.question)
        elif first_of(each.root) in rejected:
            left_out.add("rejected by a human", each.root, each.question)
        elif root["split"] != "train" or is_withheld(task, each.question):
            left_out.add("held out", each.root, each.question)
        else:
            yield root, each


def outvoted(each: VotedQuestion, normalise: Callable[[str], str]) -> str | None:
    """The most frequent other answer among the votes on a question, of several the first."""
    texts = [normalise(reply.text) for reply in each.replies]
    others = Counter(text for text in texts if text and text != each.answer)
    return max(others, key=lambda text: others[text], default=None)


def _trajectory(row: Row) -> str:
    return str(row.provenance.get("trajectory", ""))
