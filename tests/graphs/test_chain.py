"""Chains: every link voted on, recorded before it counts, and never walked twice."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.budget import Price
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.overseers.protocol import PASS, OverseerContext
from reflux.agents.types import (
    Answer,
    Ask,
    Chain,
    ChatRequest,
    Step,
    step_from_json,
    step_to_json,
)
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Origin
from reflux.graphs.evals.answers import Ledger
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import rejecting
from tests.support.overriding import override
from tests.support.reference import amplify_reference

ASKED = Origin("run", 0, "amplified", "counting", "train")
POLICY = VotePolicy(min_logprob=None, rule=AheadBy(2, 9))


class Counting:
    """An H that counts: each question is a number, its right answer the next."""

    name = "counting"

    def __init__(self, max_votes: int, *, below: bool = False) -> None:
        self.max_votes = max_votes
        self.below = below
        self.followed: list[tuple[str, str]] = []

    async def act(self, context: OverseerContext) -> Step:
        question, transcript = context.question, context.transcript
        if not context.may_ask:
            return PASS
        if self.below and question == "root":
            if transcript:
                return Answer("+".join(str(said.answer) for said in transcript))
            return Ask.of("one", "two")
        return Chain("0")

    def follow(self, asked: str, answer: str) -> str | Answer:
        self.followed.append((asked, answer))
        return Answer(f"counted to {answer}") if int(answer) >= self.max_votes else answer


def counting(error: float = 0.0, seed: int = 0) -> Callable[[ChatRequest], str]:
    """Copies that say the next number, and now and then the one after."""

    def reply(request: ChatRequest) -> str:
        asked = request.messages[-1][1]
        wrong = random.Random(f"{seed}:{asked}:{request.vote}").random() < error
        return str(int(asked) + 1 + wrong)

    return reply


def context(
    store: TraceStore, client: ScriptedClient, h: Counting, **more: object
) -> AmplifyContext:
    made = AmplifyContext(
        RecordedClient(client, store), "base", [h], votes=POLICY, limits=Limits(depth=2)
    )
    return replace(made, **more)  # type: ignore[arg-type]


async def counted(ctx: AmplifyContext) -> Outcome:
    await ctx.recorded_client.store.add_question({"id": "q", "text": "root", **vars(ASKED)})
    return await Amplified(ctx).answer("root", "q")


def links(store: TraceStore) -> list[tuple[int, int, str | None, str, str | None]]:
    rows = store.select("SELECT number, batch, asked, votes, answer FROM links")
    return [tuple(row) for row in rows]


def test_a_chain_is_read_back_as_it_was_written() -> None:
    assert step_from_json(step_to_json(Chain("0"))) == Chain("0")


async def test_each_link_is_made_of_the_last_answer(store: TraceStore) -> None:
    client, h = ScriptedClient(counting()), Counting(4)
    outcome = await counted(context(store, client, h))
    assert (outcome["answer"], outcome["status"]) == ("counted to 4", "unchecked")
    assert outcome["spent"]["calls"] == len(client.requests) == 2 * 4
    assert h.followed == [("0", "1"), ("1", "2"), ("2", "3"), ("3", "4")]
    # Where all agree, that is what is kept.
    assert links(store)[0] == (0, 0, "0", '["1", 2]', "1")


async def test_a_ledger_counts_the_votes_on_links(store: TraceStore) -> None:
    client = ScriptedClient(counting())
    outcome = await counted(context(store, client, Counting(4)))
    spent = Ledger(store, {"base": Price(2.0, 2.0)}).of("q")
    assert spent["calls"] == outcome["spent"]["calls"] == 8
    assert spent["tokens"] == outcome["spent"]["tokens"] > 0
    assert spent["cost"] == pytest.approx(spent["tokens"] * 2.0 / 1e6)
    # Which tokens were the prompt's is not kept of a link.
    assert Ledger(store, {"base": Price(2.0, 5.0)}).of("q")["cost"] is None


async def test_votes_that_differ_are_kept_one_by_one(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        asked = request.messages[-1][1]
        return "7" if asked == "1" and request.vote == 0 else str(int(asked) + 1)

    outcome = await counted(context(store, ScriptedClient(reply), Counting(3)))
    assert outcome["answer"] == "counted to 3"
    batches = [row for row in links(store) if row[0] == 1]
    assert batches == [
        (1, 0, "1", '[["7", true, ""], ["2", true, ""]]', None),
        (1, 1, None, '["2", 2]', "2"),
    ]


async def test_chains_below_the_root_run_side_by_side(store: TraceStore) -> None:
    h = Counting(3, below=True)
    outcome = await counted(context(store, ScriptedClient(counting()), h))
    assert outcome["answer"] == "counted to 3+counted to 3"
    paths = {row["path"] for row in store.select("SELECT DISTINCT path FROM links")}
    assert paths == {"/0.0.0", "/0.0.1"}


async def test_a_chain_that_nobody_can_follow_fails_with_a_reason(store: TraceStore) -> None:
    class Blind(Counting):
        follow = None  # type: ignore[assignment]

    outcome = await counted(context(store, ScriptedClient(counting()), Blind(3)))
    assert outcome["status"] == "failed"
    assert "no `follow`" in str(outcome["error"])


async def test_a_link_without_an_accepted_vote_ends_the_chain(store: TraceStore) -> None:
    ctx = context(
        store, ScriptedClient(counting()), Counting(5), checker=rejecting("3"),
        limits=Limits(depth=2, attempts=1),
    )  # fmt: skip
    outcome = await counted(ctx)
    assert outcome["status"] == "failed"
    assert "link 2" in str(outcome["error"])


async def test_the_budget_ends_a_chain(store: TraceStore) -> None:
    client = ScriptedClient(counting())
    ctx = context(store, client, Counting(99), limits=Limits(depth=2, calls=7))
    outcome = await counted(ctx)
    assert outcome["status"] == "over_budget"
    assert outcome["spent"]["calls"] == len(client.requests) == 7


async def test_another_model_does_not_go_on_with_a_chain(store: TraceStore) -> None:
    ctx = context(store, ScriptedClient(counting()), Counting(2))
    await counted(ctx)
    with pytest.raises(ReplayError, match="another model"):
        await counted(replace(ctx, model="other"))


class Stop(Exception):
    """The process ends here."""


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.3), st.integers(1, 60))
def test_a_chain_that_breaks_off_anywhere_goes_on_as_if_undisturbed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, error: float, until: int
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    whole, made = asyncio.run(_alone(folder / "whole.db", seed, error))
    broken, first, second = asyncio.run(_broken(folder / "broken.db", seed, error, until))
    assert {**broken, "spent": 0} == {**whole, "spent": 0}
    assert told(folder / "broken.db") == told(folder / "whole.db")
    # What was in flight, and no more, is asked again.
    assert made <= first + second <= made + 9


def told(path: Path) -> list[tuple[int, int, str]]:
    """What is recorded of whole chains: links, disputed ones, the last question."""
    store = TraceStore(path)
    rows = store.select(
        "SELECT detail ->> 'links', detail ->> 'disputed', detail ->> 'last' FROM judgements"
        " WHERE kind='chain'"
    )
    found = [tuple(row) for row in rows]
    store.close()
    return found


async def _alone(path: Path, seed: int, error: float) -> tuple[Outcome, int]:
    store, client = TraceStore(path), ScriptedClient(counting(error, seed))
    outcome = await counted(context(store, client, Counting(12)))
    store.close()
    return outcome, len(client.requests)


async def _broken(path: Path, seed: int, error: float, until: int) -> tuple[Outcome, int, int]:
    right = counting(error, seed)

    def reply(request: ChatRequest) -> str:
        if len(client.requests) > until:
            raise Stop
        return right(request)

    store, client = TraceStore(path), ScriptedClient(reply)
    with contextlib.suppress(Stop):
        await counted(context(store, client, Counting(12)))
    store.close()
    again, fresh = TraceStore(path), ScriptedClient(right)
    outcome = await counted(context(again, fresh, Counting(12)))
    again.close()
    return outcome, min(len(client.requests), until), len(fresh.requests)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.4), st.booleans(), st.integers(0, 5))
def test_the_graph_walks_as_plain_recursion_does(
    tmp_path_factory: pytest.TempPathFactory, seed: int, error: float, below: bool, faults: int
) -> None:
    """Wrong counts are refused by the check one time in two; some calls fail."""
    right = counting(error, seed)

    def reply(request: ChatRequest) -> str:
        chance = random.Random(f"{seed}:{request.messages[-1][1]}:{request.vote}:fault")
        if chance.random() < faults / 100:
            raise EndpointError("down")
        return right(request)

    async def both(folder: Path) -> tuple[Outcome, Outcome]:
        made: list[Outcome] = []
        for name in ("graph", "plain"):
            store = TraceStore(folder / f"{name}.db")
            await store.add_question({"id": "q", "text": "root", **vars(ASKED)})
            ctx = context(store, ScriptedClient(reply), Counting(6, below=below))
            if name == "graph":
                made.append(await Amplified(ctx).answer("root", "q"))
            else:
                made.append(await amplify_reference(ctx, "root", "q"))
            store.close()
        return made[0], made[1]

    graph, plain = asyncio.run(both(tmp_path_factory.mktemp("both")))
    assert (graph["answer"], graph["status"]) == (plain["answer"], plain["status"])
    assert graph["spent"] == plain["spent"]


async def test_a_revision_takes_the_links_that_were_walked_before_it(store: TraceStore) -> None:
    client = ScriptedClient(counting())
    ctx = context(store, client, Counting(4, below=True))
    first = await counted(ctx)
    walked, before = len(client.requests), len(links(store))
    revised = await override(ctx, "q", "/0.0.0", "mine")
    assert revised.outcome is not None
    assert (first["answer"], revised.outcome["answer"]) == (
        "counted to 4+counted to 4",
        "mine+counted to 4",
    )
    assert len(client.requests) == walked
    assert revised.outcome["spent"]["calls"] == revised.outcome["spent"]["cached"]
    node = next(n for n in load_tree(store, revised.id).walk() if n.path == "/0.0.1")
    assert node.chain is not None and node.chain["links"] == 4
    assert len(links(store)) == before + before // 2  # Those of one chain, a second time.


async def test_a_chain_that_is_asked_again_is_walked_with_fresh_votes(store: TraceStore) -> None:
    client = ScriptedClient(counting())
    ctx = context(store, client, Counting(4, below=True))
    await counted(ctx)
    client.requests.clear()
    await override(ctx, "q", "/0.0.0")
    asked = [request.vote for request in client.requests]
    assert len(asked) == 2 * 4 and min(asked) > 9
