"""Random worlds to amplify in: trees of questions, faults and budgets."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from hypothesis import strategies as st

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.overseers.protocol import PASS, ModelContext, OverseerContext
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import (
    Answer,
    Ask,
    ChatClient,
    ChatRequest,
    Completion,
    Exchange,
    Sampling,
    Step,
    SubQuestion,
    TokenLogprob,
)
from reflux.agents.verifiers import RuleChecker, Verdict
from reflux.graphs.amplify.context import AmplifyContext, CheckPolicy, ConcurrencyLimit, Limits
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy

NAMES = "qabcde"
"""First words of the questions. Few, so that subtrees ask the same; later ones lie deeper."""
UNASKABLE = (" ", "e half a pair \ud83d")
ENDS = ("join", "join", "join", "join", "join", "constant", "pass", "raise", "outage")
LEAVES = ("pass", "pass", "pass", "pass", "pass", "pass", "constant", "raise", "outage")
GARBLED = ("", " \n", "{0}", "\x00", "sk-" + "a" * 20, "é" * 50)
MOST_NODES = 150


@dataclass(frozen=True)
class Plan:
    """What one decomposition does with one question: its batches in order, then its end."""

    batches: tuple[Ask, ...] = ()
    end: str = "join"


@dataclass(frozen=True)
class World:
    """Everything that decides how questions are answered, apart from the timing."""

    roots: tuple[str, ...]
    ways: tuple[dict[str, Plan], ...]
    """H's plan for each first word; one dict for each overseer."""
    limits: Limits
    votes: VotePolicy
    salt: int
    faults: int = 0
    """One request in so many fails; 0 for none. The same of the others."""
    garbled: int = 0
    refusals: int = 0
    doubts: int = 0
    wasteful: int = 0
    """Replies that cost far more than others."""
    advice: int = 0
    """One step of H in so many asks X first."""
    concurrency: int = 256
    """Sub-questions of one depth under way at once."""
    confirm: int = 1
    """Attempts that have to agree."""
    same_way: bool = False
    """The first retry takes the same decomposition."""
    examined: int = 0
    """An examiner refuses one answer in so many, and asks X before one verdict in two."""
    outage: int = 0
    """The first so many requests of all fail, whatever they ask."""

    def chance(self, one_in: int, *about: object) -> bool:
        """A coin that falls the same way whenever it is asked about the same."""
        return one_in > 0 and self._number(about) % one_in == 0

    def _number(self, about: object) -> int:
        return crc32(repr((self.salt, about)).encode())

    def reply(self, request: ChatRequest) -> Completion:
        """What X says: decided by the question and the vote alone."""
        asked = (request.messages, request.vote)
        if self.chance(self.faults, "fault", asked):
            raise EndpointError("down")
        said = GARBLED if self.chance(self.garbled, "garbled", asked) else ("a", "b", "c")
        text = said[self._number(asked) % len(said)]
        min_logprob = -1.0 if self.chance(self.doubts, "doubt", asked) else 0.0
        known = (
            ()
            if self.chance(self.garbled, "unknown", asked)
            else (TokenLogprob(text, min_logprob),)
        )
        cost = 50 if self.chance(self.wasteful, "waste", asked) else 2
        return Completion(text, 3, cost, logprobs=known)

    def accepts(self, question: str, answer: str) -> bool:
        """The check."""
        return not self.chance(self.refusals, "refused", question, answer)

    def overseer(self, way: int) -> ScriptedOverseer:
        """An H that knows how far it is by what has been answered.

        Of some questions it asks even where it may not, which leaves them to X.
        """

        def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
            word = question.split()[0]
            plan, answered = self.ways[way][word], len(transcript)
            for batch in plan.batches if may_ask or self.chance(2, "bold", word) else ():
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
            raise EndpointError("no endpoint") if plan.end == "outage" else ValueError("no sum")

        return ScriptedOverseer(f"way-{way}", act)

    def adviser(self, way: int) -> "Advised":
        """The same H, which asks X before some of its steps, and a panel before some others."""
        return Advised(self, self.overseer(way))

    def context(self, client: ChatClient, store: TraceStore) -> AmplifyContext:
        """This world as the graph and the reference see it."""
        return AmplifyContext(
            RecordedClient(client, store),
            "base",
            [
                self.adviser(way) if self.advice else self.overseer(way)
                for way in range(len(self.ways))
            ],
            RuleChecker({"luck": self.accepts}),
            self.limits,
            self.votes,
            concurrency=ConcurrencyLimit(self.concurrency),
            verifiers=[Luck(self)] if self.examined else [],
            checks=CheckPolicy(self.confirm, ("retry",) if self.same_way else ()),
        )


@dataclass(frozen=True)
class Luck:
    """An examiner that refuses by chance, and raises at some questions."""

    world: World

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        asked = (question, answer, len(transcript))
        if self.world.chance(2, "examine", *asked):
            request = ChatRequest(context.model, (("user", f"of {question}"),), Sampling())
            await context.complete(request)
        if self.world.chance(7, "examiner raises", *asked):
            raise KeyError(question)
        return Verdict(not self.world.chance(self.world.examined, "luck", *asked), "luck")


@dataclass(frozen=True)
class Advised:
    """An H whose steps may cost calls; it keeps some back for its later steps."""

    world: World
    h: ScriptedOverseer

    @property
    def name(self) -> str:
        return self.h.name

    @property
    def reserve(self) -> Budget:
        return Budget(1, 10) if self.world.salt % 2 else Budget(0, 0)

    async def act(self, context: OverseerContext) -> Step:
        question, transcript = context.question, context.transcript
        request = ChatRequest(context.model, (("user", f"about {question}"),), Sampling())
        if self.world.chance(self.world.advice, "alone", question, len(transcript)):
            await context.complete(request)
            await context.complete(replace(request, vote=1))
        if self.world.chance(self.world.advice, "panel", question, len(transcript)):
            calls = (
                member.complete(replace(request, vote=2 + index))
                for index, member in enumerate(context.members(2))
            )
            await asyncio.gather(*calls, return_exceptions=True)
        return await self.h.act(context)


_odd = st.sampled_from(["no"] * 24 + ["backwards"] * 4 + ["unaskable"] * 2 + ["needs itself"])


@st.composite
def _batches(draw: st.DrawFn, name: str) -> Ask:
    """1 to 4 sub-questions, most about names further on, which may need those before them."""
    further = NAMES[NAMES.index(name) + 1 :]
    targets = draw(st.lists(st.sampled_from(further), min_size=1, max_size=4))
    return Ask(tuple(draw(_sub_questions(target, i)) for i, target in enumerate(targets)))


@st.composite
def _sub_questions(draw: st.DrawFn, name: str, index: int) -> SubQuestion:
    oddity = draw(_odd)
    if oddity == "unaskable":
        return SubQuestion(draw(st.sampled_from(UNASKABLE)))
    if oddity == "backwards":  # So that one subtree may ask what another does, and the reverse.
        name = draw(st.sampled_from(NAMES))
    needs = tuple(sorted(draw(st.sets(st.integers(0, index - 1), max_size=2)))) if index else ()
    text = " ".join([name, *(f"{{{need}}}" for need in needs)])
    return SubQuestion(text, (*needs, index) if oddity == "needs itself" else needs)


@st.composite
def _plans(draw: st.DrawFn) -> dict[str, Plan]:
    """H's way with every name: the first is always taken apart, the last three never."""
    plans: dict[str, Plan] = {}
    for at, name in enumerate(NAMES):
        least, max_votes = (1, 2) if at == 0 else (0, 2) if at < len(NAMES) - 3 else (0, 0)
        batches = (
            draw(st.lists(_batches(name), min_size=least, max_size=max_votes)) if max_votes else []
        )
        plans[name] = Plan(tuple(batches), draw(st.sampled_from(ENDS if batches else LEAVES)))
    return plans


def _nodes(ways: Sequence[dict[str, Plan]], name: str, limits: Limits, depth: int = 0) -> int:
    """Questions in the largest tree that the limits allow, all attempts of every level counted."""
    if depth > limits.depth or name not in NAMES:
        return 0
    children = [
        sum(_nodes(ways, asked.text[:1], limits, depth + 1)
            for batch in plans[name].batches for asked in batch.subquestions)
        for plans in ways
    ]  # fmt: skip
    return 1 + max(children) * limits.attempts


_rarely = st.sampled_from([False] * 5 + [True])


def _often(draw: st.DrawFn, usual: list[int], rare: list[int]) -> int:
    """One of the usual values, and in one world of six one of the rare."""
    return draw(st.sampled_from(rare if draw(_rarely) else usual))


@st.composite
def worlds(draw: st.DrawFn, *, poor: bool = False, voting: bool = False) -> World:
    """Trees to three levels; most are wide and generous, some starve or fail.

    Args:
        poor: a budget that most trees would exceed.
        voting: several votes on most questions.
    """
    ways = tuple(draw(st.lists(_plans(), min_size=1, max_size=2)))
    roots = draw(st.sampled_from([("q",), ("q", "a"), ("b", "q", "a")]))
    few, little = st.integers(0, 12), st.integers(0, 120)
    limits = Limits(
        depth=_often(draw, [2, 3, 3], [1, 0]),
        fanout=_often(draw, [64], [2]),
        steps=_often(draw, [64], [2, 1]),
        attempts=_often(draw, [2, 3], [1, 0]),
        calls=draw(few) if poor or draw(_rarely) else 1_000,
        tokens=draw(little) if draw(st.booleans() if poor else _rarely) else 1_000_000,
        question_chars=_often(draw, [100_000], [9]),
    )
    while sum(_nodes(ways, root, limits) for root in roots) > MOST_NODES:
        limits = replace(limits, depth=limits.depth - 1)
    return World(
        roots,
        ways,
        limits,
        VotePolicy(
            margin=draw(st.integers(1, 2)), max_votes=draw(st.integers(2 if voting else 1, 4))
        ),
        salt=draw(st.integers(0, 2**32)),
        faults=_often(draw, [0], [3, 8]),
        garbled=_often(draw, [0], [3]),
        refusals=_often(draw, [0, 3, 6], [1, 2]),
        doubts=draw(st.sampled_from([1, 2] if voting else [0, 2])),
        wasteful=_often(draw, [0], [3]),
        advice=_often(draw, [0], [1, 3]),
        confirm=min(_often(draw, [1], [2]), max(1, limits.attempts)),
        same_way=draw(_rarely),
        examined=_often(draw, [0], [2, 4]),
    )
