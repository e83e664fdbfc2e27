"""Rows for training, out of accepted trajectories only.

A row is what TRL takes, `{"prompt": [messages], "completion": [messages]}`, and nothing else; where
it comes from stands beside it. No row holds a true answer: trajectories have none.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import Message
from reflux.finetune.run_folder import replacing, write_whole
from reflux.graphs.evals.task import Task, is_held_out
from reflux.graphs.traces.review import edited_by_humans, rejected_by_humans
from reflux.graphs.traces.revisions import NEWEST, before, first_of, overrides_made
from reflux.graphs.traces.store import TraceStore

Form = Literal["prompt-completion", "messages", "preference"]


@dataclass(frozen=True)
class Row:
    """One example, with its provenance."""

    prompt: tuple[Message, ...]
    completion: str
    question: str
    """Text of the question, for the leak check."""
    task: str
    provenance: dict[str, Any]
    """Trajectory, node path, run, round, system and model digests."""
    rejected: str | None = None
    """An answer to the same question that a check refused, or that a person's edit replaced, where
    there is one."""

    def train(self) -> dict[str, Any]:
        """The row as TRL's conversational prompt-completion form."""
        completion = [{"role": "assistant", "content": self.completion}]
        return {"prompt": list(self.prompt), "completion": completion}


ACCEPTED = f"""
SELECT q.*, (SELECT group_concat(DISTINCT digest) FROM (
    SELECT c.model_digest AS digest FROM calls c WHERE c.question = q.id UNION ALL
    SELECT b.detail ->> 'model_digest' FROM judgements b
    WHERE b.question = q.id AND b.kind = 'chain_begun')) AS models
FROM roots q WHERE q.ok = 1 AND {NEWEST} AND {{which}}
ORDER BY q.round, q.id
"""  # noqa: S608 - every part is a constant of ours
OF_SYSTEM = "q.split = :split AND q.system = :system AND q.round <= :up_to"


def accepted(
    store: TraceStore, split: str, system: str, up_to_round: int, system_prompt: str
) -> Iterator[Row]:
    """Rows of every accepted root answer of a system, in a fixed order.

    Of a trajectory that persons edited the newest revision counts; one with a node that a person
    rejected is left out.
    """
    asked = {"split": split, "system": system, "up_to": up_to_round}
    return rows_where(store, OF_SYSTEM, asked, lambda task: system_prompt)


def rows_where(
    store: TraceStore, which: str, values: Mapping[str, Any], system_prompt: Callable[[str], str]
) -> Iterator[Row]:
    """Rows of the accepted roots `q` that an SQL condition picks; the prompt is that of the task
    whose name is given."""
    rejected = rejected_by_humans(store)
    edited = edited_by_humans(store)
    for found in store.select(ACCEPTED.format(which=which), values):
        first = first_of(found["id"])
        if first in rejected:
            continue
        answer = json.loads(found["detail"])["answer"]
        replaced = _replaced(store, found["id"], answer) if first in edited else None
        models = found["models"].split(",") if found["models"] else []
        refused = replaced or _refused(store, found["id"], answer)
        yield row_of(found, answer, system_prompt(found["task"]), refused, models)


def row_of(
    found: Any,
    answer: str,
    system_prompt: str,
    rejected: str | None,
    models: Sequence[str] = (),
    path: str = "",
) -> Row:
    """The row of a question on record: `found` has its `text`, and the columns of its root."""
    return Row(
        prompt=tuple(
            {"role": role, "content": content}
            for role, content in answer_prompt(found["text"], system_prompt)
        ),
        completion=answer,
        question=found["text"],
        task=found["task"],
        provenance={
            "trajectory": found["id"],
            "path": path,
            "run": found["run"],
            "round": found["round"],
            "system": found["system"],
            "models": list(models),
        },
        rejected=rejected,
    )


def _replaced(store: TraceStore, question: str, answer: str) -> str | None:
    """The answer to the root before the newest edit that changed it."""
    words = {
        id: word for id in (question, *before(question)) for _, word in overrides_made(store, id)
    }
    for id, earlier in pairwise((question, *before(question))):
        found = store.how_ended(earlier)
        if (
            id in words
            and words[id]["answer"] is not None
            and found
            and found["answer"] not in (None, answer)
        ):
            return str(found["answer"])
    return None


def _refused(store: TraceStore, question: str, answer: str) -> str | None:
    """The first answer to the root that its check refused."""
    sql = (
        "SELECT detail FROM judgements WHERE question=? AND path='' AND kind='check' AND ok=0"
        " ORDER BY id"
    )
    for found in store.select(sql, (question,)):
        if (text := json.loads(found["detail"])["answer"]) != answer:
            return str(text)
    return None


def check_leaks(rows: Sequence[Row], task: Task) -> None:
    """Make sure that no held-out question of the task is among the rows.

    Raises:
        RefluxError: one is.
    """
    for row in rows:
        if row.task == task.name and is_held_out(task, row.question):
            raise RefluxError(
                f"held-out question {row.question!r} is in the training rows (trajectory "
                f"{row.provenance.get('trajectory')}); nothing was trained, please report this"
            )


def rows_digest(rows: Sequence[Row]) -> str:
    """Hash of all that a student learns from (hex, 32)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.train(), sort_keys=True).encode())
    return digest.hexdigest()[:32]


def in_form(row: Row, form: Form) -> dict[str, Any] | None:
    """The row in one of TRL's forms; None where the row has no such form."""
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
    """Write rows as JSONL or Parquet, provenance in a sidecar; their number.

    Args:
        kind: `jsonl` or `parquet`; what the file ends in where None.

    Raises:
        UsageError: another kind or ending.
    """
    kind = path.suffix.removeprefix(".") if kind is None else kind
    kept = [(row, body) for row in rows if (body := in_form(row, form)) is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        write_whole(path, "".join(json.dumps(body) + "\n" for _, body in kept))
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with replacing(path) as temporary:
            pq.write_table(pa.Table.from_pylist([body for _, body in kept]), temporary)
    else:
        raise UsageError(
            f"cannot export to {path.name!r} as {kind!r}: end it in .jsonl or .parquet, or say "
            "--format jsonl or parquet"
        )
    if not path.is_file():  # A device or a pipe has nothing beside it.
        return len(kept)
    sidecar = path.with_name(f"{path.stem}.provenance.jsonl")
    write_whole(sidecar, "".join(json.dumps(row.provenance) + "\n" for row, _ in kept))
    return len(kept)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Prompt/completion rows from a JSONL file, plain texts or messages, as TRL takes them.

    Raises:
        UsageError: no file, no rows, or a broken line, with its number.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    rows: list[dict[str, Any]] = []
    # Not `splitlines`, which ends a line at U+2028, too: JSON has that within its texts.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            rows.append(_conversation(found))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UsageError(
                f"{path}, line {number}: not a row ({error}); each line is a JSON object with "
                '"prompt" and "completion", or with "messages"'
            ) from error
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return rows


def _conversation(found: dict[str, Any]) -> dict[str, Any]:
    if "messages" in found:
        prompt, completion = found["messages"][:-1], found["messages"][-1:]
    else:
        prompt, completion = found["prompt"], found["completion"]
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
