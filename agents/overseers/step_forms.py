"""The forms in which a model overseer is asked for a step: JSON or numbered lines, step by step or
as a whole plan, with the instructions before or after the examples."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from reflux.agents.types import REFERENCE, SubQuestion

TOOL_CHARS = 200
"""Of a tool's description in a prompt."""
TOOL_LABEL = re.compile(r"[\[`*]*([\w.-]+)[\]`*]*[ \t]*:[`* ]*")

OVERSEE_IN_LINES = """\
You split questions for assistants that know little. Each assistant sees one sub-question only.
Reply in one of these forms:
"""
KINDS_IN_LINES = {
    "ask": (
        "1. ... and 2. ... ask simpler sub-questions, one a line. {1} in a sub-question stands for "
        "the answer to the first one, {2} for the second."
    ),
    "answer": "Answer: ... ends with the answer, once you have all that it takes.",
    "not_decomposable": "Indivisible: why, where simpler questions would not help.",
}
"""The same forms as lines, where sub-questions count from 1, as lines do."""
PLANNED = "The last sub-question asks for the whole answer, with what the others found."
BRIEF = "Split the question into simpler questions, one a line."
"""All that a learned overseer is told: it has seen what a division looks like."""


@dataclass(frozen=True)
class StepStyle:
    """How an overseer is asked for a step."""

    form: Literal["json", "lines"] = "json"
    """The form of the reply: a JSON object, or numbered lines."""
    plan: bool = False
    """All sub-questions in one reply, of which the last asks for the whole answer."""
    instructions: Literal["first", "last"] = "first"
    """Before the examples, as the system message, or after them, beside the question."""
    brief: bool = False
    """One line of instructions and no examples, as a learned overseer is trained and asked."""


AS_JSON = StepStyle()
LEARNED = StepStyle("lines", plan=True, brief=True)
"""How an overseer is trained to reply, and is asked."""
OVERSEER = ":overseer"
"""How the name of a learned overseer ends."""


def is_learned(name: str) -> bool:
    """True of the name of a learned overseer, such as `student-r1:overseer`."""
    return name.endswith(OVERSEER) and "/" not in name and not name.endswith(f".py{OVERSEER}")


def tool_lines(tools: Mapping[str, str]) -> list[str]:
    """How a sub-question goes to each of these tools, described by name."""
    about = ((name, " ".join(text.split())) for name, text in tools.items())
    return [
        f"A sub-question that begins with `{name}:` goes to a tool. {text[:TOOL_CHARS]}"
        for name, text in about
    ]


def brief_instructions(tools: Collection[str]) -> str:
    """What a learned overseer is told; the names of its tools stand in one order."""
    named = ", ".join(f"`{name}:`" for name in sorted(tools))
    return f"{BRIEF} A question to a tool begins with {named}." if named else BRIEF


def addressed(sub: SubQuestion, tools: Collection[str]) -> SubQuestion:
    """A sub-question that begins with the name of a tool, to this tool."""
    label = TOOL_LABEL.match(sub.text)
    name = next((name for name in tools if label and name.lower() == label[1].lower()), "")
    rest = sub.text[label.end() :].strip(" `") if label else ""
    return replace(sub, text=rest, to=f"tool:{name}") if name and rest else sub


def asking(subquestions: Iterable[SubQuestion]) -> dict[str, Any]:
    """The reply that asks these sub-questions, as a model's JSON holds it."""
    return {
        "ask": [
            {"question": sub.text, "needs": list(sub.needs)} | ({"to": sub.to} if sub.to else {})
            for sub in subquestions
        ]
    }


def reply_text(reply: Mapping[str, Any], form: str, tools: Collection[str] = ()) -> str:
    """An overseer's reply as a model is to write it, which has these tools."""
    if "ask" in reply:
        asked: list[dict[str, Any]] = []
        for sub in reply["ask"]:
            name = sub.get("to", "").removeprefix("tool:")
            label = f"{name}: " if name in tools else ""
            asked.append({"question": label + sub["question"], "needs": sub["needs"]})
        reply = {"ask": asked}
    if form == "json":  # Its schema has no place for a reason.
        rest = {name: value for name, value in reply.items() if name != "reason"}
        return json.dumps(rest, ensure_ascii=False)
    if "ask" in reply:
        texts = [" ".join(sub["question"].split()) for sub in reply["ask"]]
        counted = (REFERENCE.sub(lambda m: f"{{{int(m[1]) + 1}}}", text) for text in texts)
        return "\n".join(f"{number}. {text}" for number, text in enumerate(counted, 1))
    if "answer" in reply:
        return f"{reply.get('reason', '')}\nAnswer: {reply['answer']}".lstrip()
    return f"Indivisible: {reply['not_decomposable']}"
