"""Overseers that are models, panels, people or records, through the graph."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.panel import Panel
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import (
    APPROVE,
    HumanOverseer,
    RecordedOverseer,
    Reviewed,
    ScriptedOverseer,
)
from reflux.agents.tools.calculator import Calculator
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Defer,
    Exchange,
    Step,
    SubQuestion,
    step_to_json,
)
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.screening import begin
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Origin, answer_all
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree, recorded_steps
from reflux.graphs.voting.voting import VotePolicy
from reflux.report.terminal import tree_view
from reflux.report.tree_page import tree_page
from tests.support.amplifying import amplified, echo
from tests.support.hostile import BOTH, FRANCE, JAPAN, QUESTION, REPLIES, SOUND

ASKED = Origin("run", 0, "amplified", "capitals", "train")
CAPITALS = {FRANCE: "Paris", JAPAN: "Tokyo", QUESTION: "undivided"}
COMBINED = '{"answer": "Paris and Tokyo"}'
LOST = '{"ask": ["What are the capitals of these countries?"]}'


def world(*steps: str) -> ScriptedClient:
    """A model that is H, with these replies in order (the last one for ever), and is X."""
    listed = list(steps)

    def reply(request: ChatRequest) -> str:
        if request.messages[0][1]:  # H is told what it is for, X is not.
            return listed.pop(0) if listed[1:] else listed[0]
        return CAPITALS.get(request.messages[-1][1], "no idea")

    return ScriptedClient(reply)


async def amplify(
    store: TraceStore, client: ScriptedClient, *overseers: Overseer, **other: Any
) -> Outcome:
    context = AmplifyContext(
        RecordedClient(client, store), "base", overseers, votes=VotePolicy(max_votes=1), **other
    )
    (outcome,) = await answer_all(Amplified(context), ASKED, [QUESTION])
    return outcome


def steps_of(store: TraceStore, path: str = "") -> list[dict[str, Any]]:
    rows = store.select(
        "SELECT completion FROM calls WHERE role = 'overseer' AND path = ? ORDER BY id", (path,)
    )
    return [json.loads(row["completion"]) for row in rows]


async def test_a_model_divides_and_combines(store: TraceStore) -> None:
    client = world(SOUND, COMBINED)
    outcome = await amplify(store, client, ModelOverseer())
    assert (outcome["answer"], outcome["status"]) == ("Paris and Tokyo", "unchecked")
    assert outcome["spent"]["calls"] == len(client.requests) == 4
    assert steps_of(store) == [step_to_json(BOTH), step_to_json(Answer("Paris and Tokyo"))]


@pytest.mark.parametrize("form", ["json", "lines"])
async def test_sub_questions_go_to_a_tool_by_its_name(store: TraceStore, form: Any) -> None:
    lines = "1. calculator: 205 - 838\n2. `Calculator: ({1}) + 505`"
    texts = ["calculator: 205 - 838", "[calculator]: ({0}) + 505"]
    client = world(lines if form == "lines" else json.dumps({"ask": texts}))
    overseer = ModelOverseer(form=form, plan=True, validate=False)
    outcome = await amplify(store, client, overseer, tools={"calculator": Calculator()})
    assert outcome["answer"] == "-128"
    assert "`calculator:`" in client.requests[0].messages[0][1]
    assert len(client.requests) == 1


@pytest.mark.parametrize("name", REPLIES)
async def test_a_model_that_replies_so_to_all_leads_to_an_answer_in_few_calls(
    store: TraceStore, name: str
) -> None:
    h = ModelOverseer()
    client = world(REPLIES[name][0])
    outcome = await amplify(store, client, h, limits=Limits(1, attempts=1, tokens=10**8))
    assert outcome["status"] == "unchecked"
    assert outcome["answer"]
    max_votes = h.max_subquestions + h.max_tries * (h.max_subquestions + 1)
    assert outcome["spent"]["calls"] == len(client.requests) <= max_votes
    if REPLIES[name][1] is None:
        (step,) = steps_of(store)
        assert step["note"].startswith("unreadable: ")
        assert len(client.requests) == h.max_tries + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLIES)
async def test_deeper_down_as_well_and_within_the_budget(store: TraceStore, name: str) -> None:
    limits = Limits(depth=2, attempts=2, calls=60)
    client = world(REPLIES[name][0])
    outcome = await amplify(store, client, ModelOverseer(), limits=limits)
    assert outcome["status"] in ("unchecked", "over_budget")
    assert len(client.requests) <= limits.calls
    again = world("another reply")
    assert await amplify(store, again, ModelOverseer(), limits=limits) == outcome
    assert not again.requests


@pytest.mark.parametrize("name", ["empty", "refusal", "a recursion bomb of lists"])
async def test_what_cannot_be_read_goes_to_x_undivided(store: TraceStore, name: str) -> None:
    outcome = await amplify(store, world(REPLIES[name][0]), ModelOverseer())
    assert (outcome["answer"], outcome["status"]) == ("undivided", "unchecked")


async def test_what_is_not_decomposable_goes_to_x_and_the_record_says_why(
    store: TraceStore,
) -> None:
    client = world('{"not_decomposable": "it is one fact"}')
    outcome = await amplify(store, client, ModelOverseer())
    assert outcome["answer"] == "undivided"
    assert len(client.requests) == 2
    (step,) = steps_of(store)
    assert step["note"] == "not decomposable: it is one fact"


@pytest.mark.parametrize(
    ("steps", "answer", "note"),
    [
        ([LOST], "undivided", "sub-questions rejected: "),
        ([LOST, SOUND, COMBINED], "Paris and Tokyo", "asked again: "),
    ],
)
async def test_why_a_question_was_not_divided_or_at_the_second_try_is_shown(
    store: TraceStore, steps: list[str], answer: str, note: str
) -> None:
    outcome = await amplify(store, world(*steps), ModelOverseer())
    assert outcome["answer"] == answer
    (root,) = {row["question"] for row in store.select("SELECT question FROM calls", ())}
    tree = load_tree(store, root)
    assert tree.note.startswith(note)
    assert "these countries" in str(tree_view(tree).label)
    assert "these countries" in tree_page(store, root)


async def test_a_level_that_asks_an_ancestor_again_is_left_to_the_agent(
    store: TraceStore,
) -> None:
    def reply(request: ChatRequest) -> str:
        if not request.messages[0][1]:
            return "all of them"
        shown = request.messages[-1][1]
        if "Which ones? all of them" in shown:
            return '{"answer": "Paris at least"}'
        return json.dumps({"ask": [QUESTION if "Question: Which" in shown else "Which ones?"]})

    limits = Limits(depth=3, attempts=1)
    outcome = await amplify(
        store, ScriptedClient(reply), ModelOverseer(validate=False), limits=limits
    )
    assert (outcome["answer"], outcome["status"]) == ("Paris at least", "unchecked")


async def test_a_failed_check_draws_another_decomposition(store: TraceStore) -> None:
    checker = RuleChecker({"both": lambda question, answer: "Tokyo" in answer})
    client = world(SOUND, '{"answer": "Paris"}', SOUND, COMBINED)
    outcome = await amplify(store, client, ModelOverseer(), checker=checker)
    assert (outcome["answer"], outcome["status"]) == ("Paris and Tokyo", "ok")
    seeds = {r.sampling.seed for r in client.requests if r.schema}
    assert len(seeds) == 2


async def test_an_endpoint_that_fails_for_h_is_a_failed_outcome(store: TraceStore) -> None:
    def fail(request: ChatRequest) -> str:
        raise EndpointError("busy")

    outcome = await amplify(store, ScriptedClient(fail), ModelOverseer(), limits=Limits(attempts=2))
    assert (outcome["answer"], outcome["status"], outcome["error"]) == (None, "failed", "busy")


@pytest.mark.parametrize("choice", ["majority", "merge", "judge"])
async def test_a_panel_of_models_divides_and_combines(store: TraceStore, choice: Any) -> None:
    said = {
        "one": json.dumps({"ask": [FRANCE]}),
        "two": json.dumps({"ask": [JAPAN]}),
        "three": "I cannot.",
        "wise": '{"choice": 2}',
    }

    def reply(request: ChatRequest) -> str:
        if request.model == "base":
            return CAPITALS[request.messages[-1][1]]
        if request.model != "wise" and "Answers so far:\n" in request.messages[-1][1]:
            return COMBINED
        return said[request.model]

    client = ScriptedClient(reply)
    models = tuple(ModelOverseer(name, max_tries=1) for name in ("one", "two", "three"))
    panel = Panel(models, choice, judge="wise")
    outcome = await amplify(store, client, panel, limits=Limits(depth=1))
    assert (outcome["answer"], outcome["status"]) == ("Paris and Tokyo", "unchecked")
    asked = [r.messages[-1][1] for r in client.requests if r.model == "base"]
    assert asked == {"majority": [FRANCE], "merge": [FRANCE, JAPAN], "judge": [JAPAN]}[choice]
    silent = ScriptedClient(lambda _: pytest.fail("a recorded call was made again"))
    assert await amplify(store, silent, panel, limits=Limits(depth=1)) == outcome


async def reviewed(store: TraceStore, h: Overseer, *replies: Any) -> tuple[list[Any], Any]:
    """The forms that a person saw, and the state after these replies."""
    client = world(SOUND, COMBINED)
    context = AmplifyContext(RecordedClient(client, store), "base", [h], limits=Limits(1))
    graph = cast(Any, build_graph()).compile(checkpointer=InMemorySaver())
    await store.add_question({"id": "q", "text": QUESTION, **vars(ASKED)})
    config = {"configurable": {"thread_id": "t"}}
    state = await graph.ainvoke(begin(QUESTION, "q", context), config, context=context)
    forms: list[Any] = []
    for reply in replies:
        (waiting,) = state["__interrupt__"]
        forms.append(waiting.value["form"])
        state = await graph.ainvoke(Command(resume={waiting.id: reply}), config, context=context)
    assert "__interrupt__" not in state
    h_calls = [r for r in client.requests if r.messages[0][1]]
    assert len(h_calls) <= 2  # Waiting for a person repeats no call.
    return forms, state


async def test_an_approved_proposal_is_the_step(store: TraceStore) -> None:
    h = Reviewed(ModelOverseer(), "root")
    forms, state = await reviewed(store, h, APPROVE, APPROVE)
    assert state["outcome"]["answer"] == "Paris and Tokyo"
    assert [form["proposal"]["kind"] for form in forms] == ["ask", "answer"]
    assert [step["kind"] for step in steps_of(store)] == ["ask", "answer"]


async def test_an_edited_proposal_is_the_edit_and_so_recorded(store: TraceStore) -> None:
    edit = step_to_json(Ask.of(JAPAN))
    forms, state = await reviewed(store, Reviewed(ModelOverseer(), "asks"), edit)
    assert forms[0]["by"] == "model:X"
    assert state["outcome"]["answer"] == "Paris and Tokyo"
    assert steps_of(store)[0] == edit


async def test_the_steps_of_a_record_are_taken_again_by_other_copies(
    store: TraceStore, tmp_path: Path
) -> None:
    checker = RuleChecker({"both": lambda question, answer: "Tokyo" in answer})
    first = world(json.dumps({"ask": [FRANCE]}), '{"answer": "Paris"}', SOUND, COMBINED)
    told = await amplify(store, first, ModelOverseer(), checker=checker)
    record = recorded_steps(store, ASKED.question_id(QUESTION))
    assert record[QUESTION] == [
        [Ask.of(FRANCE), Answer("Paris")],
        [BOTH, Answer("Paris and Tokyo")],
    ]
    other = TraceStore(tmp_path / "other.db")
    silent = ScriptedClient(lambda request: CAPITALS[request.messages[-1][1]])
    overseers = (RecordedOverseer(record, attempt) for attempt in (0, 1))
    again = await amplify(other, silent, *overseers, checker=checker)
    assert (again["answer"], again["status"]) == (told["answer"], told["status"])
    assert recorded_steps(other, ASKED.question_id(QUESTION)) == record
    # H asked nothing: the three leaves of two attempts are all.
    assert [r.messages[-1][1] for r in silent.requests] == [FRANCE, FRANCE, JAPAN]
    other.close()


async def test_a_record_holds_the_steps_of_every_depth_and_of_people(store: TraceStore) -> None:
    def act(question: str, said: Sequence[Exchange], may_ask: bool) -> Step:
        if said:
            return Answer(f"({' '.join(str(e.answer) for e in said)})")
        return {"ab": Ask.of("a", "b"), "b": Ask.of("c", "d")}.get(question, Answer(question))

    context = AmplifyContext(
        RecordedClient(world(""), store), "base", [ScriptedOverseer("h", act)], limits=Limits(2)
    )
    await answer_all(Amplified(context), ASKED, ["ab"])
    record = recorded_steps(store, ASKED.question_id("ab"))
    assert record == {
        "ab": [[Ask.of("a", "b"), Answer("(a (c d))")]],
        "a": [[Answer("a")]],
        "b": [[Ask.of("c", "d"), Answer("(c d)")]],
        "c": [[Answer("c")]],
        "d": [[Answer("d")]],
    }
    assert not any(isinstance(s, Defer) for tries in record.values() for t in tries for s in t)


async def test_a_person_s_answer_is_in_the_record_as_the_step(store: TraceStore) -> None:
    await reviewed(store, HumanOverseer(), step_to_json(Answer("mine")))
    assert recorded_steps(store, "q") == {QUESTION: [[Answer("mine")]]}


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (None, "a step must be of type Answer, Ask, Chain or Defer, not NoneType"),
        ("Paris", "a step must be of type Answer, Ask, Chain or Defer, not str: 'Paris'"),
        (Answer(cast(Any, 42)), "the text of an Answer must be of type str, not int: 42"),
        (Ask(cast(Any, ["a"])), "a sub-question must be of type SubQuestion, not str: 'a'"),
        (Ask((SubQuestion("a"), SubQuestion("b {0}", cast(Any, ("0",))))), "not str: '0'"),
        (Ask((SubQuestion("a", cast(Any, None)),)), "the needs of a SubQuestion"),
        (Ask((SubQuestion("a", (), cast(Any, 5)),)), "the `to` of a SubQuestion"),
    ],
)
async def test_what_is_no_step_is_a_failure_that_says_what_a_step_is(
    store: TraceStore, odd: Any, says: str
) -> None:
    outcome = await amplified(store, ScriptedClient(echo), lambda *_: odd).answer("root", "q")
    assert outcome["status"] == "failed"
    assert says in str(outcome["error"])
