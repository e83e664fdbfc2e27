"""What each reviewer says of a node, and when that decides (AI Safety Atlas 8.4.1, retraining: a
group of experts reviews).

An opinion is a judgement of its own kind, and changes nothing. When enough reviewers have given
theirs and most of them say the same, the decision is carried out as that of one human: a verdict or
an override, which is all that the queue and the training rows read. A tie goes to one more
reviewer. Nobody is shown another's opinion before that.

Names are claimed, not proved: whoever may review may use any.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.redaction import redact
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore

MAX_REVIEWERS = 9
MAX_SECONDS = 600.0
"""More than this on one item is counted as this: the reviewer was away."""
NAME = re.compile(r"[\w.@+-]{1,60}")
HUMAN = "human"
OPINIONS = """
SELECT author, ok, detail FROM judgements WHERE kind = 'opinion' AND path = :path AND ok IS NOT NULL
  AND (question = :first OR question > :first || '~' AND question < :first || '~~')
  AND detail ->> 'answer' IS :answer ORDER BY id
"""


@dataclass(frozen=True)
class Reviewer:
    """Who judges, and how long it took."""

    name: str = ""
    """Empty where there is only one."""
    seconds: float | None = None
    """From the moment at which the item was shown; None where nobody measured."""

    @property
    def author(self) -> str:
        """As judgements name a reviewer: `human`, or `human:NAME`."""
        return f"{HUMAN}:{self.name}" if self.name else HUMAN


@dataclass(frozen=True)
class Opinion:
    """What one reviewer says of one answer."""

    reviewer: str
    decision: str
    """`approve`, `reject` or `edit`."""
    put: str | None = None
    """The answer of an edit."""
    comment: str = ""


@dataclass(frozen=True)
class Subject:
    """The answer of a node, which opinions are about."""

    trajectory: str
    path: str
    answer: str | None


def check_name(name: str) -> str:
    """Check the name of a reviewer.

    Raises:
        UsageError: it holds other characters, or too many.
    """
    if name and not NAME.fullmatch(name):
        raise UsageError(
            f"the reviewer {name!r:.80} is no name; use 1 to 60 letters, digits or . @ + - _"
        )
    return name


def required(store: Rows) -> int:
    """How many reviewers an item of this run needs; 1 where nobody set it."""
    row = next(store.select("SELECT value FROM meta WHERE key = 'reviewers'"), None)
    return int(row["value"]) if row else 1


async def require(store: TraceStore, reviewers: int) -> None:
    """Set how many reviewers each item of this run needs, in the terminal and in the browser.

    Raises:
        UsageError: out of range.
    """
    if not 1 <= reviewers <= MAX_REVIEWERS:
        raise UsageError(f"{reviewers} reviewers an item; use 1 to {MAX_REVIEWERS}")
    sql = "INSERT OR REPLACE INTO meta VALUES ('reviewers', ?)"
    await asyncio.wrap_future(store.submit([(sql, (str(reviewers),))]))


async def add_opinion(
    store: TraceStore,
    subject: Subject,
    reviewer: Reviewer,
    decision: str,
    put: str | None = None,
    comment: str = "",
) -> None:
    """Record what a reviewer says of an answer; the last of a reviewer's opinions counts.

    A decision that is neither `approve`, `reject` nor `edit` counts as work, not as an opinion.

    Raises:
        UsageError: several reviewers judge here, and this one has no name.
    """
    check_name(reviewer.name)
    of = required(store)
    ok = {"approve": True, "reject": False, "edit": False}.get(decision)
    if of > 1 and not reviewer.name and ok is not None:
        raise UsageError(f"{of} reviewers judge each item of this run: name yourself (--reviewer)")
    detail: dict[str, Any] = {"answer": subject.answer, "decision": decision, "of": of}
    if put is not None:
        detail["put"] = redact(put).strip()
    if comment:
        detail["comment"] = redact(comment)
    if reviewer.seconds is not None:
        detail["seconds"] = round(min(max(reviewer.seconds, 0.0), MAX_SECONDS), 1)
    await store.add_judgement(
        subject.trajectory, subject.path, "opinion", ok, detail, author=reviewer.author
    )


def opinions(store: Rows, subject: Subject) -> list[Opinion]:
    """The last opinion of each reviewer on an answer, in the order of their first ones."""
    last: dict[str, Opinion] = {}
    parameters = {
        "first": first_of(subject.trajectory),
        "path": subject.path,
        "answer": subject.answer,
    }
    for row in store.select(OPINIONS, parameters):
        last[row["author"]] = opinion_of(row["author"], json.loads(row["detail"]))
    return list(last.values())


def opinion_of(author: str, detail: dict[str, Any]) -> Opinion:
    """An opinion from its judgement."""
    return Opinion(author, detail["decision"], detail.get("put"), detail.get("comment", ""))


def decision(given: Sequence[Opinion], needed: int) -> Opinion | None:
    """What most reviewers say, with all their comments; None while too few have said something, or
    no more than half say the same."""
    counts = Counter((each.decision, each.put) for each in given)
    if len(given) < needed or not counts:
        return None
    (most, number), *_ = counts.most_common(1)
    if 2 * number <= len(given):
        return None
    return Opinion(HUMAN, *most, "; ".join(_comments(given)))


def _comments(given: Iterable[Opinion]) -> list[str]:
    return [each.comment for each in given if each.comment.strip()]


def waits_for(given: Sequence[Opinion], reviewer: str) -> bool:
    """Whether an item that is not decided is this reviewer's to judge, who has not done so."""
    return all(each.reviewer != Reviewer(reviewer).author for each in given)
