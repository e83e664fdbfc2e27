"""What an endpoint refuses by name, and what is sent to it instead.

Servers differ in the fields that they take and in the words of a refusal. A field that an endpoint
refuses by name is left out or renamed once, and from then on.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from reflux.agents.clients.refusals import OUT_OF_RANGE, TOO_LONG

ADAPTABLE = frozenset((400, 403, 404, 405, 415, 422, 500, 501))
"""HTTP statuses with which servers refuse a field: llama.cpp's templates raise a 500."""
REFUSES = re.compile(
    r"support|permitted|allowed|enabled?\b|implement|available|recogni[sz]ed|accepted|unknown"
    r"|unexpected|extra|invalid|forbidden|deprecated|only the default|\bmust\b|cannot|can't"
    r"|disabled|requires?|no endpoints|no longer|expected|raise_exception|jinja|not .{0,12}valid",
    re.IGNORECASE,
)
SYNONYMS = {
    "tools": r"tools|tool (?:use|choice|calls?|calling)|function[ _]call(?:s|ing)?",
    "response_format": r"response[_ ]?format|json[_ ]schema|json mode|structured outputs?|grammar"
    r"|guided[_ ]\w+",
    "logprobs": r"log[_ ]?prob(?:s|abilit\w+)",
    "top_logprobs": r"top[_ ]log[_ ]?probs",
    "stop": r"[\"'`]stop[\"'`]|stop[_ ](?:sequences?|words?|tokens?|strings?)"
    r"|\bstop (?:parameter|is)|parameter:? stop\b",
    "n": r"[\"'`]n[\"'`]|\bn (?:must|should|>|is)|parameter:? n\b",
    "stream": r"[\"'`]stream[\"'`]|streaming|stream (?:is|mode|parameter)|parameter:? stream\b",
    "thinking": r"thinking",
    "reasoning_effort": r"reasoning[_ ]effort|\bthink value",
}
"""How servers name a field in prose, where that differs from its name."""
SYSTEM = re.compile(
    r"(?:system|developer)[ _-]?(?:role|message|prompt|instruction)|roles?\W.{0,60}\bsystem\b"
    r"|\bsystem\b.{0,30}\brole|only user(?:,| and) (?:assistant|model)",
    re.IGNORECASE,
)
ALTERNATION = re.compile(
    r"alternat|consecutive|same role|(?:multiple|two) (?:user|assistant) messages|in a row", re.I
)
STREAMS_ONLY = re.compile(
    r"only supports? (?:the )?stream|enable the stream|set stream(?: ?=|:| to) ?true"
    r"|stream(?:ing)? (?:is|must be) (?:required|set to true|true|enabled)",
    re.IGNORECASE,
)
"""Words of a model that answers by streams alone."""
RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
EFFORTS = ("none", "minimal", "low")
"""Values of `reasoning_effort` from the smallest on; models differ in which they take."""
PARTS = {"top_logprobs": ("logprobs",), "tools": ("tool_choice", "parallel_tool_calls")}
KEPT = ("model", "messages")


Thinking = Literal["auto", "on", "off"]
THINKING: Mapping[str, Mapping[str, Any]] = {
    "auto": {},
    "on": {
        "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
        "reasoning_effort": "medium",
    },
    "off": {
        "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
        "reasoning_effort": "none",
    },
}
"""What turns a model's reasoning on or off. vLLM, SGLang and llama.cpp read the arguments of the
chat template (`enable_thinking` of Qwen, `thinking` of DeepSeek and Granite), Ollama, OpenAI, Groq
and Gemini the effort. What a server refuses of it is left out."""


@dataclass
class Adaptation:
    """What one endpoint refuses for one model, and what is sent instead."""

    replaced: dict[str, str] = field(default_factory=dict[str, str])
    """By the refused field: the name that it is sent under instead, or empty if it is left out."""
    effort: str = ""
    """The smallest reasoning effort that the endpoint takes, if another was refused."""
    merges_system: bool = False
    """The system message goes into the first user turn."""
    merges_turns: bool = False
    """Neighboring turns of one role become one."""
    streams_only: bool = False
    """Replies come as streams alone."""
    opens_in_template: bool = False
    """The model's reasoning comes without its opening tag."""

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body to send."""
        sent = dict(body)
        for name, replacement in self.replaced.items():
            if name in sent:
                value = sent.pop(name)
                if replacement and replacement not in sent:
                    sent[replacement] = value
        if self.effort and sent.get("reasoning_effort") in EFFORTS:
            sent["reasoning_effort"] = self.effort
        if self.merges_system:
            sent["messages"] = merged_system(sent["messages"])
        if self.merges_turns:
            sent["messages"] = merged_turns(sent["messages"])
        return sent

    def learn(
        self, status: int | None, words: str, named: Iterable[str], sent: Mapping[str, Any]
    ) -> bool:
        """Learn from a refusal of the body that was sent; False if it names nothing that could be
        left out, or only what is."""
        if status not in ADAPTABLE or TOO_LONG.search(words) or not REFUSES.search(words):
            return False
        if "stream" not in sent and not self.streams_only and STREAMS_ONLY.search(words):
            self.streams_only = True
            return True
        if not self.merges_turns and ALTERNATION.search(words):
            self.merges_turns = True
            # Such a template knows at most an optional system message, many know none.
            self.merges_system |= "optional system" not in words.lower()
            return self.apply(sent) != sent
        has_system = any(turn["role"] in ("system", "developer") for turn in sent["messages"])
        if has_system and not self.merges_system and SYSTEM.search(words):
            self.merges_system = True
            return True
        name = _refused(words, named, sent)
        if name in RENAMED and OUT_OF_RANGE.search(words):
            return False
        return name is not None and self._leave_out(name, words, sent)

    def _leave_out(self, name: str, words: str, sent: Mapping[str, Any]) -> bool:
        if name == "reasoning_effort" and (value := sent[name]) in EFFORTS:
            smaller = [e for e in EFFORTS if re.search(rf"\b{e}\b", words) and e != value]
            if smaller and not self.effort:
                self.effort = smaller[0]
                return True
        replacement = RENAMED.get(name, "")
        # Once each: a field that was renamed to this one is not renamed back.
        self.replaced[name] = "" if replacement in self.replaced else replacement
        for part in ("top_logprobs",) if name == "logprobs" else PARTS.get(name, ()):
            if name != "top_logprobs" and part in sent:
                self.replaced[part] = ""
        return True

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(name for name, replacement in self.replaced.items() if not replacement)

    def lines(self) -> list[str]:
        """What is sent otherwise than asked, for the record and for `reflux doctor`."""
        renamed = [f"{name} is sent as {other}" for name, other in self.replaced.items() if other]
        lines = [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        if "logprobs" in self.left_out:
            lines.append("log-probabilities are unknown")
        if self.effort:
            lines.append(f"reasoning_effort is {self.effort}")
        if self.streams_only:
            lines.append("the model answers by streams alone")
        if self.merges_system:
            lines.append("the system message goes into the user turn")
        if self.merges_turns:
            lines.append("neighboring turns of one role are merged")
        return renamed + lines


def _refused(words: str, named: Iterable[str], sent: Mapping[str, Any]) -> str | None:
    """The field of the body that a refusal names; what the server names apart goes first."""
    fields = [name for name in sent if name not in KEPT]
    for name in named:
        plain = name.split(".")[0].split("[")[0]
        if plain in fields:
            return plain
    found: list[tuple[int, int, str]] = []
    for name in fields:
        pattern = SYNONYMS.get(name, re.escape(name).replace("_", "[_ ]"))
        if match := re.search(
            rf"(?<![\w]){pattern}(?![\w])" if name not in SYNONYMS else pattern,
            words,
            re.IGNORECASE,
        ):
            found.append((match.start(), -len(match[0]), name))
    return min(found)[2] if found else None


def merged_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the system's words at the head of the first user turn."""
    system = [turn["content"] for turn in messages if turn["role"] in ("system", "developer")]
    rest = [dict(turn) for turn in messages if turn["role"] not in ("system", "developer")]
    head = "\n\n".join(filter(None, system))
    if not head:
        return rest
    first = next((turn for turn in rest if turn["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": head}, *rest]
    first["content"] = f"{head}\n\n{first['content']}"
    return rest


def merged_turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with neighbors of one role as one; tool calls and results stay apart."""
    merged: list[dict[str, Any]] = []
    for turn in messages:
        plain = turn.keys() == {"role", "content"} and turn["role"] != "tool"
        last = merged[-1] if merged else {}
        if plain and last.keys() == turn.keys() and last["role"] == turn["role"]:
            last["content"] = f"{last['content']}\n\n{turn['content']}"
        else:
            merged.append(dict(turn))
    return merged
