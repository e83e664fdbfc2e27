"""Rows in files: written in the forms that TRL takes, read from JSONL."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.files import replacing, write_whole
from reflux.agents.prompts import answer_prompt
from reflux.finetune import INSTALL_TRAIN
from reflux.finetune.rows import Row

Form = Literal["prompt-completion", "messages", "preference"]


def in_form(row: Row, form: Form) -> dict[str, Any] | None:
    """The row in one of TRL's forms; None for a preference where no answer was rejected."""
    trained = row.train()
    if form == "messages":
        return {"messages": trained["prompt"] + trained["completion"]}
    if form == "preference":
        if row.rejected is None:
            return None
        return {
            "prompt": trained["prompt"],
            "chosen": trained["completion"],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
    return trained


def export(rows: Sequence[Row], path: Path, form: Form, kind: str | None = None) -> int:
    """Write rows to a file and their provenance to a sidecar; returns how many were written.

    Args:
        kind: `jsonl` or `parquet`; the file's extension where None.

    Raises:
        UsageError: another kind or extension.
        MissingError: Parquet without pyarrow.
    """
    kind = path.suffix.removeprefix(".") if kind is None else kind
    written = [(row, body) for row in rows if (body := in_form(row, form)) is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        write_whole(path, "".join(json.dumps(body) + "\n" for _, body in written))
    elif kind == "parquet":
        _write_parquet(path, [body for _, body in written])
    else:
        raise UsageError(
            f"cannot export to {path.name!r} as {kind!r}: end it in .jsonl or .parquet, or say "
            "--format jsonl or parquet"
        )
    if path.is_file():  # A device or a pipe has no folder for a sidecar.
        sidecar = path.with_name(f"{path.stem}.provenance.jsonl")
        write_whole(sidecar, "".join(json.dumps(row.provenance) + "\n" for row, _ in written))
    return len(written)


def _write_parquet(path: Path, bodies: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingError(f"Parquet files need pyarrow: {INSTALL_TRAIN}") from error

    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(bodies), temporary)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Prompt and completion rows from a JSONL file of plain texts or messages.

    Raises:
        UsageError: no file, no rows, or an invalid line, with its number.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    rows: list[dict[str, Any]] = []
    # `splitlines` would also split at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_conversation(json.loads(line)))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UsageError(
                f"{path}, line {number}: not a row ({error}); each line is a JSON object with "
                '"prompt" and "completion", or with "messages"'
            ) from error
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return rows


def _conversation(body: dict[str, Any]) -> dict[str, Any]:
    """A line's object as TRL's conversational prompt-completion row."""
    if "messages" in body:
        prompt, completion = body["messages"][:-1], body["messages"][-1:]
    else:
        prompt, completion = body["prompt"], body["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": role, "content": text} for role, text in answer_prompt(prompt)]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    for message in [*prompt, *completion]:
        if not isinstance(message["content"], str) or not isinstance(message["role"], str):
            raise TypeError("role and content must be text")
    if not completion:
        raise ValueError("the completion is empty")
    return {"prompt": prompt, "completion": completion}
