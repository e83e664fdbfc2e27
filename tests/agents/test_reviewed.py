"""An overseer proposes, and a person approves or edits."""

from typing import Any

import pytest

from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.reviewed import Reviewed, When
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Defer, Exchange, Step, step_to_json
from tests.support.contexts import ScriptedContext
from tests.support.hostile import BOTH, SOUND

SAID = [Exchange("a?", None, "busy")]


async def act(step: Step, when: When, path: str = "", said: Any = ()) -> Step:
    reviewed = Reviewed(ScriptedOverseer("h", lambda q, t, m: step), when)
    return await reviewed.act(ScriptedContext(path=path).on("root", said))


async def test_a_person_is_shown_the_question_what_was_said_and_the_proposal() -> None:
    assert await act(Ask.of("b?"), "always", said=SAID) == Defer(
        {
            "question": "root",
            "transcript": [{"question": "a?", "answer": None, "error": "busy"}],
            "may_ask": True,
            "proposal": {"kind": "ask", "subquestions": [{"text": "b?", "needs": []}]},
            "by": "script:h",
        }
    )


POLICIES = [
    ("always", "", Answer("1"), True),
    ("always", "/0.0.0", PASS, True),
    ("root", "", Answer("1"), True),
    ("root", "/0.0.0", Ask.of("b?"), False),
    ("asks", "", Ask.of("b?"), True),
    ("asks", "/0.0.0", Ask.of("b?"), True),
    ("asks", "", Answer("1"), False),
    ("asks", "", PASS, False),
]


@pytest.mark.parametrize(("when", "path", "step", "seen"), POLICIES)
async def test_the_policy_says_which_steps_a_person_sees(
    when: When, path: str, step: Step, seen: bool
) -> None:
    taken = await act(step, when, path)
    assert isinstance(taken, Defer) if seen else taken == step


async def test_what_is_deferred_already_goes_to_the_person_as_it_is() -> None:
    assert await act(Defer({"about": 1}), "always") == Defer({"about": 1})


async def test_a_model_s_step_is_proposed_in_the_same_context() -> None:
    context = ScriptedContext([SOUND])
    reviewed = Reviewed(ModelOverseer("m"))
    step = await reviewed.act(context.on("What are the capitals?"))
    assert isinstance(step, Defer)
    assert (step.form["proposal"], step.form["by"]) == (step_to_json(BOTH), "model:m")
    assert len(context.client.requests) == 1
    assert (reviewed.name, reviewed.reserve) == ("reviewed:model:m", ModelOverseer("m").reserve)
