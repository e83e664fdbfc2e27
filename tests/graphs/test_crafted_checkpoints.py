"""A checkpoint file that others wrote runs nothing, and is told where it cannot be read."""

import json
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import ormsgpack
import pytest
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG, JsonPlusSerializer

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import Defer
from reflux.graphs.amplify.interrupts import open_checkpoints, open_interruptible_run
from reflux.graphs.traces.store import TraceStore
from tests.support.amplifying import amplified, echo

CONFIG: Any = {"configurable": {"thread_id": "q"}}


class Touches:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def msgpack_call(module: str, name: str, argument: str) -> bytes:
    """A value that LangGraph makes by calling a function with one argument."""
    inner = ormsgpack.packb((module, name, argument))
    return ormsgpack.packb({"state": ormsgpack.Ext(EXT_CONSTRUCTOR_SINGLE_ARG, inner)})


def json_call(argument: str) -> bytes:
    body = {"lc": 2, "type": "constructor", "id": ["os", "mkdir"], "args": [argument]}
    return json.dumps({"state": body}).encode()


async def paused(folder: Path, store: TraceStore) -> Path:
    """The checkpoints of a question that waits for a human."""
    context = amplified(store, ScriptedClient(echo), lambda *_: Defer({"question": "who?"})).context
    await store.add_question({"id": "q", "text": "who?", "split": "asked"})
    async with open_interruptible_run(context, folder / "c.db") as run:
        assert (await run.ask("who?", "q")).pending
    return folder / "c.db"


def plant(path: Path, kind: str, value: bytes) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE checkpoints SET type = ?, checkpoint = ?", (kind, value))
        connection.execute("UPDATE writes SET type = ?, value = ?", (kind, value))
        connection.commit()


def test_the_payload_runs_under_the_default_of_langgraph(tmp_path: Path) -> None:
    """So that the tests below test something."""
    made = tmp_path / "made"
    JsonPlusSerializer().loads_typed(("msgpack", msgpack_call("os", "mkdir", str(made))))
    assert made.is_dir()


@pytest.mark.parametrize("kind", ["msgpack", "json", "pickle"])
async def test_a_crafted_checkpoint_calls_nothing(
    tmp_path: Path, store: TraceStore, kind: str
) -> None:
    made = tmp_path / "made"
    path = await paused(tmp_path, store)
    payload = {
        "msgpack": msgpack_call("os", "mkdir", str(made)),
        "json": json_call(str(made)),
        "pickle": pickle.dumps(Touches(made)),
    }[kind]
    plant(path, kind, payload)
    async with open_checkpoints(path) as saver:
        if kind == "msgpack":
            read = await saver.aget_tuple(CONFIG)
            assert read is not None and cast(Any, read.checkpoint) == {"state": str(made)}
        else:
            with pytest.raises(UsageError, match=f"c.db holds a '{kind}', which is not read"):
                await saver.aget_tuple(CONFIG)
    assert not made.exists()


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x93\x01"])
async def test_a_damaged_checkpoint_is_told_with_the_remedy(
    tmp_path: Path, store: TraceStore, value: bytes
) -> None:
    path = await paused(tmp_path, store)
    plant(path, "msgpack", value)
    async with open_checkpoints(path, "delete it") as saver:
        with pytest.raises(UsageError, match=r"c.db holds a damaged checkpoint: .*; delete it"):
            await saver.aget_tuple(CONFIG)
