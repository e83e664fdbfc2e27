"""`/v1/responses`: the OpenAI SDK against a real server, events in order, state that lasts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from reflux.graphs.traces.store import TraceStore
from tests.support.serving import Scripted, X, serving, soon

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
REASONING_EVENTS = [
    "response.output_item.added",
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_text.delta",
    "response.reasoning_summary_text.done",
    "response.reasoning_summary_part.done",
    "response.output_item.done",
]
CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


class City(BaseModel):
    city: str


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def url(script: Scripted, run: Path) -> Iterator[str]:
    with serving(run, script, per_second=0) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def kinds(events: list[Any]) -> list[str]:
    """The types of events in order, each run of equal ones once."""
    types = [event.type for event in events]
    return [kind for at, kind in enumerate(types) if at == 0 or types[at - 1] != kind]


@pytest.mark.parametrize("model", [X, "amplified"])
def test_a_text_is_answered_with_its_usage(client: OpenAI, model: str) -> None:
    raw = client.responses.with_raw_response.create(model=model, input="one two")
    reply = raw.parse()
    assert (reply.output_text, reply.status) == ("ONE TWO", "completed")
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (10, 2)
    assert reply.id == f"resp_{raw.headers['x-reflux-trajectory']}"
    assert reply.incomplete_details is None and reply.error is None
    assert client.responses.retrieve(reply.id).model_dump() == reply.model_dump()


def test_items_and_instructions_are_the_conversation(client: OpenAI, script: Scripted) -> None:
    talk: Any = [
        {"role": "developer", "content": "In capitals."},
        {"role": "user", "content": "one"},
        {"type": "message", "role": "assistant", "id": "msg_7", "status": "completed",
         "content": [{"type": "output_text", "text": "ONE", "annotations": []}]},
        {"type": "reasoning", "id": "rs_7", "summary": [], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_7"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2",
         "output": [{"type": "input_text", "text": "2"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "two"}]},
    ]  # fmt: skip
    reply = client.responses.create(model=X, input=talk, instructions="Be brief.")
    assert reply.output_text == "TWO"
    assert reply.instructions == "Be brief."
    sent = script.asked[-1]["messages"]
    assert [(m["role"], m["content"]) for m in sent] == [
        ("system", "Be brief."), ("system", "In capitals."), ("user", "one"),
        ("assistant", "ONE"), ("tool", "1"), ("tool", "2"), ("user", "two"),
    ]  # fmt: skip
    assert [call["function"]["name"] for call in sent[3]["tool_calls"]] == ["f", "g"]


def test_what_is_asked_for_reaches_the_model(client: OpenAI, script: Scripted) -> None:
    client.responses.create(
        model=X, input="hello", temperature=0.5, top_p=0.9, max_output_tokens=7,
        reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "low"},
        metadata={"k": "v"}, user="ann", truncation="disabled", parallel_tool_calls=True,
        include=["reasoning.encrypted_content"], service_tier="auto", background=False,
        prompt_cache_key="k", tools=[], store=False, extra_body={"seed": 3, "stop": ["!"]},
    )  # fmt: skip
    body = script.asked[-1]
    kept = ("temperature", "top_p", "max_tokens", "reasoning_effort", "verbosity", "seed", "stop")
    assert [body[name] for name in kept] == [0.5, 0.9, 7, "low", "low", 3, ["!"]]
    assert "tools" not in body


@pytest.mark.parametrize("thinks", ["", "hm, a greeting"])
def test_a_streams_events_come_in_the_order_of_the_protocol(
    client: OpenAI, script: Scripted, thinks: str
) -> None:
    script.thinks = thinks
    with client.responses.stream(model=X, input="x y z") as stream:
        events = list(stream)
        final = stream.get_final_response()
    expected = [*TEXT_EVENTS[:2], *(REASONING_EVENTS if thinks else []), *TEXT_EVENTS[2:]]
    assert kinds(events) == expected
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == ["X", " Y", " Z"]
    assert final.output_text == "X Y Z"
    assert [item.type for item in final.output] == ["reasoning"] * bool(thinks) + ["message"]
    ids = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert ids == [item.id for item in final.output]
    if thinks:
        assert final.output[0].summary[0].text == thinks  # type: ignore[union-attr]
    whole = client.responses.create(model=X, input="x y z")
    assert [item.type for item in whole.output] == [item.type for item in final.output]
    kept = client.responses.retrieve(final.id)
    assert kept.output == [item.model_copy() for item in final.output] or (
        [item.id for item in kept.output] == [item.id for item in final.output]
    )


def test_a_tree_streams_its_progress_as_reasoning(client: OpenAI) -> None:
    events = list(client.responses.create(model="amplified", input="one and two", stream=True))
    assert kinds(events) == [*TEXT_EVENTS[:2], *REASONING_EVENTS, *TEXT_EVENTS[2:]]
    final = events[-1].response  # type: ignore[union-attr]
    assert final.output_text == "ONE+TWO"
    assert "→ one" in final.output[0].summary[0].text
    kept = client.responses.retrieve(final.id)
    assert kept.output_text == "ONE+TWO"
    assert kept.output[0].summary[0].text == final.output[0].summary[0].text  # type: ignore[union-attr]


def test_function_tools_are_called_and_their_results_go_on(
    client: OpenAI, script: Scripted
) -> None:
    called = client.responses.create(model=X, input="Paris?", tools=[WEATHER], tool_choice="auto")
    (item,) = called.output
    assert item.type == "function_call"
    assert (item.name, json.loads(item.arguments)) == ("weather", {"city": "Paris"})
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    assert script.asked[-1]["tools"] == [{"type": "function", "function": function}]
    done: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": "rain"}]
    reply = client.responses.create(model=X, input=done, previous_response_id=called.id)
    assert reply.output_text == "RAIN"
    roles = [message["role"] for message in script.asked[-1]["messages"]]
    assert roles[-3:] == ["user", "assistant", "tool"]
    events = list(client.responses.create(model=X, input="Rome?", tools=[WEATHER], stream=True))
    assert kinds(events) == [*TEXT_EVENTS[:2], *CALL_EVENTS, "response.completed"]
    chosen: Any = {"type": "function", "name": "weather"}
    forced = client.responses.create(model=X, input="Oslo?", tools=[WEATHER], tool_choice=chosen)
    assert script.asked[-1]["tool_choice"]["function"] == {"name": "weather"}
    assert forced.tool_choice.name == "weather"  # type: ignore[union-attr]


def test_a_schema_is_parsed(client: OpenAI, script: Scripted) -> None:
    script.says = lambda question: '{"city": "Lima"}'
    parsed = client.responses.parse(model=X, input="Peru?", text_format=City)
    assert parsed.output_parsed == City(city="Lima")
    sent = script.asked[-1]["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    assert sent["json_schema"]["name"] == "City"
    with client.responses.stream(model=X, input="Peru!", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(city="Lima")


def test_a_cut_answer_is_incomplete(client: OpenAI) -> None:
    for stream in (False, True):
        got: Any = client.responses.create(
            model=X, input="x y z", max_output_tokens=2, stream=stream
        )
        reply = list(got)[-1].response if stream else got
        assert (reply.status, reply.output_text) == ("incomplete", "X Y")
        assert reply.incomplete_details.reason == "max_output_tokens"
        assert reply.output[0].status == "incomplete"


def test_log_probabilities_are_included_if_asked(client: OpenAI) -> None:
    reply = client.responses.create(
        model=X, input="a b", include=["message.output_text.logprobs"], top_logprobs=1
    )
    (part,) = reply.output[0].content  # type: ignore[union-attr]
    assert [(one.token, one.logprob) for one in part.logprobs] == [("A", -0.5), ("B", -0.5)]


def test_a_conversation_goes_on_after_a_restart(script: Scripted, run: Path) -> None:
    def client(url: str) -> OpenAI:
        return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    with serving(run, script) as url, client(url) as openai_client:
        first = openai_client.responses.create(model=X, input="one", instructions="Be brief.")
        second = openai_client.responses.create(model=X, input="two", previous_response_id=first.id)
    with serving(run, script) as url, client(url) as openai_client:
        third = openai_client.responses.create(
            model=X, input="three", previous_response_id=second.id
        )
        assert openai_client.responses.retrieve(first.id).output_text == "ONE"
        tree = openai_client.responses.create(
            model="amplified", input="four and five", previous_response_id=third.id
        )
        assert tree.output_text == "FOUR+FIVE"
    sent = [message["content"] for message in script.asked[2]["messages"] if message["content"]]
    assert sent == ["one", "ONE", "two", "TWO", "three"]  # Without the first's instructions.


def test_what_is_not_stored_or_deleted_is_gone(client: OpenAI, run: Path) -> None:
    loose = client.responses.create(model=X, input="one", store=False)
    kept = client.responses.create(model=X, input="two")
    client.responses.delete(kept.id)
    for id in (loose.id, kept.id, "resp_nothing", "x"):
        with pytest.raises(openai.NotFoundError, match="no response is kept"):
            client.responses.retrieve(id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(id)
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model=X, input="three", previous_response_id=id)
        assert refused.value.code == "previous_response_not_found"
    store = TraceStore(run / "traces.db")
    rows = list(store.select("SELECT detail FROM judgements WHERE kind='response'"))
    store.close()
    assert len(rows) == 2  # The record is append-only.


def test_an_item_can_be_referred_to(client: OpenAI, script: Scripted) -> None:
    first = client.responses.create(model=X, input="one")
    talk: Any = [
        {"role": "user", "content": "one"},
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "two"},
    ]
    assert client.responses.create(model=X, input=talk).output_text == "TWO"
    sent = [message["content"] for message in script.asked[-1]["messages"] if message["content"]]
    assert sent == ["one", "ONE", "two"]
    talk[1]["id"] = "msg_0_0"
    with pytest.raises(openai.BadRequestError, match="not kept"):
        client.responses.create(model=X, input=talk)


def test_the_conversation_that_is_kept_is_bounded(script: Scripted, tmp_path: Path) -> None:
    with (
        serving(tmp_path, script, body_bytes=3_000) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        last = None
        with pytest.raises(openai.BadRequestError, match="begin a new one") as refused:
            for number in range(9):
                said = f"{number} {'word ' * 100}"
                last = client.responses.create(
                    model=X, input=said, previous_response_id=last, max_output_tokens=50
                ).id
        assert refused.value.param == "previous_response_id"
        assert 1 < len(script.asked) < 6


def test_secrets_are_kept_nowhere(client: OpenAI, run: Path) -> None:
    secret = "sk-proj-" + "a1B2" * 12
    client.responses.create(model=X, input=f"my key is {secret}", instructions=f"use {secret}")
    store = TraceStore(run / "traces.db")
    text = str([tuple(row) for row in store.select("SELECT detail FROM judgements")])
    store.close()
    assert "my key is" in text and secret not in text


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"input": None}, "input", "missing"),
        ({"input": []}, "input", "at least one"),
        ({"input": 5}, "input", "list"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "user"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "function_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0]", "only text can be read"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id",
         "missing"),
        ({"input": [{"type": "function_call_output", "call_id": "", "output": "x"}]},
         "input[0].call_id", "empty"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"background": True}, "background", "False"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"conversation": "c"}, "conversation", "leave it out"),
        ({"prompt": {"id": "p"}}, "prompt", "leave it out"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than"),
        ({"n": 2}, "n", "leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_with_its_field(
    url: str, script: Scripted, asked: dict[str, Any], param: str, words: str
) -> None:
    got = httpx2.post(f"{url}/v1/responses", json={"model": X, "input": "x", **asked})
    assert got.status_code == 400, got.text
    error = got.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(param) and words in error["message"]
    assert script.asked == []


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [WEATHER]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"top_p": 0.5}, "top_p"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input"),
    ],
)
def test_a_tree_says_what_it_cannot_by_the_names_of_this_api(
    url: str, asked: dict[str, Any], param: str
) -> None:
    got = httpx2.post(f"{url}/v1/responses", json={"model": "amplified", "input": "x", **asked})
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param} ") and "ask `base`" in error["message"]


def test_an_endpoint_that_fails_is_a_502_and_in_a_stream_a_failed_response(
    client: OpenAI, script: Scripted
) -> None:
    script.refusal = lambda body: (500, "on fire")
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="on fire"):
            client.responses.create(model=X, input="burn", stream=stream)
    script.refusal = lambda body: None
    script.breaks = True
    events = list(client.responses.create(model=X, input="break off", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "failed" in events[-1].response.error.message


def test_a_client_that_leaves_ends_the_work_and_nothing_is_kept(
    url: str, script: Scripted, run: Path
) -> None:
    script.pause = lambda body: 0.02
    body = {"model": X, "input": "word " * 1_000, "stream": True, "max_output_tokens": 2_000}
    with httpx2.stream("POST", f"{url}/v1/responses", json=body) as got:
        next(got.iter_bytes())
        trajectory = got.headers["x-reflux-trajectory"]
    assert soon(lambda: script.left)
    assert httpx2.get(f"{url}/v1/responses/resp_{trajectory}").status_code == 404


def test_reasoning_of_earlier_turns_reaches_no_model(client: OpenAI, script: Scripted) -> None:
    script.thinks = "a secret thought"
    first = client.responses.create(model=X, input="one")
    assert [item.type for item in first.output] == ["reasoning", "message"]
    talk: Any = [{"role": "user", "content": "one"}, *first.output,
                 {"role": "user", "content": "two"}]  # fmt: skip
    client.responses.create(model=X, input=talk)
    client.responses.create(model=X, input="three", previous_response_id=first.id)
    assert "a secret thought" not in json.dumps([body["messages"] for body in script.asked])
