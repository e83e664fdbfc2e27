"""Decompose only where it pays: a router that has learned from logged questions whether X alone
answers one as well as the amplified system would (ADaPT, arXiv 2311.05772, decomposes on need).

Two looks, the cheap one first. Past questions that are alike in wording tell without any call,
where they are many and clear. Otherwise X's own direct answer is asked for, one call, and a
logistic regression on its least certain token and on the like questions' past decides. A direct
answer that is taken costs no further call: asked again by the leaf, it comes from the cache.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reflux.agents.budget import Budget
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import (
    Follow,
    Overseer,
    OverseerContext,
    follow_of,
    reserve_of,
)
from reflux.agents.types import Ask, ChatRequest, Step

Vector = NDArray[np.float64]
GRID = tuple((n, like) for n in (16, 32, 48) for like in (0.3, 0.45, 0.6))
"""Numbers of like questions, and least likenesses, that `Router.fit` chooses from."""
CALL_PRICE = 0.02
"""Right answers that one call is worth, in that choice."""
UNKNOWN = -1.0
"""Log-probability that stands in where the endpoint gave none."""


@dataclass(frozen=True)
class Past:
    """How one earlier question went, both ways."""

    question: str
    logprob: float | None
    """Of the least certain token of X's direct answer, in nats."""
    direct: bool
    """X alone was right, or agreed with what was accepted."""
    amplified: bool


@dataclass(frozen=True)
class Route:
    """What the router says of one question."""

    decompose: bool
    direct: float
    """Probability that X alone is right."""
    amplified: float
    seen: str
    """`like` where past questions told, `answer` where X's own answer was looked at."""


@dataclass(frozen=True)
class Router:
    """Fitted on past questions; a question's route depends on nothing else."""

    past: tuple[Past, ...]
    weights: tuple[tuple[float, ...], tuple[float, ...]]
    """Of the two regressions, direct and amplified: bias, then one a feature."""
    neighbours: int = 16
    """Like questions that are looked at."""
    like: float = 0.6
    """Cosine likeness of letter triples from which on a past question counts as like."""
    margin: float = 0.0
    """Probability by which decomposing must be better to be worth its calls."""

    @staticmethod
    def fit(past: Sequence[Past], **options: Any) -> "Router":
        """Learn from questions that were answered both ways.

        How many like questions are looked at, and how like they must be, is chosen among
        `GRID` by leaving each past question out in turn, unless `options` say it.

        Raises:
            UsageError: fewer than 20 of them.
        """
        if len(past) < 20:
            raise UsageError(f"a router needs 20 past questions or more, there are {len(past)}")
        first = Router(tuple(past), ((0.0,) * 4, (0.0,) * 4), **options)
        tried = [first]
        if not {"neighbours", "like"} & options.keys():
            tried = [replace(first, neighbours=n, like=like) for n, like in GRID]
        return max((router._fitted() for router in tried), key=lambda found: found[1])[0]

    def _fitted(self) -> tuple["Router", float]:
        """The router with its regressions, and what it is worth: right answers to past questions,
        each routed by the others, less what the calls cost.

        A question that is decomposed is taken to cost twice a direct one: no tree is known here.
        """
        likely = [self.likely(p.question, without=at) for at, p in enumerate(self.past)]
        rows = [
            self.features(p.question, p.logprob, shares)
            for p, shares in zip(self.past, likely, strict=True)
        ]
        x = np.array(rows, dtype=np.float64)
        direct, amplified = (
            logistic(x, np.array([getattr(p, arm) for p in self.past], dtype=np.float64))
            for arm in ("direct", "amplified")
        )
        router, worth = replace(self, weights=(direct, amplified)), 0.0
        for p, shares in zip(self.past, likely, strict=True):
            route = router._clear(shares)
            calls = 0 if route else 1
            route = route or router._looked(p.question, p.logprob, shares)
            calls += 2 if route.decompose else 1 - calls
            worth += (p.amplified if route.decompose else p.direct) - CALL_PRICE * calls
        return router, worth

    def before(self, question: str) -> Route | None:
        """The route where past questions alone are clear about it; None where they are not."""
        return self._clear(self.likely(question))

    def _clear(self, likely: tuple[int, float, float]) -> Route | None:
        n, direct, amplified = likely
        if n < self.neighbours:
            return None
        gap = amplified - direct
        # Two standard errors of a difference of two shares, never quite zero.
        doubt = 2 * math.sqrt((direct * (1 - direct) + amplified * (1 - amplified) + 0.02) / n)
        if abs(gap - self.margin) < doubt and gap != 0:
            return None
        return Route(gap > self.margin, direct, amplified, "like")

    def after(self, question: str, logprob: float | None) -> Route:
        """The route of a question whose direct answer is known."""
        return self._looked(question, logprob, self.likely(question))

    def _looked(
        self, question: str, logprob: float | None, likely: tuple[int, float, float]
    ) -> Route:
        row = np.array([self.features(question, logprob, likely)])
        direct, amplified = (float(_sigmoid(row @ np.array(w))[0]) for w in self.weights)
        return Route(amplified > direct + self.margin, direct, amplified, "answer")

    def features(
        self, question: str, logprob: float | None, likely: tuple[int, float, float]
    ) -> tuple[float, ...]:
        """Bias, X's least certain token, and how like questions went, both ways."""
        sure = math.exp(UNKNOWN if logprob is None else logprob)
        _, direct, amplified = likely
        return 1.0, 2 * sure - 1, 2 * direct - 1, 2 * amplified - 1

    def likely(self, question: str, without: int = -1) -> tuple[int, float, float]:
        """(like past questions, share that X alone had right, share of the amplified system).

        With none the shares are one half; each share begins with one question half right.
        """
        likeness = self._triples @ self._vector(question)
        if without >= 0:
            likeness[without] = -1.0
        order = np.argsort(-likeness, kind="stable")[: self.neighbours]
        near = [self.past[int(i)] for i in order if likeness[int(i)] >= self.like]
        n = len(near)
        direct = (sum(p.direct for p in near) + 0.5) / (n + 1)
        amplified = (sum(p.amplified for p in near) + 0.5) / (n + 1)
        return n, direct, amplified

    @cached_property
    def _words(self) -> dict[str, int]:
        found = dict.fromkeys(t for p in self.past for t in triples(p.question))
        return {triple: at for at, triple in enumerate(found)}

    @cached_property
    def _triples(self) -> Vector:
        """(past questions, letter triples), each row of length one."""
        return np.stack([self._vector(p.question) for p in self.past])

    def _vector(self, question: str) -> Vector:
        found = np.zeros(len(self._words))
        for triple, count in triples(question).items():
            if (at := self._words.get(triple)) is not None:
                found[at] = math.sqrt(count)
        return found / max(1e-9, float(np.linalg.norm(found)))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)) + "\n")

    @staticmethod
    def load(path: Path) -> "Router":
        """Read what `save` wrote.

        Raises:
            UsageError: there is none, or it is something else.
        """
        try:
            body = json.loads(path.read_text())
            body["past"] = tuple(Past(**each) for each in body["past"])
            body["weights"] = tuple(map(tuple, body["weights"]))
            return Router(**body)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{path} holds no router: {error}; fit it again") from error


def triples(text: str) -> Counter[str]:
    """Letter triples of a text; every digit counts as one and the same, for what is asked of two
    numbers is alike."""
    plain = re.sub(r"\d", "0", f"  {text.lower()} ")
    return Counter(plain[i : i + 3] for i in range(len(plain) - 2))


def _sigmoid(x: Vector) -> Vector:
    return 1 / (1 + np.exp(-np.clip(x, -30.0, 30.0)))


def logistic(x: Vector, y: Vector, ridge: float = 1.0, steps: int = 25) -> tuple[float, ...]:
    """Weights (features) of a logistic regression of y (n) on x (n, features), by Newton's method;
    `ridge` holds all but the bias back."""
    held = ridge * np.eye(x.shape[1])
    held[0, 0] = 1e-6
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = _sigmoid(x @ weights)
        slope = x.T @ (y - p) - held @ weights
        bend = (x * (p * (1 - p))[:, None]).T @ x + held
        step = np.linalg.solve(bend, slope)
        weights = weights + step
        if float(np.abs(step).max()) < 1e-9:
            break
    return tuple(weights.tolist())


@dataclass(frozen=True)
class Routed:
    """An overseer that acts only on questions that the router expects to gain from decomposing.

    Any other question goes to the agent undivided, and the step's note says why.
    """

    inner: Overseer
    router: Router
    probe: Callable[[str], ChatRequest]
    """The agent's first direct call on a question, identical to the one of the direct answer
    (`reflux.graphs.amplify.sampling.first_request`)."""

    @property
    def name(self) -> str:
        """Recorded with each step."""
        return f"routed:{self.inner.name}"

    @property
    def reserve(self) -> Budget:
        """The inner overseer's."""
        return reserve_of(self.inner)

    @property
    def follow(self) -> Follow | None:
        """The inner overseer's."""
        return follow_of(self.inner)

    async def act(self, context: OverseerContext) -> Step:
        """Route a new question; later steps on a question follow its first."""
        if context.may_ask and not context.transcript:
            route = self.router.before(context.question)
            if route is None:
                reply = await context.complete(self.probe(context.question))
                route = self.router.after(context.question, reply.min_logprob)
            if not route.decompose:
                return Ask((), f"router: X alone, {route.direct:.2f} against "
                               f"{route.amplified:.2f} decomposed ({route.seen})")  # fmt: skip
        return await self.inner.act(context)
