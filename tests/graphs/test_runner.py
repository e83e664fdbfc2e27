"""Evaluation: who may be scored, the interval, and what it all cost."""

import re

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.types import ChatRequest, Completion
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Direct, Origin
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.runner import evaluate
from reflux.graphs.evals.task import (
    HELD_OUT_SHARE,
    hashed_out,
    is_held_out,
    score_held_out,
    task_context,
)
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.tasks.addition import Addition

TASK = Addition()
ASKED = Origin("run", 0, "direct", TASK.name, "held_out")


def true_sum(question: str) -> str:
    """The answer, found by trying: the scorer accepts only one."""
    numbers = (str(n).zfill(3)[::-1] for n in range(200))
    return next(text for text in numbers if TASK.score(question, text))


def test_a_training_question_is_not_scored() -> None:
    question = TASK.sample(1, 3, "train", 0)[0]
    for answer in ("", None):
        with pytest.raises(UsageError, match="is a training question of 'addition'"):
            score_held_out(TASK, question, answer)


def test_a_held_out_question_is_scored_and_no_answer_is_a_wrong_one() -> None:
    question = TASK.sample(1, 2, "held_out", 0)[0]
    assert score_held_out(TASK, question, true_sum(question))
    assert not score_held_out(TASK, question, "0")
    assert not score_held_out(TASK, question, None)


def test_a_primitive_is_never_held_out() -> None:
    assert not any(is_held_out(TASK, primitive) for primitive in TASK.primitives())
    # As any other text, some would be.
    assert any(hashed_out(f"{TASK.name}:{TASK.canonical(p)}") for p in TASK.primitives())


def test_a_fifth_of_all_texts_is_held_out() -> None:
    share = sum(hashed_out(str(n)) for n in range(5_000)) / 5_000
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.02)


async def test_a_score_adds_up_what_the_outcomes_say(store: TraceStore) -> None:
    questions = TASK.sample(8, 2, "held_out", 0)

    def reply(request: ChatRequest) -> Completion:
        at = questions.index(request.messages[-1][1])
        text = true_sum(questions[at]) if at < 5 else "no sum"
        return Completion(text, 10, 3, cached=at == 0)

    done: list[int] = []
    context = AmplifyContext(RecordedClient(ScriptedClient(reply), store), "base", ())
    system = Direct(task_context(context, TASK))
    score = await evaluate(system, TASK, ASKED, questions, max_concurrency=3, on_done=done.append)
    assert (score.accuracy, score.n, score.ci95) == (5 / 8, 8, wilson(5, 8))
    assert (score.calls, score.cached, score.tokens) == (8, 1, 8 * 13)
    assert score.statuses == {"ok": 5, "rejected": 3}
    assert done == list(range(1, 9))
    assert score.to_json()["ci95"] == list(wilson(5, 8))


async def test_an_answer_that_the_check_refused_is_scored_by_the_truth_alone(
    store: TraceStore,
) -> None:
    questions = TASK.sample(2, 2, "held_out", 0)
    client = ScriptedClient(lambda request: true_sum(request.messages[-1][1]))
    never = RuleChecker({"never": lambda *_: False})
    system = Direct(AmplifyContext(RecordedClient(client, store), "base", (), never))
    score = await evaluate(system, TASK, ASKED, questions)
    assert (score.accuracy, score.statuses) == (1.0, {"rejected": 2})


async def test_training_questions_cannot_be_evaluated(store: TraceStore) -> None:
    context = AmplifyContext(RecordedClient(ScriptedClient(lambda _: "0"), store), "base", ())
    system = Direct(task_context(context, TASK))
    with pytest.raises(UsageError, match="only held-out ones are scored"):
        await evaluate(system, TASK, ASKED, TASK.sample(2, 3, "train", 0))


async def test_a_scorer_that_fails_is_told_after_all_answers_are_on_record(
    store: TraceStore,
) -> None:
    class Picky(Addition):
        def score(self, question: str, answer: str) -> bool:
            if question == questions[1]:
                raise KeyError("no key")
            return super().score(question, answer)

    task, client = Picky(), ScriptedClient(lambda request: true_sum(request.messages[-1][1]))
    questions = task.sample(4, 2, "held_out", 0)
    system = Direct(task_context(AmplifyContext(RecordedClient(client, store), "base", ()), task))
    with pytest.raises(RefluxError, match=rf"failed on '{re.escape(questions[1])}': KeyError"):
        await evaluate(system, task, ASKED, questions, max_concurrency=1)
    assert len(client.requests) == 4
