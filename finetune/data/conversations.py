"""Conversations of the chat protocol as rows: which of their replies are learned, and in what form.

    {"messages": [...]}                      every reply of the assistant, without `"weight": 0`
    {"prompt": [...], "completion": [...]}   the replies of the completion
    "tools": [...], or the same as JSON      what the model could call
    "weight": 0.5, "teacher": [...]          of soft targets; see `reflux.finetune.targets`

A text stands for the one message that it is. Content in parts is joined where all are text.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import UsageError
from reflux.agents.prompts import answer_prompt
from reflux.graphs.traces.protocols.json_values import loaded
from reflux.graphs.traces.protocols.messages import ROLES, requests_of
from reflux.graphs.traces.protocols.replies import chat_tools

KEPT = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight")
"""What a row keeps of a message."""


def text_of(content: Any) -> str:
    """The text of a message's content.

    Raises:
        ValueError: it holds an image, a sound or a file, which a text base cannot read.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise TypeError("role and content must be text")
    texts: list[str] = []
    for part in cast("Sequence[str | Mapping[str, Any]]", content):
        text = part if isinstance(part, str) else part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            kind = "part" if isinstance(part, str) else part.get("type", "part without text")
            raise ValueError(f"a message holds an {kind}, and bases of text read none")
        texts.append(text)
    return "".join(texts)


def calls_of(calls: Any) -> list[dict[str, Any]]:
    """The tool calls of a message in the chat protocol's form, arguments as JSON text.

    Raises:
        ValueError: one has no name, or its arguments are no JSON object.
    """
    made = requests_of(calls)
    for call in made:
        function = call["function"]
        text = function["arguments"] = function["arguments"] or "{}"
        if not isinstance(loaded(text.lstrip()), dict):
            raise ValueError(f"the arguments of {function['name']} are no JSON object: {text[:80]}")
        if not call["id"]:
            del call["id"]
    return made


def with_arguments(turn: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A message with the arguments of its tool calls changed."""
    calls = [
        {**call, "function": {**(f := call["function"]), "arguments": change(f["arguments"])}}
        for call in turn.get("tool_calls") or ()
    ]
    return {**turn, "tool_calls": calls} if calls else dict(turn)


def turn_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as rows hold it.

    Raises:
        ValueError, TypeError, KeyError: it is none of the chat protocol, or not text alone.
    """
    if not isinstance(message["role"], str):
        raise TypeError("role and content must be text")
    if message["role"] not in ROLES:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        raise ValueError(f"the role {message['role']!r} is none of {known}")
    role = ROLES[message["role"]]
    turn: dict[str, Any] = {"role": role, "content": text_of(message.get("content"))}
    if role == "assistant":
        calls = message.get("tool_calls")
        if not calls and message.get("function_call"):
            calls = [{"function": message["function_call"]}]
        if calls:
            turn["tool_calls"] = calls_of(calls)
        if thoughts := message.get("reasoning_content") or message.get("reasoning"):
            turn["reasoning_content"] = text_of(thoughts)
        if (weight := message.get("weight", 1)) not in (0, 1):
            raise ValueError(f"the weight of a message is {weight}: 0 leaves it out, 1 counts it")
        if weight == 0 and weight is not None:
            turn["weight"] = 0
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            turn[name] = message[name]
    if "content" not in message and not turn.keys() & {"tool_calls"}:
        raise KeyError("content")
    return turn


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Whether the loss counts a message of a completion."""
    return turn["role"] == "assistant" and turn.get("weight", 1) != 0


def tools_of(tools: Any) -> list[dict[str, Any]]:
    """The tools of a row or request in the chat protocol's form.

    Raises:
        ValueError, TypeError: one has no name, or they are no list.
    """
    found = json.loads(tools) if isinstance(tools, str) else tools
    if found and not isinstance(found, list | tuple):
        raise TypeError("tools are a list")
    made: list[dict[str, Any]] = []
    for tool in chat_tools(list(found or ()), strict=False):
        if not isinstance(name := (function := tool.get("function", {})).get("name"), str):
            raise ValueError(f"a tool is no function with a name: {json.dumps(tool)[:80]}")
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        described = {"name": name, "description": function.get("description") or ""}
        made.append({"type": "function", "function": {**described, "parameters": schema}})
    return made


def split(turns: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(prompt, completion) of a conversation: the completion goes from the first reply that is
    learned to the last.

    Raises:
        ValueError: there is none.
    """
    learned = [index for index, turn in enumerate(turns) if is_learned(turn)]
    if not learned:
        raise ValueError("no message of the assistant is to be learned")
    return list(turns[: learned[0]]), list(turns[learned[0] : learned[-1] + 1])


def row_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a file as a row in TRL's conversational prompt-completion form.

    Raises:
        ValueError, TypeError, KeyError: it is no row.
    """
    if "messages" in body:
        prompt, completion = split([turn_of(message) for message in body["messages"]])
    else:
        given, reply = body["prompt"], body["completion"]
        if isinstance(given, str):
            given = [{"role": role, "content": text} for role, text in answer_prompt(given, "")]
        if isinstance(reply, str):
            reply = [{"role": "assistant", "content": reply}]
        prompt, completion = map(turn_of, given), [turn_of(message) for message in reply]
        prompt = [{key: turn[key] for key in turn if key != "weight"} for turn in prompt]
        if not any(map(is_learned, completion)):
            raise ValueError("the completion is empty")
    row: dict[str, Any] = {"prompt": prompt, "completion": completion}
    if tools := tools_of(body.get("tools")):
        row["tools"] = tools
    if (weight := float(body.get("weight") or 1)) != 1:
        if not 0 < weight <= 1:
            raise ValueError(f"the weight of a row is {weight:g}: it is above 0 and at most 1")
        row["weight"] = weight
    if body.get("teacher"):
        row["teacher"] = [turn_of(message) for message in body["teacher"]]
    return row


def is_plain(row: Mapping[str, Any]) -> bool:
    """Whether a row is one reply to messages of text, as TRL itself trains it."""
    turns = [*row["prompt"], *row["completion"]]
    return (
        not row.get("tools")
        and not row.get("masked")
        and len(row["completion"]) == 1
        and all(turn.keys() == {"role", "content"} for turn in turns)
    )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file of plain texts or messages, one at a time.

    Raises:
        UsageError: no file, no rows, or an invalid line, with its number.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    found = False
    # Other line ends than these are allowed inside a string of JSON.
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = row_of(json.loads(line))
                except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                    raise UsageError(
                        f"{path}, line {number}: not a row ({error}); each line is a JSON object "
                        'with "prompt" and "completion", or with "messages"'
                    ) from error
                found = True
                yield row
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    if not found:
        raise UsageError(f"{path} holds no rows")
