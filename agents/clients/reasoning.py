"""Reasoning kept apart from content, in every form in which servers mix the two.

- a block before the answer: `<think>…</think>Lima`, `[THINK]…[/THINK]Lima`
- the same without its opening tag, which the chat template has written: `…</think>Lima`
- a block that never ends, because the token limit cut it: `<think>…`
- gpt-oss's channels, with or without their markers: `<|channel|>analysis<|message|>…`
- fields of a message (`reasoning_content`, `reasoning`, …) and parts of its content

A tag within an answer, quoted or in code, is content: a block counts where the reply begins with
it. A closing tag alone counts where it stands outside code and quotation marks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from reflux.agents.types import Completion, TokenLogprob

TAGS = (
    "think", "thinking", "thought", "thoughts", "reasoning", "reason", "analysis", "seed:think"
)  # fmt: skip
BLOCKS = {
    **{f"<{tag}>": (f"</{tag}>",) for tag in TAGS},
    "[THINK]": ("[/THINK]",),
    "◁think▷": ("◁/think▷",),
    "<|begin_of_thought|>": ("<|end_of_thought|>",),
    "<|START_THINKING|>": ("<|END_THINKING|>",),
    "<|channel>thought": ("<channel|>",),
    "<unused94>thought": ("<unused95>",),
    "<|channel|>analysis<|message|>": ("<|end|>", "<|start|>assistant", "<|channel|>final"),
    "<|channel|>commentary<|message|>": ("<|end|>", "<|start|>assistant", "<|channel|>final"),
}
"""What closes a block, by what opens it; tags are in any case."""
MARKERS = (
    "<|start|>assistant",
    "<|channel|>final",
    "<|constrain|>json",
    "<|message|>",
    "<|begin_of_solution|>",
    "<|START_RESPONSE|>",
    "<answer>",
)
"""Markers that may precede the content and are not part of it."""
ENDINGS = re.compile(
    r"(?:<\|(?:return|end|call|end_of_solution|END_RESPONSE|im_end|eot_id)\|>|</s>|\s{0,4}</answer>"
    r"|\s<think(?:ing)?>)+\s*\Z",
    re.IGNORECASE,
)
"""Markers that may follow the content and are not part of it."""
LATE = (
    "<|return|>", "<|end|>", "<|call|>", "<|end_of_solution|>", "<|END_RESPONSE|>", "</answer>",
    "<think>", "<thinking>",
)  # fmt: skip
ORPHANS = tuple(f"</{tag}>" for tag in TAGS if tag not in ("reason", "analysis"))
ORPHANS += ("[/THINK]", "◁/think▷")
"""Closing tags that may stand alone."""
BARE = re.compile(r"\Aanalysis(?=[A-Z\s\"'])(.*?)assistant(?:commentary.*?assistant)?final", re.S)
"""gpt-oss where the server has deleted the markers of the channels."""
LONGEST = max(map(len, (*BLOCKS, *MARKERS, *ORPHANS, "<|channel|>commentary<|message|>")))
TAG_START = re.compile(r"[<\[◁]")
OPENING = re.compile("|".join(re.escape(tag) for tag in (*BLOCKS, *MARKERS)), re.IGNORECASE)
ORPHAN = re.compile("|".join(re.escape(tag) for tag in ORPHANS), re.IGNORECASE)
OPENS_IN_TEMPLATE = re.compile(r"deepseek[-_.]?r1|qwq|thinking|magistral|reasoner", re.IGNORECASE)
"""Names of models whose chat template writes the opening tag."""


@dataclass
class ReasoningSplitter:
    """Takes a reply apart as it arrives."""

    opened: bool = False
    """The opening tag may have stood in the prompt: text is held back until a closing tag, or the
    end, tells what it is."""
    reasoning: str = ""
    content: str = ""
    unclosed: bool = False
    """The reply ended within its reasoning."""
    without_opening: bool = False
    """A closing tag came without an opening one."""
    _waiting: str = ""
    _closings: tuple[str, ...] = ()
    """What closes the current block; empty outside of one."""
    _begun: bool = False
    """Content has begun."""
    _tagged: bool = False
    """A block has begun, or the content holds an opening tag."""
    _out: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that a further piece of the reply decides."""
        self._waiting += text
        while self._step():
            pass
        return self._taken()

    def end(self) -> tuple[str, str]:
        """(reasoning, content) that was held back until the end."""
        rest, self._waiting = self._waiting, ""
        if self._closings:
            self._add("reasoning", rest)
            self.unclosed = True
        elif rest:
            rest = rest if self._begun else rest.lstrip()
            if not self._begun and (bare := BARE.match(rest)):
                self._add("reasoning", bare[1])
                rest = rest[bare.end() :]
            ending = ENDINGS.search(rest)
            # An answer about `<answer>…</answer>` keeps its tags.
            if ending and not ("<answer>" in self.content + rest and "</answer>" in ending[0]):
                rest = rest[: ending.start()]
            self._add("content", rest)
        self.reasoning = self.reasoning.strip()
        return self._taken()

    def _taken(self) -> tuple[str, str]:
        pieces, self._out = self._out, []
        joined = {kind: "".join(t for k, t in pieces if k == kind) for kind, _ in pieces}
        return joined.get("reasoning", ""), joined.get("content", "")

    def _add(self, kind: str, text: str) -> None:
        if kind == "reasoning":
            self.reasoning += text
        else:
            self.content += text
            self._begun = self._begun or bool(text.strip())
        self._out.append((kind, text))

    def _step(self) -> bool:
        """Decide on the text that waits, as far as possible; True if there is more to decide."""
        if self._closings:
            return self._within_block()
        if not self._begun:
            return self._before_content()
        return self._within_content()

    def _within_block(self) -> bool:
        pattern = re.compile("|".join(map(re.escape, self._closings)), re.IGNORECASE)
        found = pattern.search(self._waiting)
        if found is None:
            self._release("reasoning", self._closings)
            return False
        self._add("reasoning", self._waiting[: found.start()] + "\n")
        # A channel's marker is read again, because it may open the next channel.
        end = found.start() if found[0].startswith(("<|start", "<|channel|>")) else found.end()
        self._waiting, self._closings = self._waiting[end:], ()
        return True

    def _before_content(self) -> bool:
        text = self._waiting.lstrip()
        if not text:
            return False
        opening = OPENING.match(text)
        if opening is not None:
            self._waiting = text[opening.end() :]
            self._closings = next(
                (ends for tag, ends in BLOCKS.items() if tag.lower() == opening[0].lower()), ()
            )
            self._tagged = self._tagged or bool(self._closings)
            return True
        if "analysis".startswith(text) or any(
            tag.lower().startswith(text.lower()) for tag in (*BLOCKS, *MARKERS)
        ):
            return False  # It may become a tag.
        if self._tagged or not (self.opened or text.startswith("analysis")):
            self._waiting, self._begun = text, True
            return True
        return self._orphan(text)

    def _within_content(self) -> bool:
        self._tagged = self._tagged or OPENING.search(self._waiting) is not None
        if not self._tagged and self._orphan(self._waiting):
            return True
        self._release("content", LATE if self._tagged else (*ORPHANS, *BLOCKS, *LATE))
        return False

    def _orphan(self, text: str) -> bool:
        """Take all until a closing tag without an opening one as reasoning."""
        for found in ORPHAN.finditer(text):
            before = self.content + text[: found.start()]
            if _quoted(before, text[found.end() :]) or OPENING.search(before):
                continue
            self.reasoning, self.content = before, ""
            self._out = [("reasoning", text[: found.start()])]
            self._waiting = text[found.end() :]
            self._begun, self._tagged, self.without_opening = False, True, True
            return True
        return False

    def _release(self, kind: str, tags: Iterable[str]) -> None:
        """Pass on what waits, but for an end that may be the beginning of a tag."""
        text, held = self._waiting, 0
        ending = ENDINGS.search(text, max(0, len(text) - 2 * LONGEST))
        if kind == "content" and ending is not None:
            held = len(text) - ending.start()
        for start in TAG_START.finditer(text, max(0, len(text) - LONGEST)):
            tail = text[start.start() :].lower()
            if any(tag.lower().startswith(tail) for tag in tags):
                held = max(held, len(tail))
                break
        if kind == "content":  # White space is part of a tag that follows it.
            held = len(text) - len(text[: len(text) - held].rstrip())
        self._add(kind, text[: len(text) - held])
        self._waiting = text[len(text) - held :]


def _quoted(before: str, after: str) -> bool:
    """True within code or quotation marks."""
    line = before.rpartition("\n")[2]
    in_code = before.count("```") % 2 == 1 or line.replace("```", "").count("`") % 2 == 1
    return in_code or (before[-1:] in "\"'“‘«(" and after[:1] in "\"'”’»)" and before != "")


def split_reasoning(text: str) -> ReasoningSplitter:
    """A whole reply taken apart."""
    splitter = ReasoningSplitter()
    splitter.feed(text)
    splitter.end()
    return splitter


def apart(reply: Completion) -> Completion:
    """A reply whose text may hold reasoning, with the two apart.

    A reply that ends within its reasoning is truncated: whatever the server says, it holds no
    answer.
    """
    if not _may_hold_reasoning(reply.text):
        return reply
    splitter = split_reasoning(reply.text)
    if splitter.content == reply.text and not splitter.reasoning:
        return reply
    return replace(
        reply,
        text=splitter.content,
        reasoning=joined((reply.reasoning, splitter.reasoning)),
        logprobs=logprobs_of(splitter.content, reply.text, reply.logprobs),
        finish_reason="length" if splitter.unclosed else reply.finish_reason,
    )


def _may_hold_reasoning(text: str) -> bool:
    """A quick test, because nearly no reply does."""
    return any(mark in text for mark in ("</", "<|", "[/THINK]", "◁", "[THINK]", "|>")) or (
        text.lstrip()[:1] == "<" or text.startswith("analysis")
    )


def joined(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text)


def logprobs_of(
    content: str, text: str, logprobs: Sequence[TokenLogprob]
) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of the tokens of the content, which ends the text; none if the tokens
    are not those of the text."""
    if not logprobs or content == text:
        return tuple(logprobs)
    if "".join(token.token for token in logprobs) != text:
        return ()
    start, kept, position = text.rfind(content) if content else len(text), list[TokenLogprob](), 0
    for token in logprobs:
        if start <= position < start + len(content):
            kept.append(token)
        position += len(token.token)
    return tuple(kept)


REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thoughts")
"""Fields of a message that hold its reasoning; servers that send several repeat themselves."""
REASONING_PARTS = ("thinking", "reasoning", "redacted_thinking", "thought", "summary")


def reasoning_of(message: dict[str, Any]) -> str:
    """The reasoning that a server sends in separate fields."""
    texts = (text_of(message.get(name)) for name in REASONING_FIELDS)
    return next((text for text in texts if text), "")


def content_of(value: Any) -> tuple[str, str]:
    """(reasoning, content) of a message's content: text, null, or a list of parts.

    Raises:
        ValueError: it is of another type.
    """
    if value is None or isinstance(value, str):
        return "", value or ""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"content is a {type(value).__name__}, expected text or a list of parts")
    reasoning, content = "", ""
    for part in cast(list[Any], value):
        kind = cast(dict[str, Any], part).get("type", "") if isinstance(part, dict) else ""
        if isinstance(part, dict) and (kind in REASONING_PARTS or part.get("thought") is True):
            reasoning += text_of(part)
        else:
            content += text_of(part)
    return reasoning, content


def text_of(value: Any) -> str:
    """The text of a part, in any of the forms that servers give it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(text_of, cast(list[Any], value)))
    if isinstance(value, dict):
        names = ("text", "content", "thinking", "reasoning", "summary", "refusal")
        texts = (text_of(cast(dict[str, Any], value).get(name)) for name in names)
        return next((text for text in texts if text), "")
    return ""
