"""Rows out of recorded trajectories, ours or any program's: a call, a trajectory, or its answer.

    calls         a row for each call: what was asked, and the reply
    trajectories  a row for each conversation: a call whose request contains an earlier call and its
                  reply takes that row over, so that nothing is learned twice
    flat          a row for each trajectory: its question, and the answer at its end
    roles         as calls, of Reflux's trees: to decompose, answer, combine and check

Only replies of calls that were selected are learned; others are context.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reflux.finetune.data.conversations import tools_of, turn_of
from reflux.finetune.data.recorded_replies import (
    edit_of,
    reply_message,
    role_of,
    vote_won,
    why_not_learned,
    why_unreadable,
)
from reflux.finetune.data.rows import Row, messages, reply_of
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.revisions import CALLS_OF
from reflux.graphs.traces.selection import Selected, Selection
from reflux.graphs.traces.trajectories import UNFINISHED, refused_answers

RowsBy = Literal["calls", "trajectories", "flat", "roles"]
EXAMPLES = 3
"""Examples of each reason that are kept."""
CALLS = f"""
SELECT c.*, q.source, q.text, q.task, q.system, q.run, q.round FROM questions q
JOIN calls c ON c.question = {CALLS_OF}
WHERE q.id = ? AND c.kind = 'model' AND c.error IS NULL
ORDER BY iif(q.source IS NULL, 0, c.step), c.id
"""  # noqa: S608 - a constant of ours
SCORE = """
SELECT avg(detail ->> 'score') FROM judgements WHERE question = ? AND kind = 'feedback'
"""


@dataclass
class LeftOut:
    """What is not among the rows: how many by reason, and a few examples of each."""

    counts: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[dict[str, str]]] = field(
        default_factory=dict[str, list[dict[str, str]]]
    )

    def add(self, reason: str, trajectory: str, text: str, count: int = 1) -> None:
        """Count something that is left out, with a text by which a human knows it."""
        self.counts[reason] += count
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append({"trajectory": trajectory, "text": text[:300]})

    @property
    def note(self) -> str:
        """In words."""
        return ", ".join(f"{n:,} {reason}" for reason, n in self.counts.most_common())


@dataclass(frozen=True)
class RowOptions:
    """Which rows recorded trajectories become."""

    by: RowsBy = "calls"
    reasoning: bool = False
    """Whether what was thought before a reply is learned with it."""
    unfinished: bool = False
    """Whether trajectories without an end have rows."""
    any_status: bool = False
    """Whether those that no check accepted have rows: the expression names `status` itself."""
    system_prompt: str = ""
    """Of flat rows."""


def recorded_rows(
    store: Rows,
    selection: Selection,
    options: RowOptions,
    left_out: LeftOut,
    withheld: Callable[[str], bool] = lambda question: False,
) -> Iterator[Row]:
    """The rows of the selected calls, trajectory by trajectory; one is held at a time.

    Args:
        withheld: whether a question of Reflux's trees is held out.
    """
    for selected in selection.trajectories():
        if reason := refused(selected, options):
            left_out.add(reason, selected.id, _text(store, selected.id), len(selected.calls))
            continue
        text = _text(store, selected.id)
        if selected.split in ("held_out", "canary") or (
            selected.source == "reflux" and withheld(text)
        ):
            left_out.add("held out", selected.id, text, len(selected.calls))
            continue
        if options.by == "flat":
            yield from _flat(store, selected, options, left_out)
            continue
        calls = list(_calls(store, selected, options, left_out))
        if options.by == "trajectories":
            yield from _conversations(calls)
        else:
            yield from (_row_of([call], call.turns, call.learned) for call in calls if call.learned)


def with_rejected(store: Rows, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows with the answer that was refused beside that of the trajectory, where there is one."""
    for row in rows:
        id = row.provenance["trajectory"]
        refused = next(iter(refused_answers(store, id)), None)
        answer = (store.how_ended(id) or {}).get("answer") if refused is not None else None
        is_answer = answer is not None and answer == row.reply != refused
        yield replace(row, rejected=refused) if is_answer else row


def refused(selected: Selected, options: RowOptions) -> str:
    """Why a trajectory has no rows; empty where it has some."""
    if selected.approved is not None:
        return "" if selected.approved else "rejected by a human"
    if selected.status == UNFINISHED and not options.unfinished:
        return "unfinished"
    if options.any_status or selected.status == UNFINISHED or is_accepted(selected.status):
        return ""
    return f"ended as {selected.status}"


def _text(store: Rows, id: str) -> str:
    return str(next(store.select("SELECT text FROM questions WHERE id = ?", (id,)))["text"])


@dataclass(frozen=True)
class _Call:
    """A call as a conversation: what was asked, then the reply."""

    id: int
    turns: list[dict[str, Any]]
    learned: frozenset[int]
    """Position of the reply, if it is learned."""
    tools: tuple[dict[str, Any], ...]
    question: str
    task: str
    about: dict[str, Any]


def _calls(
    store: Rows, selected: Selected, options: RowOptions, left_out: LeftOut
) -> Iterator[_Call]:
    """The calls of a trajectory, in order; of votes on one question the first that won."""
    edited, edit = edit_of(store, selected)
    if edit is not None and edited is None:
        left_out.add("edited, and no single reply said it", selected.id, edit, len(selected.calls))
        return
    score = next(store.select(SCORE, (selected.id,)))[0]
    voted: set[tuple[str, str, int, int]] = set()
    for row in store.select(CALLS, (selected.id,)):
        is_selected = row["id"] in selected.calls
        own = row["source"] is None
        node = role_of(row) if own and options.by == "roles" else row["role"]
        if is_selected and own and row["role"].startswith("answer"):
            key = (row["path"], row["role"], row["step"], row["attempt"])
            if key in voted or not vote_won(store, row):
                left_out.add("another vote won", selected.id, row["completion"] or "")
                continue
            voted.add(key)
        text = edit if row["id"] == edited else None
        if is_selected and text is None and (reason := why_not_learned(row)):
            left_out.add(reason, selected.id, row["completion"] or "")
            is_selected = False
        try:
            turns = [turn_of(message) for message in json.loads(row["messages"] or "[]")]
            reply = turn_of(reply_message(row, options.reasoning, text))
            tools = tuple(tools_of(row["tools"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if is_selected:
                left_out.add(why_unreadable(error), selected.id, row["messages"] or "")
            continue
        if not options.reasoning:
            for turn in turns:
                turn.pop("reasoning_content", None)
        for turn in turns:
            turn.pop("weight", None)
        yield _Call(
            id=row["id"],
            turns=[*turns, reply],
            learned=frozenset([len(turns)] if is_selected else ()),
            tools=tools,
            question=row["text"],
            task=row["task"] or "",
            about={
                "trajectory": selected.id,
                "node": node,
                "path": row["path"],
                "source": selected.source,
                "model": row["model"],
                "outcome": selected.status,
                "score": score,
                "run": row["run"],
                "round": row["round"],
                "system": row["system"],
            },
        )


def _row_of(
    calls: Sequence[_Call], turns: Sequence[dict[str, Any]], learned: frozenset[int]
) -> Row:
    """The row of a conversation whose replies at some positions are learned."""
    first, last = min(learned), max(learned)
    completion = [
        {**turn, "weight": 0} if turn["role"] == "assistant" and index not in learned else turn
        for index, turn in enumerate(turns[first : last + 1], start=first)
    ]
    call = calls[-1]
    ids = [each.id for each in calls]
    return Row(
        prompt=tuple(turns[:first]),
        completion=tuple(completion),
        question=call.question,
        task=call.task,
        provenance={**call.about, "calls": ids},
        tools=call.tools,
    )


@dataclass
class _Thread:
    """Calls each of which contains the one before it."""

    calls: list[_Call]
    learned: frozenset[int]

    def takes(self, call: _Call, keys: Sequence[str]) -> bool:
        """Whether a call goes on where this thread ends."""
        held = self.calls[-1]
        n = len(held.turns)
        return (
            held.tools == call.tools and len(keys) > n and [_key(t) for t in held.turns] == keys[:n]
        )


def _conversations(calls: Sequence[_Call]) -> Iterator[Row]:
    """The rows of a trajectory's conversations, in the order in which they ended."""
    threads: list[_Thread] = []
    for call in calls:
        keys = [_key(turn) for turn in call.turns]
        thread = next((each for each in reversed(threads) if each.takes(call, keys)), None)
        if thread is None:
            threads.append(_Thread([call], call.learned))
        else:
            thread.learned |= call.learned
            thread.calls.append(call)
    for thread in threads:
        if thread.learned:
            yield _row_of(thread.calls, thread.calls[-1].turns, thread.learned)


def _key(turn: Mapping[str, Any]) -> str:
    """What two messages that say the same share."""
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in turn.get("tool_calls", ())
    ]
    return json.dumps([turn["role"], turn["content"].strip(), calls, turn.get("tool_call_id")])


def _flat(store: Rows, selected: Selected, options: RowOptions, left_out: LeftOut) -> Iterator[Row]:
    """The row of a trajectory's question and last answer."""
    root = next(store.select("SELECT * FROM questions WHERE id = ?", (selected.id,)))
    answer = (store.how_ended(selected.id) or {}).get("answer")
    if not answer or not root["text"].strip():
        left_out.add("no answer", selected.id, root["text"])
        return
    about = {
        "trajectory": selected.id,
        "node": "flat",
        "path": "",
        "source": selected.source,
        "outcome": selected.status,
        "score": next(store.select(SCORE, (selected.id,)))[0],
        **{name: root[name] for name in ("run", "round", "system")},
    }
    yield Row(
        prompt=tuple(messages(root["text"], options.system_prompt)),
        completion=reply_of(answer),
        question=root["text"],
        task=root["task"] or "",
        provenance=about,
    )
