"""Rows as a data set: how long they are, what the length limit costs, and which are held out.

Every row is kept whole as far as the model's context allows. A limit that cuts or drops rows is
told before the training starts, with the number of rows and the remedy.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from trl.trainer.sft_config import SFTConfig

from reflux.agents.errors import UsageError
from reflux.finetune.data.conversations import is_plain
from reflux.finetune.data.encoding import (
    IGNORED,
    REFUSALS,
    Encoded,
    encode_rows,
    length_spread,
    lengths_in_words,
    unrenderable,
)

Rows = Sequence[Mapping[str, Any]]


def check_rows(rows: Rows) -> None:
    """Check that there are rows in TRL's prompt-completion form.

    Raises:
        UsageError: there are none, or one has other keys; the message names it.
    """
    if not rows:
        raise UsageError("there are 0 rows to train on: curate some accepted answers first")
    for index, row in enumerate(rows):
        if set(row) - {"tools", "weight", "teacher", "logged", "masked"} != {
            "prompt",
            "completion",
        }:
            raise UsageError(
                f"row {index} has the keys {sorted(row)}; a row has prompt and completion, each a "
                "list of messages, and may have tools, a weight, a teacher's prompt, logged "
                "tokens, and masked ones"
            )


def hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into (training, evaluation) by prompt, so that no prompt is on both sides.

    Raises:
        UsageError: the rows have a single prompt.
    """
    if not share:
        return rows, []
    keys = [json.dumps(row["prompt"], sort_keys=True) for row in rows]
    prompts = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    if len(prompts) < 2:
        raise UsageError(f"evaluation: {share} needs rows of two prompts, and there is one")
    held = set(prompts[: min(max(1, round(share * len(prompts))), len(prompts) - 1)])
    split: tuple[list[Any], list[Any]] = ([], [])
    for row, key in zip(rows, keys, strict=True):
        split[key in held].append(row)
    return split


@dataclass(frozen=True)
class RowLengths:
    """The tokens of rows, against a limit."""

    tokens: Sequence[int]
    """Of each row, prompt and completion, in the order of the rows."""
    limit: int | None
    """`max_length`; None for none."""
    context: int | None
    """Maximum tokens of the model, where its config says so."""
    dropped: int
    """Rows whose prompt alone fills the limit."""
    cut: int
    """Rows that lose their end."""

    @property
    def note(self) -> str:
        """The lengths in a sentence; what the limit costs and how to keep it, in another."""
        longest = max(self.tokens)
        text = f"{len(self.tokens):,} rows of {lengths_in_words(length_spread(self.tokens))}"
        if self.limit is None:
            return f"{text}; no max_length"
        if not self.dropped + self.cut:
            return f"{text}; max_length {self.limit:,} keeps all whole"
        remedy = f"set sft.max_length: {longest} to keep them"
        if self.context is not None and longest > self.context:
            remedy = (
                f"the model takes {self.context:,} tokens: shorten these rows, or take a base with "
                "a longer context"
            )
        return (
            f"{text}; max_length {self.limit:,} cuts the end of {self.cut:,} and drops "
            f"{self.dropped:,}, whose prompt fills it: {remedy}"
        )


def fit_length(
    args: SFTConfig,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    model: Any,
    sft: Mapping[str, Any],
) -> RowLengths:
    """Set `args.max_length` by the rows and the model, unless `sft` names one.

    Raises:
        UsageError: no row has room for a completion, or a row cannot be rendered.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # TRL refuses a limit where sequences are laid end to end without packing.
    auto = "max_length" not in sft and not (args.padding_free and not args.packing)
    given = sft.get("max_length")
    lengths = measure_rows(rows, tokenizer, context, given, auto)
    if lengths.dropped == len(rows):
        raise UsageError(
            f"every prompt fills max_length={lengths.limit} tokens, so no completion is left: "
            "raise sft.max_length or shorten the prompts"
        )
    args.max_length = lengths.limit
    return lengths


def measure_rows(
    rows: Rows, tokenizer: Any, context: int | None, limit: int | None = None, auto: bool = True
) -> RowLengths:
    """The lengths of rows as the tokenizer's chat template renders them.

    Args:
        auto: take the longest row as the limit, or the model's context where that is lower.

    Raises:
        UsageError: the template cannot render a row; the message names it.
    """
    if not isinstance(rows, list | tuple) or not all(map(is_plain, rows)):
        return _measured(encode_rows(rows, tokenizer), context, limit, auto)
    whole = _rendered(rows, tokenizer, lambda row: [*row["prompt"], *row["completion"]], False)
    tokens = _lengths(whole, tokenizer)
    if auto:
        limit = min(max(tokens), context or max(tokens))
    long = [row for row, n in zip(rows, tokens, strict=True) if limit is not None and n > limit]
    prompts = _lengths(_rendered(long, tokenizer, lambda row: row["prompt"], True), tokenizer)
    dropped = sum(n >= (limit or n) for n in prompts)
    return RowLengths(tokens, limit, context, dropped, len(long) - dropped)


def _measured(
    sequences: Iterable[Encoded], context: int | None, limit: int | None, auto: bool
) -> RowLengths:
    """As `measure_rows`, of the sequences that the rows become."""
    # Where the loss of each begins: what is cut before it is dropped.
    ends = [
        (len(labels), next(i for i, label in enumerate(labels) if label != IGNORED))
        for labels in (sequence["labels"] for sequence in sequences)
    ]
    tokens = [length for length, _ in ends]
    if auto:
        limit = min(max(tokens), context or max(tokens))
    begins = [begin for length, begin in ends if limit is not None and length > limit]
    dropped = sum(begin >= (limit or 0) for begin in begins)
    return RowLengths(tokens, limit, context, dropped, len(begins) - dropped)


def as_dataset(rows: Rows, tokenizer: Any, folder: Path | None = None) -> datasets.Dataset:
    """Rows as TRL trains them: plain ones as they are, others encoded; a list in memory, anything
    else one row after another in files of a folder."""
    if isinstance(rows, list | tuple):
        if all(map(is_plain, rows)):
            return datasets.Dataset.from_list(
                [{key: row[key] for key in ("prompt", "completion")} for row in rows]
            )
        return datasets.Dataset.from_list(list(encode_rows(rows, tokenizer)))
    made: Any = datasets.Dataset.from_generator(
        lambda: encode_rows(rows, tokenizer),
        cache_dir=str(folder),
        fingerprint=uuid.uuid4().hex,
    )
    return made


def _rendered(rows: Rows, tokenizer: Any, chat: Any, asks: bool) -> list[str]:
    texts: list[str] = []
    for index, row in enumerate(rows):
        try:
            texts.append(
                tokenizer.apply_chat_template(chat(row), tokenize=False, add_generation_prompt=asks)
            )
        except REFUSALS as error:
            raise unrenderable(index, row, error) from error
    return texts


def _lengths(texts: Sequence[str], tokenizer: Any) -> list[int]:
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
