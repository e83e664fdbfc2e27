"""Clients in Python of this environment, each as its users call it: a probe for each feature."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, SecretStr

from tests.support.serving import X

ASK_BASE = "ask `base`"
Probe = Callable[[], Any]
"""Returns True where the feature works, else what came instead."""


class City(BaseModel):
    """A city."""

    city: str


LIMA = City(city="Lima")
PARIS = City(city="Paris")
"""The endpoint's arguments of a call."""


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def user(text: str) -> Any:
    """One message of a user."""
    return [{"role": "user", "content": text}]


def same(found: Any, wanted: Any) -> Any:
    """True, or what came instead."""
    return found == wanted or repr(found)


def refuses(ask: Callable[[], Any], words: str) -> Any:
    """`refused` where the server refuses by these words."""
    try:
        return ask()
    except openai.APIStatusError as error:
        return "refused" if words in error.message and error.status_code < 500 else error.message


def sdk_chat(url: str) -> Mapping[str, Probe]:
    """The OpenAI SDK's chat completions and its helpers."""
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    chat = client.chat.completions
    tools: Any = [pydantic_function_tool(City)]

    def create(text: str, model: str = X, **options: Any) -> Any:
        return chat.create(model=model, messages=user(text), **options)

    def streamed() -> Any:
        with chat.stream(model=X, messages=user("x y z")) as stream:
            found = [event.delta for event in stream if event.type == "content.delta"]
            text = stream.get_final_completion().choices[0].message.content
        return same(([each for each in found if each], text), (["X", " Y", " Z"], "X Y Z"))

    def called() -> Any:
        asked: Any = chat.parse(model=X, messages=user("Paris?"), tools=tools).choices[0].message
        (call,) = asked.tool_calls or []
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        done = chat.create(model=X, messages=[*user("Paris?"), asked, result], tools=tools)
        found = call.function.parsed_arguments, done.choices[0].message.content
        return same(found, (PARIS, "RAIN"))

    def tools_streamed() -> Any:
        with chat.stream(model=X, messages=user("Rome?"), tools=tools) as stream:
            done = [e.name for e in stream if e.type == "tool_calls.function.arguments.done"]
        return same(done, ["City"])

    def schema() -> Any:
        got = chat.parse(model="json", messages=user("Peru?"), response_format=City)
        return same(got.choices[0].message.parsed, LIMA)

    def logprobs() -> Any:
        content = create("a b", logprobs=True, top_logprobs=1).choices[0].logprobs.content
        return same([token.token for token in content], ["A", "B"])

    def usage() -> Any:
        *_, last = create("u v", stream=True, stream_options={"include_usage": True})
        found = create("u w").usage.total_tokens, last.usage.total_tokens
        return same(found, (12, 12))

    def finish() -> Any:
        (choice,) = create("one two", max_tokens=1).choices
        return same((choice.message.content, choice.finish_reason), ("ONE", "length"))

    form = {"type": "json_object"}
    return {
        "models": lambda: X in [model.id for model in client.models.list()],
        "whole": lambda: same(create("one two").choices[0].message.content, "ONE TWO"),
        "streamed": streamed,
        "tools": called,
        "tools streamed": tools_streamed,
        "schema": schema,
        "reasoning": lambda: same(create("why").choices[0].message.reasoning_content, "hm"),
        "finish reason": finish,
        "usage": usage,
        "log-probabilities": logprobs,
        "tree": lambda: same(
            create("one and two", "amplified").choices[0].message.content, "ONE+TWO"
        ),
        "tree refuses tools": lambda: refuses(
            lambda: create("x", "amplified", tools=tools), ASK_BASE
        ),
        "tree refuses a schema": lambda: refuses(
            lambda: create("x", "amplified", response_format=form), ASK_BASE
        ),
        "unknown model": lambda: refuses(lambda: create("x", "nobody"), "nobody"),
    }


def sdk_responses(url: str) -> Mapping[str, Probe]:
    """The OpenAI SDK's responses."""
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    responses = client.responses
    function: Any = {"type": "function", "name": "weather", "strict": False,
                     "parameters": {"type": "object", "properties": {}}}  # fmt: skip

    def create(asked: Any, model: str = X, **options: Any) -> Any:
        return responses.create(model=model, input=asked, **options)

    def streamed() -> Any:
        events = list(create("p q r", stream=True))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        return same((deltas, events[-1].type), (["P", " Q", " R"], "response.completed"))

    def turn() -> Any:
        first = create("one")
        second = create("two", previous_response_id=first.id)
        found = second.output_text, responses.retrieve(first.id).output_text
        return same(found, ("TWO", "ONE"))

    def called() -> Any:
        asked = create("Paris?", tools=[function])
        call = asked.output[-1]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        done = create([result], previous_response_id=asked.id)
        return same((call.name, done.output_text), ("weather", "RAIN"))

    def tools_streamed() -> Any:
        events = list(create("Rome?", tools=[function], stream=True))
        done = [e.name for e in events if e.type == "response.function_call_arguments.done"]
        return same(done, ["weather"])

    def reasoning() -> Any:
        summaries = [item.summary for item in create("why").output if item.type == "reasoning"]
        return same([part.text for summary in summaries for part in summary], ["hm"])

    def finish() -> Any:
        got = create("one two", max_output_tokens=1)
        return same(
            (got.status, got.incomplete_details.reason), ("incomplete", "max_output_tokens")
        )

    return {
        "whole": lambda: same(create("one two").output_text, "ONE TWO"),
        "streamed": streamed,
        "next turn": turn,
        "tools": called,
        "tools streamed": tools_streamed,
        "schema": lambda: same(
            responses.parse(model="json", input="Peru?", text_format=City).output_parsed, LIMA
        ),
        "reasoning": reasoning,
        "finish reason": finish,
        "usage": lambda: same(create("u w").usage.total_tokens, 12),
        "tree": lambda: same(create("one and two", "amplified").output_text, "ONE+TWO"),
        "tree refuses tools": lambda: refuses(
            lambda: create("x", "amplified", tools=[function]), ASK_BASE
        ),
        "tree refuses a schema": lambda: refuses(
            lambda: create("x", "amplified", text={"format": {"type": "json_object"}}), ASK_BASE
        ),
        "unknown model": lambda: refuses(lambda: create("x", "nobody"), "nobody"),
    }


def langchain(responses: bool) -> Callable[[str], Mapping[str, Probe]]:
    """`ChatOpenAI` over chat completions, or over responses."""

    def probes(url: str) -> Mapping[str, Probe]:
        def model(name: str = X, **options: Any) -> ChatOpenAI:
            return ChatOpenAI(
                model=name, base_url=url, api_key=SecretStr("none"), max_retries=0,
                use_responses_api=responses, **options,
            )  # fmt: skip

        def streamed() -> Any:
            words = "l m n" if responses else "i j k"
            found = [chunk.text for chunk in model().stream(words) if chunk.text]
            return same(found, [words[0].upper(), *(f" {word.upper()}" for word in words[2::2])])

        def called() -> Any:
            bound = model().bind_tools([weather], strict=True, tool_choice="any")
            asked = bound.invoke("Paris?")
            done = ToolMessage("rain", tool_call_id=asked.tool_calls[0]["id"] or "")
            found = asked.tool_calls[0]["name"], bound.invoke([HumanMessage("?"), asked, done]).text
            return same(found, ("weather", "RAIN"))

        def tools_streamed() -> Any:
            first, *rest = model().bind_tools([weather]).stream("Rome?")
            whole = sum(rest, first)
            return same([call["name"] for call in whole.tool_calls], ["weather"])

        def structured(method: Any) -> Probe:
            def probe() -> Any:
                name = X if method == "function_calling" else "json"
                wanted = PARIS if method == "function_calling" else LIMA
                found = (
                    model(name).with_structured_output(City, method=method).invoke("JSON: Peru?")
                )
                return same(found, wanted)

            return probe

        def logprobs() -> Any:
            got = model(logprobs=True, top_logprobs=1).invoke("a b").response_metadata["logprobs"]
            return same([token["token"] for token in got["content"]], ["A", "B"])

        found: dict[str, Probe] = {
            "whole": lambda: same(model().invoke("one two").text, "ONE TWO"),
            "streamed": streamed,
            "tools": called,
            "tools streamed": tools_streamed,
            "schema": structured("json_schema"),
            "by function calling": structured("function_calling"),
            "by JSON mode": structured("json_mode"),
            "usage": lambda: same(
                (model().invoke("u w").usage_metadata or {}).get("total_tokens"), 12
            ),
            "tree": lambda: same(model("amplified").invoke("one and two").text, "ONE+TWO"),
            "tree refuses tools": lambda: refuses(
                lambda: model("amplified").bind_tools([weather]).invoke("x"), ASK_BASE
            ),
            "tree refuses a schema": lambda: refuses(
                lambda: model("amplified").with_structured_output(City).invoke("x"), ASK_BASE
            ),
            "unknown model": lambda: refuses(lambda: model("nobody").invoke("x"), "nobody"),
        }
        if responses:  # Its chat completions read no reasoning, and its responses no logprobs.
            kinds = ["reasoning", "text"]
            found["reasoning"] = lambda: same(
                [block["type"] for block in model().invoke("why").content_blocks], kinds
            )
        else:
            found["log-probabilities"] = logprobs
        return found

    return probes


def open_webui(url: str) -> Mapping[str, Probe]:
    """Bodies as Open WebUI composes them of a model's parameters, with what it leaves empty."""
    search = {"type": "function", "function": {
        "name": "search", "description": "",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}}  # fmt: skip

    def post(text: str, **more: Any) -> httpx2.Response:
        messages = [{"role": "system", "content": "Be kind."}, *user(text)]
        body = {"model": X, "messages": messages, **more}
        return httpx2.post(f"{url}/chat/completions", json=body)

    def deltas(got: httpx2.Response) -> list[dict[str, Any]]:
        lines = [line.removeprefix("data: ") for line in got.text.splitlines() if line]
        if lines[-1] != "[DONE]":
            raise ValueError(f"a stream without its end: {lines[-1]}")
        chunks = [json.loads(line) for line in lines[:-1] if not line.startswith(":")]
        return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]

    def streamed() -> Any:
        empty = {"chat_id": "", "features": {}, "files": [], "session_id": None, "metadata": None,
                 "custom_params": {}, "user": "ann"}  # fmt: skip
        got = post(
            "x y z", stream=True, stream_options={"include_usage": True}, temperature=0.8,
            top_p=0.9, max_tokens=128, frequency_penalty=0.1, presence_penalty=0.1, seed=7,
            stop=["###"], min_p=0.05, reasoning_effort="low", logit_bias={"5": -100}, **empty,
        )  # fmt: skip
        return same("".join(each.get("content") or "" for each in deltas(got)), "X Y Z")

    def whole() -> Any:
        got = post("one two", stream=False, max_completion_tokens=1000).json()
        return same(got["choices"][0]["message"]["content"], "ONE TWO")

    def tools_streamed() -> Any:
        found = [each["tool_calls"] for each in deltas(post("?", stream=True, tools=[search]))
                 if each.get("tool_calls")]  # fmt: skip
        return same(found[0][0]["function"]["name"], "search")

    def reasoning() -> Any:
        found = deltas(post("why", stream=True))
        return same("".join(each.get("reasoning_content") or "" for each in found), "hm")

    def refused() -> Any:
        got = post("x", tools=[search], model="amplified")
        message = got.json()["error"]["message"]
        return "refused" if got.status_code == 400 and ASK_BASE in message else message

    listed = httpx2.get(f"{url}/models").json
    return {
        "models": lambda: X in [model["id"] for model in listed()["data"]],
        "whole": whole,
        "streamed": streamed,
        "tools streamed": tools_streamed,
        "reasoning": reasoning,
        "tree refuses tools": refused,
    }


HERE: dict[str, Callable[[str], Mapping[str, Probe]]] = {
    "OpenAI Python SDK, chat": sdk_chat,
    "OpenAI Python SDK, responses": sdk_responses,
    "langchain-openai, chat": langchain(responses=False),
    "langchain-openai, responses": langchain(responses=True),
    "Open WebUI's bodies": open_webui,
}
