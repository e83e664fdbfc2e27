"""Decompose only if it pays: a router predicts from logged questions whether the agent alone
answers a question as well as the amplified system (ADaPT, arXiv 2311.05772).

It decides in two stages. If there are enough similar past questions with a clear result, they
decide without a call. Otherwise the agent answers directly, in one call, and a logistic regression
on its least certain token and on the similar questions decides. A direct answer that is accepted
costs no further call, because the repeated request comes from the cache.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reflux.agents.errors import UsageError
from reflux.agents.overseers.nearness import TrigramIndex, Vector
from reflux.agents.overseers.protocol import OverseerContext, WrappedOverseer
from reflux.agents.types import Ask, ChatRequest, Step

GRID = tuple((n, like) for n in (16, 32, 48) for like in (0.3, 0.45, 0.6))
"""(`neighbours`, `like`) pairs that `Router.fit` chooses from."""
CALL_PRICE = 0.02
"""Cost of one call in that choice, in right answers."""
MIN_PAST = 20
"""Questions that a router is fitted on, at least."""
UNKNOWN = -1.0
"""Log-probability assumed if the endpoint returned none, in nats."""


Similar = tuple[int, float, float]
"""(number of similar past questions, share right directly, share right amplified)."""


@dataclass(frozen=True)
class Past:
    """The result of an earlier question, direct and amplified."""

    question: str
    logprob: float | None
    """Log-probability of the least certain token of the direct answer, in nats."""
    direct: bool
    """The agent alone was right, or agreed with the accepted answer."""
    amplified: bool


@dataclass(frozen=True)
class Route:
    """The router's decision on one question."""

    decompose: bool
    direct: float
    amplified: float
    seen: str
    """`like` if similar past questions decided, `answer` if the direct answer did."""


@dataclass(frozen=True)
class Router:
    """A router fitted on past questions; a question's route depends on nothing else."""

    past: tuple[Past, ...]
    weights: tuple[tuple[float, ...], tuple[float, ...]]
    """Of the direct and the amplified regression: bias, then one for each feature."""
    neighbours: int = 16
    like: float = 0.6
    """Minimum cosine similarity of letter trigrams of a similar question."""
    margin: float = 0.0
    """Minimum gain in probability for which decomposing is worth its calls."""

    @staticmethod
    def fit(past: Sequence[Past], **options: Any) -> "Router":
        """Fit on questions that were answered both ways.

        `neighbours` and `like` are chosen from `GRID` by leave-one-out, unless `options` set one.

        Raises:
            UsageError: there are fewer than 20 past questions.
        """
        if len(past) < MIN_PAST:
            raise UsageError(
                f"a router needs {MIN_PAST} past questions or more, there are {len(past)}"
            )
        router = Router(tuple(past), ((0.0,) * 4, (0.0,) * 4), **options)
        candidates = [router]
        if not {"neighbours", "like"} & options.keys():
            candidates = [replace(router, neighbours=n, like=like) for n, like in GRID]
        fitted = [candidate._fitted() for candidate in candidates]
        return max(fitted, key=lambda pair: pair[1])[0]

    def _fitted(self) -> tuple["Router", float]:
        """The router with its regressions, and its value: right answers to past questions, each
        routed by the others, minus the cost of the calls.

        A decomposed question is assumed to cost two calls, because no tree is known here.
        """
        results = [self.similar(p.question, without=index) for index, p in enumerate(self.past)]
        known = list(zip(self.past, results, strict=True))
        x = np.array([_features(p.logprob, similar) for p, similar in known], dtype=np.float64)
        direct = logistic(x, np.array([p.direct for p in self.past], dtype=np.float64))
        amplified = logistic(x, np.array([p.amplified for p in self.past], dtype=np.float64))
        router, value = replace(self, weights=(direct, amplified)), 0.0
        for p, similar in known:
            route = router.before(similar)
            calls = 0 if route else 1
            route = route or router.after(p.logprob, similar)
            calls += 2 if route.decompose else 1 - calls
            value += (p.amplified if route.decompose else p.direct) - CALL_PRICE * calls
        return router, value

    def before(self, similar: Similar) -> Route | None:
        """The route by past questions alone; None if they are too few or not clear."""
        n, direct, amplified = similar
        if n < self.neighbours:
            return None
        gap = amplified - direct
        # Two standard errors of a difference of two shares, never quite zero.
        doubt = 2 * math.sqrt((direct * (1 - direct) + amplified * (1 - amplified) + 0.02) / n)
        if abs(gap - self.margin) < doubt and gap != 0:
            return None
        return Route(gap > self.margin, direct, amplified, "like")

    def after(self, logprob: float | None, similar: Similar) -> Route:
        """The route by the direct answer's log-probability and by past questions."""
        row = np.array([_features(logprob, similar)])
        direct, amplified = (float(_sigmoid(row @ np.array(w))[0]) for w in self.weights)
        return Route(amplified > direct + self.margin, direct, amplified, "answer")

    def similar(self, question: str, without: int = -1) -> Similar:
        """The results of similar past questions, leaving out the one at index `without`.

        Each share counts one extra question as half right, so it is one half without any.
        """
        likeness = self._index.likeness(question)
        if without >= 0:
            likeness[without] = -1.0
        order = np.argsort(-likeness, kind="stable")[: self.neighbours]
        near = [self.past[int(i)] for i in order if likeness[int(i)] >= self.like]
        n = len(near)
        direct = (sum(p.direct for p in near) + 0.5) / (n + 1)
        amplified = (sum(p.amplified for p in near) + 0.5) / (n + 1)
        return n, direct, amplified

    @cached_property
    def _index(self) -> TrigramIndex:
        return TrigramIndex([past.question for past in self.past])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n")

    @staticmethod
    def load(path: Path) -> "Router":
        """Read a file that `save` wrote.

        Raises:
            UsageError: the file does not exist, or holds something else.
        """
        try:
            body = json.loads(path.read_text())
            body["past"] = tuple(Past(**each) for each in body["past"])
            body["weights"] = tuple(map(tuple, body["weights"]))
            return Router(**body)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{path} does not hold a router: {error}; fit it again") from error


def _features(logprob: float | None, similar: Similar) -> tuple[float, ...]:
    """Bias, the least certain token, and the results of similar questions, both ways."""
    confidence = math.exp(UNKNOWN if logprob is None else logprob)
    _, direct, amplified = similar
    return 1.0, 2 * confidence - 1, 2 * direct - 1, 2 * amplified - 1


def _sigmoid(x: Vector) -> Vector:
    return 1 / (1 + np.exp(-np.clip(x, -30.0, 30.0)))


def logistic(x: Vector, y: Vector, ridge: float = 1.0, steps: int = 25) -> tuple[float, ...]:
    """Weights (features) of a logistic regression of y (n) on x (n, features), by Newton's method;
    `ridge` penalizes all but the bias."""
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 1e-6
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (y - p) - penalty @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step
        if float(np.abs(step).max()) < 1e-9:
            break
    return tuple(weights.tolist())


@dataclass(frozen=True)
class Routed(WrappedOverseer):
    """An overseer that acts only on questions that the router expects to gain from decomposing.

    Any other question goes to the agent undivided, and the step's note says why.
    """

    router: Router
    probe: Callable[[str], ChatRequest]
    """The agent's first direct call on a question, identical to the one of the direct answer
    (`reflux.graphs.amplify.direct_answer.first_request`)."""

    @property
    def name(self) -> str:
        return f"routed:{self.inner.name}"

    async def act(self, context: OverseerContext) -> Step:
        """Route a new question; later steps on a question follow its first."""
        if context.may_ask and not context.transcript:
            similar = self.router.similar(context.question)
            route = self.router.before(similar)
            if route is None:
                reply = await context.complete(self.probe(context.question))
                route = self.router.after(reply.min_logprob, similar)
            if not route.decompose:
                odds = f"{route.direct:.2f} against {route.amplified:.2f} decomposed"
                return Ask((), f"router: X alone, {odds} ({route.seen})")
        return await self.inner.act(context)
