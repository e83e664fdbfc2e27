"""A synthetic trace file with any number of trajectories, for benchmarks of pages and commands.

Nine of ten trajectories are one call; the tenth is a tree of three copies below an overseer. Their
rows resemble real ones in content and length, but no model is called.
"""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from reflux.agents.types import Answer, Ask, step_to_json
from reflux.graphs.traces.store import TraceStore

NEEDLE = "zanzibar"
"""Occurs in the question of the oldest trajectory only."""
WORDS = (
    "river", "copper", "lantern", "orchard", "winter", "signal", "paper", "harbour", "ember",
    "meadow", "glass", "thunder",
)  # fmt: skip
SYSTEMS = ("direct", "amplified", "student")
QUESTION = "INSERT INTO questions VALUES (?, 'many', ?, ?, 'addition', ?, ?, ?{more})"
CALL = (
    "INSERT INTO calls (question, path, role, step, attempt, vote, kind, model, messages,"
    " completion, prompt_tokens, completion_tokens, seconds, sampling, cached, created)"
    " VALUES (?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)"
)
JUDGEMENT = (
    "INSERT INTO judgements (question, path, kind, ok, detail, author, key, created)"
    " VALUES (?, ?, ?, ?, ?, 'reflux', ?, ?)"
)


def fill(path: Path, number: int, seed: int = 0) -> None:
    """Write `number` trajectories into a new trace file."""
    TraceStore(path).close()
    draw = random.Random(seed)
    with closing(sqlite3.connect(path)) as database:
        columns = len(list(database.execute("PRAGMA table_info(questions)")))
        question = QUESTION.format(more=", NULL" * (columns - 8))
        for at in range(number):
            created = 1.7e9 + at
            words = draw.choices(WORDS, k=8) + ([] if at else [NEEDLE])
            text = f"{draw.randint(100, 999)}+{draw.randint(100, 999)} {' '.join(words)}"
            tree = at % 10 == 9
            system = "amplified" if tree else SYSTEMS[at % 2 * 2]
            id = f"{draw.getrandbits(64):016x}"
            split = ("train", "held_out")[at % 5 == 4]
            database.execute(question, (id, at % 4, system, split, text, created))
            status = "rejected" if at % 50 == 7 else "ok"
            database.executemany(CALL, list(_calls(id, text, tree, created)))
            database.executemany(JUDGEMENT, list(_judgements(id, text, tree, status, created)))
        database.commit()


def _calls(id: str, text: str, tree: bool, created: float) -> Iterator[tuple[Any, ...]]:
    copies = [f"{text}, part {part}" for part in range(3)] if tree else []
    if tree:
        for step, taken in enumerate((Ask.of(*copies), Answer("together"))):
            said = json.dumps(step_to_json(taken))
            yield (
                id,
                "",
                "overseer",
                step,
                "script",
                "script:many",
                None,
                said,
                0,
                0,
                0.0,
                None,
                created,
            )
    for part, asked in enumerate(copies or [text]):
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": asked}]
        where = f"/0.0.{part}" if tree else ""
        yield (
            id, where, "answer", 0, "model", "base", json.dumps(messages), f"about {part}",
            30, 6, 0.1, '{"temperature": 0.0, "max_tokens": 24}', created,
        )  # fmt: skip


def _judgements(
    id: str, text: str, tree: bool, status: str, created: float
) -> Iterator[tuple[Any, ...]]:
    for part in range(3 if tree else 0):
        path, told = f"/0.0.{part}", {"question": f"{text}, part {part}", "answer": f"about {part}"}
        detail = json.dumps({**told, "status": "ok", "error": None, "votes": 1, "refused": 0})
        yield id, path, "direct", 1, detail, f"{id}{path}:direct:0.0:x", created
    kind = "outcome" if tree else "direct"
    told = {"question": text, "answer": "together" if tree else "about 0", "status": status}
    detail = json.dumps({**told, "error": None, "votes": 1, "refused": 0})
    yield id, "", kind, int(status == "ok"), detail, f"{id}:{kind}:0.0:x", created
