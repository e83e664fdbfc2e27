"""A question waits for persons through restarts, and nothing that was finished is done again."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import HumanOverseer
from reflux.agents.types import Ask, step_to_json
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.interrupts import Answered, InterruptibleRun, open_interruptible_run
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from tests.support.deferring import overseer, plain

TREE = {"root": ["a", "mid", "late?"], "mid": ["b", "deep", "c"], "deep": ["early?", "d"]}


@asynccontextmanager
async def day(
    folder: Path, client: ScriptedClient, tree: Mapping[str, Sequence[str]] = TREE
) -> AsyncIterator[InterruptibleRun]:
    """A process that comes and goes; its files stay."""
    store = TraceStore(folder / "traces.db")
    context = AmplifyContext(
        RecordedClient(client, store), "base", [overseer(tree)], limits=Limits(depth=4)
    )
    async with open_interruptible_run(context, folder / "checkpoints.db") as interruptible_run:
        yield interruptible_run
    store.close()


def forms(progress: Answered) -> dict[str, str]:
    return {each.form["about"]: each.id for each in progress.pending}


def loud() -> ScriptedClient:
    return ScriptedClient(lambda request: request.messages[-1][1].upper())


async def test_two_that_wait_deep_in_the_tree_are_answered_after_restarts_in_reverse_order(
    tmp_path: Path,
) -> None:
    client = loud()
    async with day(tmp_path, client) as interruptible_run:
        progress = await interruptible_run.ask("root", "q")
        assert progress.outcome is None
        assert {each.path for each in progress.pending} == {"/0.0.1/0.0.1/0.0.0", "/0.0.2"}
    asked = Counter(request.messages[-1][1] for request in client.requests)
    assert asked == Counter("abcd")
    for name in ("late", "early"):
        async with day(tmp_path, client) as interruptible_run:
            waiting = forms(await interruptible_run.look("q"))
            progress = await interruptible_run.reply("q", {waiting[f"{name}?"]: plain(name)})
    assert progress.outcome is not None
    assert progress.outcome["answer"] == "(A (B (early D) C) late)"
    assert Counter(request.messages[-1][1] for request in client.requests) == asked
    async with day(tmp_path, client) as interruptible_run:
        again = await interruptible_run.ask("root", "q")
    assert (again.outcome, again.pending) == (progress.outcome, ())


async def test_both_can_be_answered_at_once(tmp_path: Path) -> None:
    client = loud()
    async with day(tmp_path, client) as interruptible_run:
        waiting = forms(await interruptible_run.ask("root", "q"))
        replies = {waiting["late?"]: plain("2"), waiting["early?"]: plain("1")}
        done = await interruptible_run.reply("q", replies)
    assert done.outcome is not None
    assert done.outcome["answer"] == "(A (B (1 D) C) 2)"


async def test_asking_again_begins_nothing_anew(tmp_path: Path) -> None:
    client = loud()
    async with day(tmp_path, client) as interruptible_run:
        first = await interruptible_run.ask("root", "q")
        assert await interruptible_run.ask("root", "q") == first
    assert len(client.requests) == 4


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"kind": "approve"}, "there is no proposal to approve"),
        ({"kind": "anser", "text": "x"}, "is not a step"),
        ({"kind": "answer"}, "is not a step"),
        ({"kind": "ask", "subquestions": [{"text": "b"}]}, "is not a step"),
        ({"kind": "ask", "subquestions": [{"text": "b", "needs": ["a"]}]}, "is not a step"),
        ("an answer", "is not a step"),
    ],
)
async def test_a_reply_that_is_no_step_is_refused_and_the_question_goes_on_waiting(
    tmp_path: Path, reply: Any, says: str
) -> None:
    async with day(tmp_path, loud(), {}) as interruptible_run:
        (waits,) = (await interruptible_run.ask("root?", "q")).pending
        with pytest.raises(UsageError, match=says):
            await interruptible_run.reply("q", {waits.id: reply})
    async with day(tmp_path, loud(), {}) as interruptible_run:
        assert (await interruptible_run.look("q")).pending == (waits,)
        done = await interruptible_run.reply("q", {waits.id: plain("so")})
    assert done.outcome is not None
    assert done.outcome["answer"] == "so"


async def test_a_person_who_may_not_ask_any_deeper_is_told_so(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db")
    limits = Limits(depth=0)
    context = AmplifyContext(
        RecordedClient(loud(), store), "base", [HumanOverseer()], limits=limits
    )
    async with open_interruptible_run(context, tmp_path / "checkpoints.db") as interruptible_run:
        (waits,) = (await interruptible_run.ask("root", "q")).pending
        asks = step_to_json(Ask.of("a", "b"))
        with pytest.raises(UsageError, match=r"as deep as sub-questions go \(limits.depth\)"):
            await interruptible_run.reply("q", {waits.id: asks})
        done = await interruptible_run.reply("q", {waits.id: step_to_json(PASS)})
    store.close()
    assert done.outcome is not None
    assert done.outcome["answer"] == "ROOT"


async def test_a_damaged_file_of_checkpoints_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "checkpoints.db").write_bytes(b"no database" * 1_000)
    with pytest.raises(UsageError, match=r"checkpoints.db is not a whole database.*restore it"):
        async with day(tmp_path, loud()) as interruptible_run:
            await interruptible_run.ask("root", "q")


async def test_a_reply_to_nobody_is_refused_with_what_waits(tmp_path: Path) -> None:
    async with day(tmp_path, loud()) as interruptible_run:
        await interruptible_run.ask("root", "q")
        with pytest.raises(UsageError, match="nothing waits under xyz; pending: "):
            await interruptible_run.reply("q", {"xyz": plain("?")})
        with pytest.raises(UsageError, match="there is no question 'p' to resume"):
            await interruptible_run.look("p")
