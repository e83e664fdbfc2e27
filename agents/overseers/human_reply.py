"""A human's typed reply becomes a step of the overseer, and a proposed step becomes one line."""

from collections.abc import Mapping
from typing import Any

from reflux.agents.errors import UsageError

REPLY_FORMS = "answer: TEXT | approve | pass | sub-questions, one a line"
"""What a reply may hold, for a usage line."""
REPLY_HELP = (
    "Reply with `answer: TEXT`, `approve` to take the proposed step, `pass` to leave the question "
    "to the agent, or one sub-question a line and an empty line at the end. Ctrl-D leaves the "
    "question waiting."
)


def parse_reply(reply: str) -> dict[str, Any]:
    """The step of a reply in one of `REPLY_FORMS`, as JSON types.

    Raises:
        UsageError: the reply, or its answer, is empty.
    """
    text = reply.strip()
    if not text:
        raise UsageError(f"the reply is empty. {REPLY_HELP}")
    if text.lower() == "approve":
        return {"kind": "approve"}
    if text.lower() == "pass":
        return {"kind": "ask", "subquestions": []}
    kind, colon, answer = text.partition(":")
    if colon and kind.strip().lower() == "answer":
        if not answer.strip():
            raise UsageError(f"the answer is empty. {REPLY_HELP}")
        return {"kind": "answer", "text": answer.strip()}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {"kind": "ask", "subquestions": [{"text": line, "needs": []} for line in lines]}


def step_text(step: Mapping[str, Any]) -> str:
    """A step, in the form of `step_to_json`, as one line."""
    if step["kind"] == "answer":
        return f"answer: {step['text']}"
    if step["kind"] == "chain":
        return f"chain: {step['first']}"
    texts = [subquestion["text"] for subquestion in step.get("subquestions", ())]
    return f"ask: {' | '.join(texts)}" if texts else "pass"
