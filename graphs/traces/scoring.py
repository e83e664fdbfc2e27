"""Scores of recorded trajectories, by a program or by a model, and how far humans agree.

A score is a judgement of kind "feedback" under the name of its author. Humans judge by a verdict in
review, or by their own score; Cohen's kappa tells how far an author agrees with them beyond
chance (Cohen 1960, "A coefficient of agreement for nominal scales").
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.prompts import read_score, rubric_prompt
from reflux.agents.types import ChatClient, ChatRequest, Sampling
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Feedback, Trajectory, load
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

GOOD = 0.5
"""A score of at least this approves a trajectory."""
SHOWN = 12_000
"""Maximum characters of a trajectory that a judge reads."""
REPLY_TOKENS = 512
Scorer = Callable[[Trajectory], Awaitable[Feedback]]


def check_feedback(feedback: Feedback) -> Feedback:
    """Check that feedback says something, with a score from 0 to 1.

    Raises:
        UsageError: it does not.
    """
    if feedback.score is None and not feedback.comment.strip():
        raise UsageError("the feedback is empty: give a score, a comment, or both")
    if feedback.score is not None and not 0 <= feedback.score <= 1:
        raise UsageError(
            f"the score {feedback.score:g} is not from 0 to 1: divide it by the highest one"
        )
    return feedback


def feedback_of(value: Any, name: str, author: str) -> Feedback:
    """What a user's function returned, as feedback: a number, True or False, `Feedback`, or a
    mapping of `score` and `comment`.

    Raises:
        UsageError: it is none of them.
    """
    body = cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {"score": value}
    if isinstance(value, Feedback):
        body = {"score": value.score, "comment": value.comment}
    score = body.get("score")
    comment = str(body.get("comment") or "")
    is_number = isinstance(score, int | float) and 0 <= score <= 1
    if not is_number and not (score is None and comment.strip()):
        raise UsageError(
            f"{author} returned {value!r:.80}; return a number from 0 to 1, or score and comment"
        )
    number = None if score is None else float(score)
    return check_feedback(Feedback(number, name, comment, author))


def by_function(function: Callable[[Trajectory], Any], name: str, author: str) -> Scorer:
    """Scores by a user's function of a trajectory, which may be async."""

    async def score(trajectory: Trajectory) -> Feedback:
        value = function(trajectory)
        return feedback_of(await value if inspect.isawaitable(value) else value, name, author)

    return score


def by_judge(client: ChatClient, model: str, rubric: str, name: str) -> Scorer:
    """Scores by a model that reads a rubric and the trajectory."""

    async def score(trajectory: Trajectory) -> Feedback:
        prompt = rubric_prompt(rubric, shown(trajectory))
        request = ChatRequest(model, prompt, Sampling(max_tokens=REPLY_TOKENS))
        reply = await client.complete(request)
        number = read_score(reply.text)
        if number is None:
            raise RefluxError(f"the judge {model} gave no score: {reply.text!r:.120}")
        return Feedback(number, name, reply.text.strip()[:2_000], f"judge:{model}")

    return score


def shown(trajectory: Trajectory, chars: int = SHOWN) -> str:
    """A trajectory as a judge reads it: the question, each call, and the answer."""
    answer = trajectory.outcome.answer if trajectory.outcome else None
    lines: list[str] = []
    for call in trajectory.calls:
        if call.kind == "tool":
            lines.append(f"[tool {call.model}] {call.arguments} -> {call.reply.text}")
            continue
        calls = [f"{each.name}({each.arguments})" for each in call.reply.tool_calls]
        lines.append(f"[{call.node}] {' '.join([call.reply.text, *calls]).strip()}")
    room = max(200, (chars - len(trajectory.question) - len(answer or "")) // max(1, len(lines)))
    steps = "\n".join(line if len(line) <= room else f"{line[:room]}…" for line in lines)
    end = "none" if answer is None else answer[:chars]
    return f"Question:\n{trajectory.question[:chars]}\n\nSteps:\n{steps}\n\nAnswer:\n{end}"


@dataclass(frozen=True)
class Scored:
    """What came of one trajectory: its feedback, or why it has none."""

    id: str
    feedback: Feedback | None
    error: str = ""


async def score_all(
    store: TraceStore, ids: Iterable[str], scorer: Scorer, concurrency: int = 8
) -> AsyncIterator[Scored]:
    """Score trajectories and store what comes of it, some at a time, in the order of the ids."""
    writer = TrajectoryWriter(store)
    running: list[asyncio.Task[Scored]] = []

    async def one(id: str) -> Scored:
        trajectory = load(store, id)
        if trajectory is None:
            return Scored(id, None, "it is not on the record")
        try:
            feedback = await scorer(trajectory)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything
            return Scored(id, None, " ".join(f"{type(error).__name__}: {error}".split()))
        await asyncio.wrap_future(writer.score(id, feedback))
        return Scored(id, feedback)

    try:
        for id in ids:
            running.append(asyncio.create_task(one(id)))
            if len(running) >= concurrency:
                yield await running.pop(0)
        while running:
            yield await running.pop(0)
    finally:
        for task in running:
            task.cancel()


VERDICT = (
    "SELECT ok FROM judgements WHERE question = ? AND path = '' AND kind = 'verdict'"
    " ORDER BY id DESC LIMIT 1"
)
BY_HUMANS = (
    "SELECT avg(detail ->> 'score') FROM judgements WHERE question = ? AND path = ''"
    " AND kind = 'feedback' AND author = 'human' AND detail ->> 'score' IS NOT NULL"
)
BY_AUTHOR = (
    "SELECT detail ->> 'score' AS score FROM judgements WHERE question = ? AND kind = 'feedback'"
    " AND author = ? AND detail ->> 'name' = ? ORDER BY id DESC LIMIT 1"
)


def human_judgement(store: Rows, id: str) -> bool | None:
    """Whether humans approve a trajectory: by the last verdict, else by the mean of their scores;
    None where nobody judged it."""
    for row in store.select(VERDICT, (id,)):
        return bool(row["ok"])
    mean = next(store.select(BY_HUMANS, (id,)))[0]
    return None if mean is None else mean >= GOOD


def has_score(store: Rows, id: str, author: str, name: str) -> bool:
    """Whether an author scored a trajectory under this name."""
    return next(store.select(BY_AUTHOR, (id, author, name)), None) is not None


@dataclass(frozen=True)
class Agreement:
    """How an author's scores agree with human judgements of the same trajectories."""

    n: int = 0
    both_good: int = 0
    both_bad: int = 0
    only_author: int = 0
    """The author alone approves."""
    only_humans: int = 0

    @property
    def rate(self) -> float | None:
        return (self.both_good + self.both_bad) / self.n if self.n else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa; None where chance alone would agree always, as where all are good."""
        if not self.n:
            return None
        author, humans = self.both_good + self.only_author, self.both_good + self.only_humans
        chance = author * humans + (self.n - author) * (self.n - humans)
        expected = chance / self.n**2
        return None if expected == 1 else ((self.rate or 0.0) - expected) / (1 - expected)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rate": self.rate, "kappa": self.kappa}


def agreement(store: Rows, author: str, name: str) -> Agreement:
    """The agreement of an author with humans, on all trajectories that both judged."""
    sql = (
        "SELECT DISTINCT question FROM judgements WHERE kind = 'feedback' AND author = ?"
        " AND detail ->> 'name' = ?"
    )
    counts = {(good, humans): 0 for good in (True, False) for humans in (True, False)}
    for (id,) in list(store.select(sql, (author, name))):
        humans = human_judgement(store, id)
        score = next(store.select(BY_AUTHOR, (id, author, name)))["score"]
        if humans is not None and score is not None:
            counts[score >= GOOD, humans] += 1
    return Agreement(
        sum(counts.values()), counts[True, True], counts[False, False], counts[True, False],
        counts[False, True],
    )  # fmt: skip
