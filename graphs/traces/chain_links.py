"""The links of chains, as they are on record: in short, and one after the other."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reflux.graphs.traces.database import Rows
from reflux.graphs.voting.voting import Vote

IN_SHORT = """
SELECT l.path, l.attempt, count(DISTINCT l.number) AS links, sum(l.calls) AS calls,
  sum(l.tokens) AS tokens, count(DISTINCT CASE WHEN l.batch > 0 THEN l.number END) AS doubtful,
  (SELECT detail ->> 'model' FROM judgements j WHERE j.question = l.question AND j.path = l.path
   AND j.kind = 'chain_begun' ORDER BY j.id DESC LIMIT 1) AS model
FROM links l WHERE l.question = ? GROUP BY l.path, l.attempt ORDER BY l.path, l.attempt
"""
LINKS = """
SELECT path, attempt, number, batch, asked, votes, answer FROM links
WHERE question = ? AND path = ? AND attempt = ? AND number >= ? ORDER BY number, batch
"""


@dataclass(frozen=True)
class Link:
    """One question of a chain."""

    number: int
    asked: str
    votes: tuple[tuple[str, bool], ...]
    """Of each vote its answer, and whether it counted; in the order in which they were asked."""
    answer: str | None
    """None where the votes brought none yet, or none that was accepted."""


def links(
    store: Rows, question: str, path: str = "", attempt: int = 0, begin: int = 0
) -> Iterator[Link]:
    """The links of one chain from number `begin` on; memory does not grow with their number."""
    link: Link | None = None
    for row in store.select(LINKS, (question, path, attempt, begin)):
        votes = link.votes if link is not None and row["batch"] else ()
        asked = link.asked if link is not None and row["batch"] else row["asked"]
        if link is not None and not row["batch"]:
            yield link
        votes += tuple((text, ok) for text, ok, _ in read_votes(row["votes"]))
        link = Link(row["number"], asked, votes, row["answer"])
    if link is not None:
        yield link


def write_votes(votes: Sequence[Vote]) -> str:
    """The JSON record of a batch: `[text, n]` where all votes agree, otherwise every vote as
    `[text, ok, flag]`."""
    one = votes[0]
    if one.ok and all(vote.ok and vote.text == one.text for vote in votes):
        return json.dumps([one.text, len(votes)])
    return json.dumps([[vote.text, vote.ok, vote.flag] for vote in votes])


def read_votes(kept: str) -> list[tuple[str, bool, str]]:
    """The votes of a batch, in the order in which they were asked."""
    body: list[Any] = json.loads(kept)
    if isinstance(body[0], str):
        return [(body[0], True, "")] * body[1]
    return [(text, ok, flag) for text, ok, flag in body]


def chains(store: Rows, question: str) -> Iterator[tuple[str, dict[str, Any], int, int, str]]:
    """Of each chain of a trajectory, and each of its attempts in order: its path, what
    `reflux.graphs.traces.tree.Node.chain` shows, calls, tokens, and the name of the model."""
    for row in list(store.select(IN_SHORT, (question,))):
        place = question, row["path"], row["attempt"]
        (last,) = store.select(
            "SELECT max(number) FROM links WHERE question = ? AND path = ? AND attempt = ?", place
        )
        ends = [next(links(store, *place, begin=number)) for number in (0, last[0])]
        first, newest = ((link.asked, link.answer) for link in ends)
        body = {"links": row["links"], "doubtful": row["doubtful"], "first": first, "last": newest}
        yield row["path"], body, row["calls"], row["tokens"], row["model"] or ""
