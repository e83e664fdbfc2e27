"""Questions that a round asks besides its sample: hard examples, the anchor and canaries.

Hard examples failed or were in doubt in the round before; the stronger agent asks them again
(iterative improvement, AI Safety Atlas 8.4.1). They are training questions only.

The anchor is 500 general prompts, from 25 forms and 20 subjects. The base answers them and every
student learns those answers, which keeps it close to the base. Canaries are prompts of the same
kind that no student learns: its replies to them must not drift far from the base's.
"""

import json
import random
import re
from collections import Counter
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
ORDER BY j.question, j.path, j.key
"""  # noqa: S608


@dataclass(frozen=True)
class Hardness:
    """How a round's training questions ended."""

    failed: tuple[str, ...]
    """Questions without an accepted answer."""
    doubtful: tuple[str, ...]
    """Accepted ones with a sub-question on which votes differed, the most doubtful first."""

    def hardest(self, limit: int) -> list[str]:
        """Up to `limit` of them, the failed ones first."""
        return [*self.failed, *self.doubtful][:limit]


def hardness(store: TraceStore, round_number: int) -> Hardness:
    """Which training questions of a round failed or were in doubt."""
    dissent: Counter[str] = Counter()
    for judgement in store.select(DOUBTS, (round_number,)):
        tally = json.loads(judgement["detail"]).get("tally", [])
        if len(tally) > 1:
            total = sum(count for _, count in tally)
            dissent[judgement["question"]] += 1 - tally[0][1] / total
    roots = list(store.select(ENDED, (round_number,)))
    doubtful = [root for root in roots if root["ok"] and dissent[root["id"]]]
    doubtful.sort(key=lambda root: -dissent[root["id"]])
    failed = (root["text"] for root in roots if not root["ok"])
    return Hardness(tuple(failed), tuple(root["text"] for root in doubtful))


FORMS = (
    "What is {}?",
    "Tell me one fact about {}.",
    "Write a sentence about {}.",
    "Why do people like {}?",
    "Name three things that go with {}.",
    "Explain {} to a child.",
    "Give a title for a story about {}.",
    "What could replace {}?",
    "When was {} first known?",
    "Where would I find {}?",
    "Write a question about {}.",
    "Is {} old or new?",
    "Describe {} in five words.",
    "What is the opposite of {}?",
    "How does {} begin?",
    "Who works with {}?",
    "List two uses of {}.",
    "What is hard about {}?",
    "Compare {} with water.",
    "Write a short rhyme about {}.",
    "What color fits {}?",
    "How is {} made?",
    "What comes after {}?",
    "Is {} safe?",
    "Summarize what you know of {}.",
)
SUBJECTS = (
    "bread", "the sea", "music", "a bicycle", "snow", "the sun", "paper", "a garden", "coffee",
    "a bridge", "the moon", "glass", "a river", "history", "a camera", "wool", "the alphabet",
    "a market", "honey", "a map",
)  # fmt: skip
CANARY_SUBJECTS = ("a clock", "rain", "a horse", "salt")


def anchor_prompts(n: int, seed: int) -> list[str]:
    """`n` of the 500 prompts, the same for the same seed."""
    return _shuffled(SUBJECTS, f"anchor:{seed}")[:n]


def canary_prompts(n: int) -> list[str]:
    """`n` of the 100 canaries, always the same."""
    return _shuffled(CANARY_SUBJECTS, "canary")[:n]


def _shuffled(subjects: tuple[str, ...], seed: str) -> list[str]:
    prompts = [form.format(subject) for form in FORMS for subject in subjects]
    random.Random(seed).shuffle(prompts)
    return prompts


def overlap(one: str, other: str) -> float:
    """F1 of the words of two replies, 0 to 1."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (one, other))
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))
