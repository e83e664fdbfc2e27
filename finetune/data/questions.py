"""The questions of a round: how many it samples, hard examples, the anchor and canaries.

Hard examples failed or were in doubt in the round before; the stronger agent asks them again
(iterative improvement, AI Safety Atlas 8.4.1). They are training questions only.

The anchor is 500 general prompts, from 25 forms and 20 subjects. The base answers them and every
student learns those answers, which keeps it close to the base. Canaries are prompts of the same
kind that no student learns: it must go on to find the base's replies to them likely.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass

from reflux.agents.errors import UsageError
from reflux.finetune.configs.run import RoundsConfig
from reflux.finetune.data.demonstrations import learned_from, withheld_by
from reflux.finetune.data.overseer_rows import overseer_rows
from reflux.graphs.evals.file_task import FileTask
from reflux.graphs.evals.task import Task
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


MAX_QUESTIONS, MAX_HELD_OUT = 1000, 400
MIN_ANCHOR, MAX_ANCHOR = 16, 500
"""Of a round whose config names no number."""


def first_round(task: Task) -> int:
    """The number of a run's first round: 1 where the task has no primitives, which round 0
    imitates."""
    return 0 if task.primitives() else 1


def planned_questions(config: RoundsConfig, task: Task) -> list[int]:
    """Training questions that each round asks, from round 1 on."""
    learn = config.overseer.learn
    asked = learn if isinstance(learn, int) else 0
    given = [spec.questions for spec in config.rounds[1 - first_round(task) :]]
    size = task.size("train")
    share = MAX_QUESTIONS
    if size is not None and None in given:
        left = size - asked - sum(number or 0 for number in given)
        share = min(share, max(0, left // given.count(None)))
    return [share if number is None else number for number in given]


def anchor_size(config: RoundsConfig, task: Task) -> int:
    """Prompts of the anchor: as many as the config says, else in proportion to what is learned."""
    if config.anchor is not None:
        return config.anchor
    return min(MAX_ANCHOR, max(MIN_ANCHOR, sum(planned_questions(config, task))))


def check_questions(config: RoundsConfig, task: Task) -> None:
    """Check that all rounds of a run have questions and an overseer, before anything is asked.

    Raises:
        UsageError: they have not.
    """
    task.check_levels([spec.level for spec in config.rounds])
    learn = config.overseer.learn
    if isinstance(learn, str) and learn:
        overseer_rows(learned_from(learn, task), (), withheld_by(task))
    train, held_out = task.size("train"), task.size("held_out")
    if train is None or held_out is None:
        for spec in config.rounds:
            if not (task.sample(1, spec.level, "train", config.seed) or task.primitives()):
                raise UsageError(
                    f"{task.name} has no training question at level {spec.level}: give it "
                    "`questions()`, or a `sample` that returns some"
                )
        return
    has = f"{task.name} has {train + held_out} different questions"
    if not train or not held_out:
        raise UsageError(
            f"{has}, of which their hash holds out {held_out}: a run needs some to train on and "
            "some to be judged by, about one in five is held out; add questions"
        )
    planned = planned_questions(config, task)
    shown = learn if isinstance(learn, int) else 0
    if shown + sum(planned) > train or 0 in planned:
        rounds = (
            f"{len(planned)} rounds are to ask {sum(planned)}"
            + (f" and overseer.learn {shown}" if shown else "")
            if 0 not in planned
            else (f"{len(planned)} rounds leave none for one of them")
        )
        raise UsageError(
            f"{has}, {train} of them to train on, and {rounds}: lower `rounds` or their "
            "`questions`, or add questions"
        )
    wanted = max((spec.held_out or 0 for spec in config.rounds), default=0)
    if wanted > held_out:
        raise UsageError(
            f"held_out: {wanted}, and {has}, {held_out} of them held out: lower `held_out`, or "
            "leave it out for all of them"
        )


def question_lines(config: RoundsConfig, task: Task) -> list[str]:
    """What a run is going to ask, for its user to read before it begins."""
    train, held_out = task.size("train"), task.size("held_out")
    anchor = (
        f"First the base answers {anchor_size(config, task)} general prompts, so that students "
        "keep its manners (anchor: N in the config)."
    )
    if train is None or held_out is None:
        return [anchor]
    planned = [str(number) for number in planned_questions(config, task)]
    lines = [
        f"{task.name}: {train} questions to train on, of which the rounds ask "
        f"{', '.join(planned)}, and {held_out} held out, to be judged by.",
        anchor,
    ]
    known = sum(map(task.has_truth, task.sample(held_out, 1, "held_out", config.seed + 1)))
    if isinstance(task, FileTask) and (unused := task.file.unused):
        lines.append(f"Columns that are not used: {', '.join(unused)}.")
    if known:
        by = f", scored by {task.rule}" if isinstance(task, FileTask) else ""
        return [*lines, f"True answers are known to {known} of the held-out questions{by}."]
    return [
        *lines,
        "No true answer is known, so there is no accuracy: the report says how often the student "
        "gives the amplified system's answer, and how many answers pass the check.",
    ]


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
