"""Files of conversations: one object holds one, and each of its replies is a model call.

    messages                     OpenAI's fine-tuning rows and TRL's; with `tools` or `functions`
                                 https://platform.openai.com/docs/guides/supervised-fine-tuning
    input, preferred_output      OpenAI's preference rows
    prompt, completion           TRL's rows; `prompt`, `chosen`, `rejected` and `label`, too
                                 https://huggingface.co/docs/trl/dataset_formats
    object: chat.completion      OpenAI's stored completions with their `messages`; `response`
                                 objects with their `input`; and pairs of `request`, `response`
    conversations                ShareGPT, with `system` and `tools`
    instruction, output          Alpaca, with `input`, `system` and `history`; LLaMA-Factory's data
                                 README describes both

A row is known by its content, so that the same row is imported once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from reflux.agents.clients.reasoning import text_of
from reflux.graphs.traces.protocols.json_values import Body
from reflux.graphs.traces.protocols.messages import chat_messages, request_messages
from reflux.graphs.traces.protocols.replies import chat_tools, images_in, reply_of
from reflux.graphs.traces.trajectories import Feedback, RecordedCall, RecordedOutcome, Trajectory

NO_SCHEMA = "calls tools whose schemas the file does not hold"
NO_REPLY = "no message of the assistant"
HALF = "ends in a tool call or before a reply: unfinished, which --unfinished learns"
UNWEIGHED = "replies of weight 0 are context alone"
IMAGES = "images and other parts that are no text are kept as references"
ORPHANS = "tool results without the call that they answer"
SETTINGS = ("temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "stop")
SETTINGS += ("response_format", "tool_choice", "parallel_tool_calls", "reasoning_effort")


@dataclass(frozen=True)
class Found:
    """One trajectory of a file, and what a reader should know of how it was read."""

    trajectory: Trajectory
    remarks: tuple[str, ...] = ()


def form_of(body: Body) -> str:
    """The form of an object that holds a conversation; empty for none."""
    if (
        body.get("object") in ("chat.completion", "response")
        or {"request", "response"} <= body.keys()
    ):
        return "openai"
    if {"input", "preferred_output"} <= body.keys():
        return "openai"
    if isinstance(body.get("conversations"), list):
        return "sharegpt"
    if "instruction" in body and body.keys() & {"output", "chosen"}:
        return "alpaca"
    if {"prompt", "completion"} <= body.keys() or {"chosen", "rejected"} <= body.keys():
        return "trl"
    return "messages" if isinstance(body.get("messages"), list) else ""


def read(body: Body) -> Found:
    """The trajectory of an object that has one of these forms.

    Raises:
        ValueError: it cannot be read, or holds no reply; the text says why.
    """
    form = form_of(body)
    read_form = {
        "openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca, "trl": _trl,
        "messages": _rows,
    }[form]  # fmt: skip
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
    found = read_form(body, Trajectory(digest, f"import:{form}"))
    metadata = body.get("metadata")
    about = cast(Body, metadata) if isinstance(metadata, Mapping) else {}
    return replace(found, trajectory=replace(found.trajectory, metadata=about))


def conversation(
    trajectory: Trajectory,
    messages: Sequence[Body],
    tools: Sequence[Body] = (),
    model: str = "",
    sampling: Mapping[str, Any] | None = None,
    first: int = 0,
) -> Found:
    """A trajectory whose calls are the replies of a conversation, from a message on.

    Raises:
        ValueError: there is no reply.
    """
    calls: list[RecordedCall] = []
    remarks: list[str] = []
    asked: dict[str, Body] = {}
    last = -1
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            id = message.get("tool_call_id")
            call = asked.pop(id, None) if isinstance(id, str) else None
            remarks += [] if call else [ORPHANS]
            if call and index >= first:
                function, result = call["function"], reply_of({"content": message["content"]})
                calls.append(
                    RecordedCall(
                        kind="tool", node="tools", model=function["name"],
                        arguments=function["arguments"], reply=result, step=len(calls),
                    )
                )  # fmt: skip
        if message["role"] != "assistant":
            continue
        last = index
        asked |= {each["id"]: each for each in message.get("tool_calls", ())}
        if message.get("weight", 1) == 0:
            remarks.append(UNWEIGHED)
        elif index >= first:
            calls.append(
                RecordedCall(
                    messages=tuple(messages[:index]), reply=reply_of(message), model=model,
                    tools=tuple(tools), sampling=dict(sampling or {}), step=len(calls),
                )
            )  # fmt: skip
    if not any(call.kind == "model" for call in calls):
        raise ValueError(NO_REPLY)
    named = {each["function"]["name"] for each in tools if "parameters" in each["function"]}
    used = {call.name for each in calls for call in each.reply.tool_calls}
    remarks += [NO_SCHEMA] if used - named else []
    remarks += [IMAGES] if images_in(messages) else []
    ended = last == len(messages) - 1 and not messages[last].get("tool_calls")
    remarks += [] if ended else [HALF]
    outcome = RecordedOutcome(text_of(messages[last]["content"])) if ended else None
    done = replace(trajectory, calls=tuple(calls), outcome=outcome)
    return Found(done, tuple(dict.fromkeys(remarks)))


def _rows(body: Body, trajectory: Trajectory) -> Found:
    messages, tools = (
        chat_messages(body["messages"]),
        chat_tools(body.get("tools") or body.get("functions")),
    )
    return conversation(trajectory, messages, tools, str(body.get("model") or ""), _settings(body))


def _settings(body: Mapping[str, Any]) -> Body:
    return {name: body[name] for name in SETTINGS if body.get(name) is not None}


def _openai(body: Body, trajectory: Trajectory) -> Found:
    if "preferred_output" in body:
        asked = cast(Body, body["input"])
        pair = {"prompt": asked["messages"], "tools": asked.get("tools")}
        return _preference(
            pair, body["preferred_output"], body.get("non_preferred_output"), trajectory
        )
    request, response = body, body
    if "request" in body:
        request, response = cast(Body, body["request"]), cast(Body, body["response"])
        request = cast(Body, request.get("body", request))
        response = cast(Body, response.get("body", response))
    if request.get("messages", request.get("input")) is None:
        raise ValueError(
            "a stored completion without its messages: export it with them (the API lists them "
            "under /chat/completions/ID/messages)"
        )
    prompt = request_messages(request)
    choices = list(cast(list[Body], response.get("choices") or []))
    choices.sort(key=lambda choice: choice.get("index") or 0)
    said = [choices[0]["message"]] if choices else response.get("output") or []
    messages = [*prompt, *chat_messages(said, items=not choices)]
    tools = chat_tools(request.get("tools"))
    model = str(request.get("model") or response.get("model") or "")
    found = conversation(trajectory, messages, tools, model, _settings(request), len(prompt))
    done = found.trajectory
    last, usage, votes = done.calls[-1], response.get("usage"), list[RecordedCall]()
    for vote, choice in enumerate(choices or [{"message": messages[-1]}]):
        said = chat_messages([choice["message"]])[0]
        finish = str(choice.get("finish_reason") or "")
        reply = reply_of(said, None if vote else usage, finish, choice.get("logprobs"))
        votes.append(replace(last, reply=reply, vote=vote))
    calls = (*done.calls[:-1], *votes)
    created = float(response.get("created") or response.get("created_at") or 0)
    key = str(response.get("id") or done.key)
    return replace(found, trajectory=replace(done, key=key, calls=calls, created=created))


def _trl(body: Body, trajectory: Trajectory) -> Found:
    if "chosen" in body:
        return _preference(body, body["chosen"], body.get("rejected"), trajectory)
    prompt = chat_messages(body["prompt"])
    replies = _replies(body["completion"])
    tools = chat_tools(body.get("tools"))
    found = conversation(trajectory, [*prompt, *replies], tools, first=len(prompt))
    return found if "label" not in body else _judged(found, bool(body["label"]))


def _judged(found: Found, good: bool) -> Found:
    mark = Feedback(float(good), "label", author="import")
    return replace(found, trajectory=replace(found.trajectory, feedback=(mark,)))


def _replies(value: Any) -> list[Body]:
    """A completion, which as a text is one reply."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return chat_messages(value)


def _preference(body: Body, chosen: Any, rejected: Any, trajectory: Trajectory) -> Found:
    """The chosen reply, with the text of the rejected one as an answer that was refused."""
    good, bad = _replies(chosen), _replies(rejected or [])
    prompt = chat_messages(body["prompt"]) if body.get("prompt") else []
    if not prompt:  # Both hold the whole conversation.
        same = [one == other for one, other in zip(good, bad, strict=False)]
        shared = same.index(False) if False in same else len(same)
        prompt, good, bad = good[:shared], good[shared:], bad[shared:]
    tools = chat_tools(body.get("tools"))
    found = conversation(trajectory, [*prompt, *good], tools, first=len(prompt))
    refused = text_of(bad[-1]["content"]) if bad else ""
    other = (refused,) if refused else ()
    remarks = () if other or not bad else ("rejected replies without text are left out",)
    done = replace(found.trajectory, rejected=other)
    return Found(done, (*found.remarks, *remarks))


def _sharegpt(body: Body, trajectory: Trajectory) -> Found:
    system = body.get("system")
    start = [{"role": "system", "content": system}] if system else []
    messages = [*start, *chat_messages(body["conversations"])]
    tools = body.get("tools")
    if "chosen" in body:
        pair: Body = {"prompt": messages, "tools": tools}
        return _preference(pair, [body["chosen"]], [body["rejected"]], trajectory)
    found = conversation(trajectory, messages, chat_tools(tools))
    return found if "kto_tag" not in body else _judged(found, bool(body["kto_tag"]))


def _alpaca(body: Body, trajectory: Trajectory) -> Found:
    system = body.get("system")
    messages: list[Body] = [{"role": "system", "content": system}] if system else []
    for turn in body.get("history") or ():
        if not isinstance(turn, list) or len(cast(list[Any], turn)) != 2:
            raise ValueError("`history` is no list of pairs")
        asked, answered = cast(list[Any], turn)
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    question = "\n".join(filter(None, (body["instruction"], body.get("input"))))
    messages.append({"role": "user", "content": question})
    if "chosen" in body:
        return _preference({"prompt": messages}, body["chosen"], body["rejected"], trajectory)
    found = conversation(trajectory, [*messages, *_replies(body["output"])])
    return found if "kto_tag" not in body else _judged(found, bool(body["kto_tag"]))
