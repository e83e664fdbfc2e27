"""Rows as tokens, and which of them the loss counts: the assistant's replies, nothing else.

A reply is learned behind exactly the tokens that a request for it would have, and through the token
that ends it. Where a template renders an earlier reply otherwise once more is said (Qwen3 leaves
out what was thought), one sequence cannot hold all replies of a row as they were asked for: the row
becomes a sequence for each such reply. So it does where a reply holds a token that the base never
trained, which is spelled where it is learned (`reflux.finetune.data.spelling`).

Rows of one plain reply are encoded by TRL itself, to the same tokens.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from jinja2 import TemplateError

from reflux.agents.errors import UsageError
from reflux.finetune.chat_template import missing_tools
from reflux.finetune.data.conversations import is_learned, with_arguments
from reflux.finetune.data.spelling import respelled, spelled_by

IGNORED = -100
REFUSALS = (TemplateError, ValueError, TypeError, LookupError, AttributeError)
"""What templates and tokenizers raise on messages that they cannot render."""
Row = Mapping[str, Any]
Encoded = dict[str, list[int]]
"""`input_ids` and `labels` of one sequence, each (tokens,)."""


def encode(row: Row, tokenizer: Any) -> list[Encoded]:
    """A row's sequences, whose labels count the replies that are learned.

    Raises:
        ValueError, and others of `REFUSALS`: the template cannot render the row as it was asked.
    """
    turns = [for_template(turn) for turn in (*row["prompt"], *row["completion"])]
    begin = len(row["prompt"])
    learned = [begin + i for i, turn in enumerate(row["completion"]) if is_learned(turn)]
    tools = row.get("tools") or None
    ends = {index: _ids(tokenizer, turns[: index + 1], tools) for index in learned}
    asked = {index: _ids(tokenizer, turns[:index], tools, True) for index in learned}
    sequences: list[Encoded] = []
    spelled = spelled_by(tokenizer)
    while learned:
        whole, last = ends[learned[-1]], learned[-1]
        labels = [IGNORED] * len(whole)
        other: list[int] = []  # Replies that this sequence does not hold as they were asked for.
        for index in learned:
            start, end = _common(asked[index], whole), _common(ends[index], whole)
            if index != last and (
                start < len(asked[index])
                or not _ended(tokenizer, ends[index], start, end)
                or not spelled.keys().isdisjoint(whole[start:end])
            ):
                other.append(index)
                continue
            if start >= end:
                raise ValueError(f"the template renders nothing of message {index}")
            if (
                index == last
                and turns[index].get("reasoning_content")
                and start < len(asked[index])
            ):
                raise ValueError(
                    "a request begins its reply without thoughts: set base.thinking: true, or "
                    "leave the thoughts out"
                )
            labels[start:end] = whole[start:end]
        whole, labels = respelled(whole, labels, spelled)
        sequences.append({"input_ids": whole, "labels": without(labels, row.get("masked", ()))})
        learned = other
    return sequences[::-1]


def without(labels: list[int], masked: Sequence[int]) -> list[int]:
    """Labels that leave out the counted tokens of these numbers; the last one always counts, so
    that a reply ends."""
    counted = [place for place, label in enumerate(labels) if label != IGNORED]
    for number in masked:
        if number < len(counted) - 1:
            labels[counted[number]] = IGNORED
    return labels


def _ended(tokenizer: Any, reply: Sequence[int], start: int, end: int) -> bool:
    """Whether a sequence that shares the first `end` tokens with a conversation up to a reply,
    which begins at `start`, holds the reply's end, too: a template may put one more token behind
    the last message."""
    special = set(tokenizer.all_special_ids)
    if not reply[end:]:
        return True
    held = (token for token in reversed(reply[start:end]) if tokenizer.decode([token]).strip())
    return special.issuperset(reply[end:]) and next(held, None) in special


def for_template(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates read it: arguments of tool calls as objects, no weight."""
    made = with_arguments(
        turn, lambda given: json.loads(given) if isinstance(given, str) else given
    )
    made.pop("weight", None)
    return made


def _ids(tokenizer: Any, turns: Sequence[Any], tools: Any, asks: bool = False) -> list[int]:
    made = tokenizer.apply_chat_template(
        list(turns), tools=tools, add_generation_prompt=asks, return_dict=True
    )
    return list(made["input_ids"])


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(left, right, strict=False)
    shorter = min(len(left), len(right))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def encode_rows(rows: Iterable[Row], tokenizer: Any) -> Iterator[Encoded]:
    """The sequences of all rows, in order.

    Raises:
        UsageError: the template renders no tools, or cannot render a row; the message names it.
    """
    renders_tools = False
    for index, row in enumerate(rows):
        if not renders_tools and uses_tools(row):
            check_tools(row, index, tokenizer)
            renders_tools = True
        try:
            yield from encode(row, tokenizer)
        except REFUSALS as error:
            raise unrenderable(index, row, error) from error


def unrenderable(index: int, row: Row, error: Exception) -> UsageError:
    """What is wrong with a row that the template refuses."""
    return UsageError(
        f"the base's chat template cannot render row {index}, "
        f"{json.dumps(dict(row), ensure_ascii=False)[:200]}: {error}; correct the row, or "
        "take another base"
    )


def check_tools(row: Row, index: int, tokenizer: Any) -> None:
    """Check that the template renders the tools of a row.

    Raises:
        UsageError: it leaves out tools, calls or results.
    """
    if uses_tools(row) and (missing := missing_tools(tokenizer)):
        raise UsageError(
            f"row {index} has tools, and the base's chat template leaves out "
            f"{', '.join(missing)}: take a base whose template renders them, or set base.tools: "
            "text"
        )


def uses_tools(row: Row) -> bool:
    """Whether a row lists tools, calls one, or holds a result of one."""
    turns = (*row["prompt"], *row["completion"])
    return bool(row.get("tools")) or any(t["role"] == "tool" or t.get("tool_calls") for t in turns)


def length_spread(tokens: Sequence[int]) -> dict[str, int]:
    """`min`, `median`, `p95`, `max` and `sum` of the lengths of one sequence or more."""
    top = quantiles(tokens, n=20, method="inclusive")[-1] if len(tokens) > 1 else tokens[0]
    return {
        "min": min(tokens),
        "median": round(median(tokens)),
        "p95": round(top),
        "max": max(tokens),
        "sum": sum(tokens),
    }


def lengths_in_words(spread: Mapping[str, int]) -> str:
    """`46 to 80 tokens (median 62, 95% within 78)`."""
    return (
        f"{spread['min']:,} to {spread['max']:,} tokens (median {spread['median']:,}, "
        f"95% within {spread['p95']:,})"
    )
