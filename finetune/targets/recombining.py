"""The answers that other sub-answers would have led to, as far as the overseer is a script.

The votes on sub-questions are a distribution over transcripts, and a script says at once what
follows from each. So the answer to the question has a distribution, too, without a model call.
"""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reflux.agents.errors import RefluxError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.agents.verifiers import verdict_of
from reflux.finetune.data.scripted_demonstrations import ScriptContext
from reflux.graphs.evals.task import Task

MAX_TRANSCRIPTS = 64
"""The likeliest transcripts of a question that are combined again."""
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
        for answers, probability in _likeliest(parts):
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


def _likeliest(parts: Mapping[str, Shares]) -> list[tuple[dict[str, str], float]]:
    """(an answer to each part, their probability) of the likeliest choices."""
    choices: list[tuple[dict[str, str], float]] = [({}, 1.0)]
    for text, shares in parts.items():
        longer = [
            ({**chosen, text: answer}, probability * share)
            for chosen, probability in choices
            for answer, share in shares
        ]
        choices = sorted(longer, key=lambda choice: -choice[1])[:MAX_TRANSCRIPTS]
    return choices


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
