"""`--route`: an evaluation of direct and amplified decides what is divided."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import Answer, Ask
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.traces.store import TraceStore
from reflux.routing import (
    check_not_routed_by,
    read_past,
    recorded_route,
    route_of,
    routed,
)
from tests.support.amplifying import ONE_VOTE, amplified, answers_of, asked_of


def row(number: int, system: str, **other: Any) -> dict[str, Any]:
    hard = number % 2 == 1
    question = (
        f"Which is older, {number} or 0?" if hard else f"What is the capital of land {number}?"
    )
    right = hard if system == "amplified" else not hard
    return {
        "id": str(number), "seed": 1, "system": system, "question": question, "right": right,
        "confidence": 0.5,
    } | other  # fmt: skip


def both(**other: Any) -> str:
    return "".join(f"{json.dumps(row(1, way, **other))}\n" for way in ("direct", "amplified"))


def evaluation(folder: Path, n: int = 60, **other: Any) -> Path:
    rows = [row(i, system, **other) for i in range(n) for system in ("direct", "amplified")]
    (folder / "eval.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    return folder


async def test_what_an_evaluation_found_decides_whether_a_question_is_divided(
    store: TraceStore, tmp_path: Path
) -> None:
    router = route_of(recorded_route(evaluation(tmp_path)))
    assert router is not None

    async def asked(question: str) -> list[str]:
        client = ScriptedClient(lambda request: request.messages[-1][1])

        def act(text: str, transcript: Any, may_ask: bool) -> Any:
            return Answer("joined") if transcript else Ask.of("a part")

        system = amplified(store, client, act, votes=ONE_VOTE, weighing=Weighing())
        system.context = routed(system.context, router)
        await answers_of(system, question)
        return asked_of(client)

    plain, hard = "What is the capital of land 998?", "Which is older, 999 or 0?"
    assert await asked(plain) == [plain]
    assert (await asked(hard))[:2] == [hard, "a part"]


def test_an_evaluation_is_found_by_its_folder_and_must_not_change(tmp_path: Path) -> None:
    recorded = recorded_route(evaluation(tmp_path))
    assert recorded == recorded_route(tmp_path / "eval.jsonl")
    assert recorded_route(None) == {}
    assert route_of({}) is None
    past = read_past(tmp_path, (tmp_path / "eval.jsonl").read_text())
    assert len(past) == 60
    assert past[0].logprob == math.log(0.5)
    assert [each.amplified for each in past[:2]] == [False, True]
    assert route_of(recorded) is route_of(recorded)  # Read and fitted once.
    evaluation(tmp_path, confidence=None)
    assert read_past(tmp_path, (tmp_path / "eval.jsonl").read_text())[0].logprob is None
    with pytest.raises(UsageError, match="was changed since the question was asked with it"):
        route_of(recorded)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0 questions that were answered direct and amplified, and a route needs 20"),
        (
            "no JSON\n",
            "is no evaluation: `reflux eval --data FILE --systems direct,amplified --candid",
        ),
        ('{"question": "x"}\n', "is no evaluation"),
        ("[]\n", "is no evaluation"),
        (json.dumps(row(1, "direct")) + "\n", "has 0 questions"),
        ('{"system": "direct", "right": true, "id": [], "seed": 1}\n', "is no evaluation"),
        ("[" * 50_000, "is no evaluation"),
        (both(question=5), "is no evaluation"),
        (both(confidence=2), "is no evaluation"),
        (both(confidence=math.nan), "is no evaluation"),
    ],
)
def test_what_is_no_evaluation_is_said(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "eval.jsonl"
    with pytest.raises(UsageError, match="there is no"):
        recorded_route(file)
    file.write_text(text)
    with pytest.raises(UsageError, match=why):
        recorded_route(file)


def test_questions_that_a_route_was_fitted_on_are_not_evaluated_by_it(tmp_path: Path) -> None:
    router = route_of(recorded_route(evaluation(tmp_path)))
    check_not_routed_by(router, ["What is the capital of land 998?"])
    check_not_routed_by(None, ["What is the capital of land 2?"])
    with pytest.raises(UsageError, match="was fitted on 1 of these questions"):
        check_not_routed_by(router, ["x", "What is the capital of land 2?"])
