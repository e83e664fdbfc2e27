"""The hard questions of a round, which failed or were in doubt: the next round asks them again.

Iterative improvement (seed 8.4.1): a stronger agent meets first what the one before it could not
settle. Training questions only: no held-out one is among them.
"""

import json
from dataclasses import dataclass

from reflux.graphs.traces.revisions import NEWEST
from reflux.graphs.traces.store import TraceStore

ENDED = f"""
SELECT q.id, q.text, q.ok FROM roots q
WHERE q.round = ? AND q.system = 'amplified' AND q.split = 'train' AND {NEWEST} ORDER BY q.id
"""  # noqa: S608 - the part is a constant of ours
DOUBTS = f"""
SELECT j.question, j.detail FROM judgements j JOIN questions q ON q.id = j.question
WHERE j.kind = 'direct' AND q.round = ? AND q.system = 'amplified' AND q.split = 'train'
  AND {NEWEST}
"""  # noqa: S608


@dataclass(frozen=True)
class Hardness:
    """How a round's training questions ended."""

    asked: int
    failed: tuple[str, ...]
    """Questions without an accepted answer."""
    doubtful: tuple[str, ...]
    """Accepted ones whose copies did not agree on some sub-question, the least settled first."""

    def hardest(self, max_votes: int) -> list[str]:
        """Up to so many of them, the failed ones first."""
        return [*self.failed, *self.doubtful][:max_votes]


def hardness(store: TraceStore, round_number: int) -> Hardness:
    """What a round found hard."""
    dissent: dict[str, float] = {}
    for row in store.select(DOUBTS, (round_number,)):
        tally = json.loads(row["detail"]).get("tally", [])
        cast = sum(count for _, count in tally)
        if len(tally) > 1:
            dissent[row["question"]] = dissent.get(row["question"], 0.0) + 1 - tally[0][1] / cast
    roots = list(store.select(ENDED, (round_number,)))
    accepted = [row for row in roots if row["ok"]]
    doubtful = [row for row in accepted if dissent.get(row["id"])]
    doubtful.sort(key=lambda row: -dissent[row["id"]])
    return Hardness(
        len(roots),
        tuple(row["text"] for row in roots if not row["ok"]),
        tuple(row["text"] for row in doubtful),
    )
