"""The graph against plain recursion, on random trees, faults, budgets and orders of arrival."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from agents.budget import Budget
from agents.checker import RuleChecker
from agents.errors import EndpointError
from agents.overseer import PASS, ScriptedOverseer
from agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    Exchange,
    Step,
    SubQuestion,
    TokenLogprob,
    step_from_json,
)
from graphs.calls import Caller
from graphs.reference import amplify_reference
from graphs.state import AmplifyContext, Limits, Outcome, tries
from graphs.systems import Amplified
from graphs.traces import TraceStore
from graphs.voting import VotePolicy

ENDS = ("join", "join", "join", "join", "join", "constant", "pass", "raise", "outage")
LEAVES = ("pass", "pass", "pass", "pass", "pass", "constant", "join", "raise", "outage")


@dataclass(frozen=True)
class Script:
    """What one decomposition does with one question: its batches in order, then its end."""

    batches: tuple[Ask, ...] = ()
    end: str = "join"


@dataclass(frozen=True)
class World:
    """Everything that decides how one question is answered, apart from the timing."""

    scripts: tuple[dict[str, Script], ...]
    """By the question's first word; one for each overseer."""
    limits: Limits
    votes: VotePolicy
    salt: int
    faults: int
    """One call in so many fails; 0 for none. The same of refused answers and doubtful votes."""
    refusals: int
    doubts: int

    def chance(self, one_in: int, *about: object) -> bool:
        """A coin that falls the same way whenever it is asked about the same."""
        return one_in > 0 and crc32(repr((self.salt, *about)).encode()) % one_in == 0


def grown(luck: random.Random, ways: int) -> tuple[dict[str, Script], ...]:
    """A tree of questions, and for some of them a second way to take them apart."""
    first: dict[str, Script] = {}
    second: dict[str, Script] = {}

    def asked(parent: str, name: str, index: int, level: int) -> SubQuestion:
        kind = luck.choice(["new"] * 12 + ["ancestor", "empty"])
        if kind != "new":
            return SubQuestion(parent if kind == "ancestor" else " ")
        grow(name, level)
        needs = tuple(i for i in range(index) if luck.random() < 0.3)
        return SubQuestion(" ".join([name, *(f"{{{need}}}" for need in needs)]), needs)

    def grow(name: str, level: int) -> None:
        batches: list[Ask] = []
        for step in range(luck.choice([[1, 2], [0, 1, 2], [0, 1], [0]][level])):
            size = luck.randint(1, 4 - level)
            children = [asked(name, f"{name}{step}{i}", i, level + 1) for i in range(size)]
            batches.append(Ask(tuple(children)))
        first[name] = Script(tuple(batches), luck.choice(ENDS if batches else LEAVES))
        if luck.random() < 0.5:
            alone = [SubQuestion(s.text.split("{")[0]) for b in batches for s in b.subquestions]
            other = tuple(luck.sample(alone, min(2, len(alone))))
            end = luck.choice(ENDS if other else LEAVES)
            second[name] = Script((Ask(other),) if other else (), end)

    grow("q", 0)
    return (first, first | second)[:ways]


def drawn(seed: int) -> World:
    """A world of its own for each seed: most are wide and generous, some starve or fail."""
    luck = random.Random(seed)
    return World(
        grown(luck, luck.randint(1, 2)),
        Limits(
            depth=luck.choice([3, 3, 3, 2, 2, 2, 1, 1, 0]),
            fanout=luck.choice([64, 64, 64, 2]),
            steps=luck.choice([64, 64, 64, 64, 2, 1]),
            attempts=luck.choice([1, 2, 3, 3]),
            calls=luck.choice([1_000, luck.randint(0, 30)]),
            tokens=luck.choice([1_000_000, 1_000_000, luck.randint(0, 200)]),
            question_chars=luck.choice([100_000] * 7 + [9]),
        ),
        VotePolicy(lead=luck.randint(1, 2), most=luck.randint(1, 4)),
        salt=luck.randrange(2**32),
        faults=luck.choice([0, 0, 3, 8]),
        refusals=luck.choice([0, 1, 2, 6]),
        doubts=luck.choice([0, 2]),
    )


def overseer(world: World, way: int) -> ScriptedOverseer:
    """An overseer that knows how far it is by what has been answered.

    Of some questions it asks even where it may not, which leaves them to X.
    """

    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        word = question.split()[0]
        plan, answered = world.scripts[way][word], len(transcript)
        for batch in plan.batches if may_ask or world.chance(2, "bold", word) else ():
            if answered == 0:
                return batch
            answered -= len(batch.subquestions)
        if plan.end == "join":
            if not all(said.answer is None or said.error is None for said in transcript):
                return Answer("best guess")
            # Sub-answers may hold what looks like a place to fill.
            return Answer("+".join(said.answer or "?" for said in transcript) or word)
        if plan.end == "constant":
            return Answer(f"it is {{0}} {word}")
        if plan.end == "pass":
            return PASS
        raise EndpointError("no endpoint") if plan.end == "outage" else ValueError("cannot join")

    return ScriptedOverseer(f"way-{way}", act)


@dataclass
class Shuffled:
    """A client whose replies depend on the request alone, and whose order on luck."""

    world: World
    luck: random.Random
    requests: list[str] = field(default_factory=list[str])

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request.digest("weights"))
        for _ in range(self.luck.randrange(6)):
            await asyncio.sleep(0)
        asked = (request.messages, request.vote)
        if self.world.chance(self.world.faults, "fault", asked):
            raise EndpointError("down")
        text = ("{0}", "a", "b")[crc32(repr((self.world.salt, asked)).encode()) % 3]
        doubt = self.world.chance(self.world.doubts, "doubt", asked)
        return Completion(text, 3, 2, logprobs=(TokenLogprob(text, -1.0 if doubt else 0.0),))

    async def model_digest(self, model: str) -> str:
        return "weights"


def context(world: World, client: Shuffled, store: TraceStore) -> AmplifyContext:
    def accepts(question: str, answer: str) -> bool:
        return not world.chance(world.refusals, "refused", question, answer)

    return AmplifyContext(
        Caller(client, store),
        "base",
        [overseer(world, way) for way in range(len(world.scripts))],
        RuleChecker({"luck": accepts}),
        world.limits,
        world.votes,
    )


def essence(outcome: Outcome) -> tuple[Any, ...]:
    return outcome["answer"], outcome["status"], outcome["spent"]


def calls(store: TraceStore) -> list[dict[str, Any]]:
    columns = "path, step, attempt, vote, request_digest, error"
    rows = store.select(
        f"SELECT {columns}, prompt_tokens + completion_tokens AS tokens"  # noqa: S608
        " FROM calls WHERE kind = 'model' ORDER BY path, attempt, step, vote"
    )
    return [dict(row) for row in rows]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
async def test_the_graph_does_what_plain_recursion_does_and_replays_it(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = drawn(seed)
    note(str(world))
    folder: Path = tmp_path_factory.mktemp("stores")
    graph, reference = TraceStore(folder / "graph.db"), TraceStore(folder / "reference.db")
    client, plain = (Shuffled(world, random.Random(seed)) for _ in range(2))
    outcome = await Amplified(context(world, client, graph)).answer("q", "1")
    expected = await amplify_reference(context(world, plain, reference), "q", "1")
    assert essence(outcome) == essence(expected)

    made = calls(graph)
    assert made == calls(reference)
    assert Counter(client.requests) == Counter(row["request_digest"] for row in made)
    spend_within_shares(graph, made, world.limits)

    replay = Shuffled(world, random.Random(seed + 1))
    assert await Amplified(context(world, replay, graph)).answer("q", "1") == outcome
    failed = [row["request_digest"] for row in made if row["error"]]
    assert Counter(replay.requests) == Counter(failed)
    graph.close()
    reference.close()


def spend_within_shares(store: TraceStore, made: list[dict[str, Any]], limits: Limits) -> None:
    """Each call was made while its question had a call and a token of its share left.

    The shares follow from the log: each batch splits what its question had left by then.
    """
    paid = [row for row in made if not row["error"]]

    def own_attempt(path: str, recorded: int) -> int:
        """A model call's own attempt: its row numbers it together with those above it."""
        above = 0
        for part in path.split("/")[1:]:
            above = tries(above, int(part.split(".")[0]), limits)
        return 0 if recorded == above else recorded - tries(above, 0, limits)

    def left(path: str, attempt: int, step: int, vote: int = 0) -> Budget:
        """What the question at `path` has before the vote of a step; attempts are its own."""
        spent: list[int] = []
        for row in paid:
            if row["path"] == path:
                at = (own_attempt(path, row["attempt"]), row["step"], row["vote"])
            elif row["path"].startswith(f"{path}/"):
                below = row["path"][len(path) + 1 :].split("/")[0].split(".")
                at = (int(below[0]), int(below[1]), -1)
            else:
                continue
            spent += [row["tokens"]] if at < (attempt, step, vote) else []
        return shares[path].minus(len(spent), sum(spent))

    shares = {"": Budget(limits.calls, limits.tokens)}
    steps = store.select("SELECT * FROM calls WHERE role = 'overseer' ORDER BY length(path)")
    for taken in list(steps):
        path, number = taken["path"], taken["step"]
        own = taken["attempt"]
        step = step_from_json(json.loads(taken["completion"]))
        if isinstance(step, Ask) and step.subquestions:
            split = left(path, own, number, -1).split(len(step.subquestions))
            shares |= {f"{path}/{own}.{number}.{i}": share for i, share in enumerate(split)}
    for row in paid:
        own = own_attempt(row["path"], row["attempt"])
        assert not left(row["path"], own, row["step"], row["vote"]).empty
    for path, share in shares.items():
        below = [r for r in paid if r["path"] == path or r["path"].startswith(f"{path}/")]
        assert len(below) <= share.calls
