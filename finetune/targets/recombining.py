"""The answers that other sub-answers would have led to, as far as the overseer is a script.

The votes on sub-questions are a distribution over transcripts, and a script says at once what
follows from each. So the answer to the question has a distribution, too, without a model call.
"""

import itertools
import math
import random
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reflux.agents.errors import RefluxError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.agents.verifiers import verdict_of
from reflux.finetune.data.scripted_demonstrations import ScriptContext
from reflux.graphs.evals.task import Task

MAX_TRANSCRIPTS = 64
"""Transcripts of a question that are combined again: all, or as many drawn by their probability."""
MAX_STEPS = 20
Shares = Sequence[tuple[str, float]]
"""(answer, its share of the votes)."""


@dataclass(frozen=True)
class Recombiner:
    """Combines sub-answers as a task's scripts do."""

    task: Task

    def shares(self, question: str, attempt: int, parts: Mapping[str, Shares]) -> Shares:
        """The answers to a question by their probability; empty where the overseer is no script.

        What follows from sub-answers that lead to further questions, or what the task's check
        refuses, is left out, so the shares may sum to less than 1.

        Args:
            attempt: of the tree; each has its own overseer.
            parts: shares of the answers to each sub-question.
        """
        overseers = self.task.overseers()
        overseer = overseers[attempt % len(overseers)]
        found: dict[str, float] = {}
        for answers, probability in _transcripts(question, parts):
            answer = self._combined(overseer, question, answers)
            if answer is not None:
                found[answer] = found.get(answer, 0.0) + probability
        return sorted(found.items(), key=lambda pair: -pair[1])

    def _combined(
        self, overseer: Overseer, question: str, answers: Mapping[str, str]
    ) -> str | None:
        transcript: list[Exchange] = []
        for _ in range(MAX_STEPS):
            step = _at_once(overseer.act(ScriptContext(question, tuple(transcript))))
            if isinstance(step, Answer):
                answer = self.task.normalise(step.text)
                return answer if verdict_of(self.task.checker(), question, answer).ok else None
            if not isinstance(step, Ask) or not step.subquestions:
                return None
            known: dict[int, str] = {}
            for index, sub in enumerate(step.subquestions):
                text = sub.filled(known)
                if text not in answers:
                    return None
                known[index] = answers[text]
                transcript.append(Exchange(text, answers[text]))
        return None


def _transcripts(
    question: str, parts: Mapping[str, Shares]
) -> Iterator[tuple[dict[str, str], float]]:
    """(an answer to each part, the probability of these answers)."""
    if math.prod(map(len, parts.values())) <= MAX_TRANSCRIPTS:
        for chosen in itertools.product(*parts.values()):
            answers = {text: answer for text, (answer, _) in zip(parts, chosen, strict=True)}
            yield answers, math.prod(share for _, share in chosen)
        return
    drawn = random.Random(question)  # The same ones each time.
    known = math.prod(sum(share for _, share in shares) for shares in parts.values())
    for _ in range(MAX_TRANSCRIPTS):
        answers = {
            text: drawn.choices([a for a, _ in shares], [share for _, share in shares])[0]
            for text, shares in parts.items()
        }
        yield answers, known / MAX_TRANSCRIPTS


def _at_once(acting: Coroutine[Any, Any, Step]) -> Step | None:
    """The step of an overseer that waits for nothing; None of any other."""
    try:
        acting.send(None)
    except StopIteration as done:
        return done.value
    except RefluxError:  # It calls a model.
        return None
    finally:
        acting.close()
    return None
