"""Rows for other programs: a file, or a folder that `datasets.load_dataset` takes as it is.

    prompt-completion   TRL's; `tools` where the model had some, arguments of calls as objects
    messages            TRL's; it trains every reply, also those of the prompt
    preference          TRL's `prompt`, `chosen`, `rejected`
    openai              OpenAI's fine-tuning rows, in which what is context has `weight` 0
    sharegpt            `conversations`, with `system` and `tools`, as LLaMA-Factory reads them

A folder holds `data/`, `provenance/`, a `README.md` that names the split and its columns, and a
`dataset_info.json` for LLaMA-Factory (https://llamafactory.readthedocs.io, data preparation). Rows
are written one at a time.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.agents.files import replacing, write_whole
from reflux.finetune.data.conversations import is_learned, with_arguments
from reflux.finetune.data.rows import Row

Form = Literal["prompt-completion", "messages", "preference", "openai", "sharegpt"]
Kind = Literal["jsonl", "parquet"]
Turn = Mapping[str, Any]
BATCH = 1_000
"""Rows of one group of a Parquet file."""
ROLES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
COLUMNS: Mapping[Form, tuple[str, ...]] = {
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "openai": ("messages",),
}
"""Columns that hold messages."""
LLAMA_FACTORY = {
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
}
"""Its `dataset_info.json` of the form that it reads as we mean it; of the others it escapes the
arguments of tool calls twice, or its release of `datasets` adds null to them."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    rows: int
    without_pair: int = 0
    """Rows that are no preference, as no other answer was rejected."""


def in_form(row: Row, form: Form) -> dict[str, Any] | None:
    """The row in a form; None for a preference where no answer was rejected."""
    if form == "sharegpt":
        return _sharegpt(row)
    if form == "openai":
        return _openai(row)
    # Arguments of tool calls are objects, as chat templates print them.
    prompt, completion = (
        [with_arguments(turn, json.loads) for turn in turns]
        for turns in (row.prompt, row.completion)
    )
    tools = {"tools": list(row.tools)} if row.tools else {}
    if form == "messages":
        return {"messages": [*prompt, *completion], **tools}
    if form == "prompt-completion":
        return {"prompt": prompt, "completion": completion, **tools}
    rejected = [{"role": "assistant", "content": row.rejected}]
    pair = {"prompt": prompt, "chosen": completion, "rejected": rejected, **tools}
    return pair if row.rejected is not None else None


def _openai(row: Row) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate((*row.prompt, *row.completion)):
        message = {key: value for key, value in turn.items() if key != "reasoning_content"}
        if turn["role"] == "assistant":
            learned = index >= len(row.prompt) and is_learned(turn)
            message["weight"] = int(learned)
        messages.append(message)
    return {"messages": messages, **({"tools": list(row.tools)} if row.tools else {})}


def _sharegpt(row: Row) -> dict[str, Any]:
    """Tool calls are separate turns, with the text before them; results that follow each other
    are one observation. LLaMA-Factory leaves out rows whose turns do not alternate."""
    turns: list[dict[str, str]] = []
    messages = [*row.prompt, *row.completion]
    head = messages[0] if messages and messages[0]["role"] in ("system", "developer") else None
    for message in messages[1:] if head is not None else messages:
        role = ROLES.get(message["role"], "system")
        made = with_arguments(message, json.loads)
        calls = [call["function"] for call in made.get("tool_calls", ())]
        text = str(message["content"])
        if calls:
            value = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
            value = f"{text}\n<tool_call>\n{value}\n</tool_call>" if text else value
            turns.append({"from": "function_call", "value": value})
        elif role == "observation" and turns and turns[-1]["from"] == role:
            turns[-1]["value"] += f"\n{text}"
        else:
            turns.append({"from": role, "value": text})
    tools = [tool["function"] for tool in row.tools]
    return {
        "conversations": turns,
        "system": str(head["content"]) if head is not None else "",
        "tools": json.dumps(tools, ensure_ascii=False) if tools else "",
    }


def export(
    rows: Iterable[Row], path: Path, form: Form, kind: str | None = None, folder: bool = False
) -> Exported:
    """Write rows, and their provenance beside them.

    Args:
        kind: `jsonl` or `parquet`; where None the file's extension, in a folder `jsonl`.
        folder: `path` is a folder for `load_dataset`; else a file, with a sidecar.

    Raises:
        UsageError: another kind or extension.
        MissingError: Parquet without its packages.
    """
    kind = kind or ("jsonl" if folder else path.suffix.removeprefix("."))
    if kind not in ("jsonl", "parquet"):
        raise UsageError(
            f"cannot export to {path.name!r} as {kind!r}: end it in .jsonl or .parquet, or say "
            "--format jsonl or parquet"
        )
    if folder:
        return _to_folder(rows, path, form, kind)
    sidecar = path.with_name(f"{path.stem}.provenance.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A device or a pipe has no folder for a sidecar.
    return _write(rows, path, form, kind, sidecar if path.is_file() or not path.exists() else None)


def _to_folder(rows: Iterable[Row], path: Path, form: Form, kind: str) -> Exported:
    data, provenance = path / "data" / f"train.{kind}", path / "provenance" / "train.jsonl"
    for each in (data, provenance):
        each.parent.mkdir(parents=True, exist_ok=True)
    written = _write(rows, data, form, kind, provenance)
    for other in {"jsonl", "parquet"} - {kind}:
        data.with_suffix(f".{other}").unlink(missing_ok=True)  # Of an earlier export.
    name = data.relative_to(path).as_posix()
    write_whole(path / "README.md", _readme(name, form))
    llama_factory = path / "dataset_info.json"
    if form == "sharegpt":
        entry = {"file_name": name, **LLAMA_FACTORY}
        write_whole(llama_factory, json.dumps({path.resolve().name: entry}, indent=2) + "\n")
    else:
        llama_factory.unlink(missing_ok=True)  # Of an earlier export.
    return written


def _write(
    rows: Iterable[Row], path: Path, form: Form, kind: str, sidecar: Path | None
) -> Exported:
    count = pairs = 0
    plain = True
    with ExitStack() as stack:
        out = stack.enter_context(replacing(path))
        lines = out
        if kind == "parquet":
            lines = Path(stack.enter_context(TemporaryDirectory(prefix="reflux-"))) / "rows.jsonl"
        beside = stack.enter_context(replacing(sidecar)) if sidecar is not None else None
        body_file = stack.enter_context(lines.open("w", encoding="utf-8"))
        about_file = stack.enter_context(beside.open("w", encoding="utf-8")) if beside else None
        for row in rows:
            body = in_form(row, form)
            if body is None:
                pairs += 1
                continue
            turns = (*row.prompt, *row.completion)
            plain &= not row.tools and all(set(turn) == {"role", "content"} for turn in turns)
            body_file.write(json.dumps(body) + "\n")
            if about_file is not None:
                about_file.write(json.dumps(row.provenance) + "\n")
            count += 1
        body_file.flush()
        if kind == "parquet":
            _to_parquet(lines, out, form, plain or form == "sharegpt")
    return Exported(count, pairs)


def _to_parquet(lines: Path, out: Path, form: Form, plain: bool) -> None:
    """Lines of JSON as Parquet: plain messages as columns, others as `datasets` stores JSON."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingError(f"Parquet files need pyarrow: {pip_install('train')}") from error
    writer: Any = None
    for bodies in _batches(lines):
        table: Any = pa.Table.from_pylist(bodies) if plain else _json_table(bodies, form)
        writer = writer or pq.ParquetWriter(out, table.schema)
        writer.write_table(table.cast(writer.schema))
    if writer is None:
        pq.write_table(pa.table({}), out)
    else:
        writer.close()


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    with lines.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            batch.append(json.loads(line))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _json_table(bodies: list[dict[str, Any]], form: Form) -> Any:
    try:
        from datasets import Dataset, Features, Json, List
    except ImportError as error:
        raise MissingError(
            f"Parquet of rows with tools needs datasets: {pip_install('train')}"
        ) from error
    features = Features({name: List(Json()) for name in (*COLUMNS[form], "tools")})
    filled = [{"tools": [], **body} for body in bodies]
    data: Any = cast(Any, Dataset).from_list(filled, features=features)
    return data.data.table.replace_schema_metadata(features.arrow_schema.metadata)


def _readme(name: str, form: Form) -> str:
    """The card of the folder: where the rows are, and what their columns hold."""
    if form == "sharegpt":
        features = (
            "  - name: conversations\n    list:\n    - name: from\n      dtype: string\n"
            "    - name: value\n      dtype: string\n"
            "  - name: system\n    dtype: string\n  - name: tools\n    dtype: string\n"
        )
    else:
        columns = (*COLUMNS[form], "tools")
        features = "".join(f"  - name: {column}\n    list: json\n" for column in columns)
    # Parquet says itself what its columns hold.
    typed = f"dataset_info:\n  features:\n{features}" if name.endswith(".jsonl") else ""
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        f"    path: {name}\n{typed}---\n\n"
        f"Rows in the form `{form}`, exported by Reflux. `provenance/train.jsonl` holds a line for "
        "each: the trajectory, node and model that it came from.\n"
    )
