"""The desk at which H asks models while it takes a step: recorded, replayed, charged.

A call's place in the log is its step, the member of a panel that made it, and its number among
that member's calls; so a step that is taken again, after a restart, gets the same replies.
"""

from collections.abc import Sequence
from dataclasses import replace

from agents.budget import Budget
from agents.errors import EndpointError
from agents.types import ChatRequest, Completion
from graphs.state import NOTHING_SPENT, AmplifyContext, Spent, plus
from graphs.traces import CallKey
from graphs.turns import reply_in_turns

RETRY = 1_000
"""Seeds and votes of each try of a question lie so far from those of the try before."""


class StepDesk:
    """The desk of one step of one question, or of one member of the panel that takes it."""

    def __init__(
        self,
        context: AmplifyContext,
        key: CallKey,
        tried: int,
        given: Budget,
        place: str = "",
        *,
        role: str = "overseer.ask",
        made: int = 0,
    ) -> None:
        """
        Args:
            key: that of the step.
            tried: numbers the retries that lead here.
            given: what may be spent here.
            place: of a member among those who share the desk.
            role: of the calls, in the log.
            made: calls that were made in this role, at this key, before.
        """
        self._context = context
        self._key = key
        self._tried = tried
        self._given = given
        self._place = place
        self._spent: Spent = NOTHING_SPENT
        self._role = role
        self._made = made
        self._members: list[StepDesk] = []

    @property
    def spent(self) -> Spent:
        """What was spent here so far, that of members included."""
        return plus(self._spent, *(member.spent for member in self._members))

    @property
    def made(self) -> int:
        """Calls that were made in this role, at this key, those before this desk among them."""
        return self._made

    @property
    def model(self) -> str:
        """The name of X."""
        return self._context.model

    @property
    def path(self) -> str:
        """The question's place in its tree; empty at the root."""
        return self._key.path

    @property
    def left(self) -> Budget:
        """What the question may still spend."""
        spent = self.spent
        return self._given.minus(spent["calls"], spent["tokens"])

    async def ask(self, request: ChatRequest) -> Completion:
        """Make one call; see `Desk.ask`. A retry of the question draws from other seeds.

        Raises:
            EndpointError: no reply after every retry, or nothing is left to pay it.
        """
        left = self.left
        if (lacking := self._context.purse.lacks) is not None:
            raise EndpointError(f"no {lacking} left for H's step: raise limits.{lacking}")
        if left.empty:
            raise EndpointError(
                f"H has {left.calls} calls and {left.tokens} tokens left for its step: raise "
                "limits.calls or limits.tokens"
            )
        self._made += 1
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, left.tokens),
            seed=request.sampling.seed + RETRY * self._tried,
        )
        if self._tried:
            hot = max(sampling.temperature, self._context.votes.temperature)
            sampling = replace(sampling, temperature=hot)
        request = replace(request, sampling=sampling, vote=request.vote + RETRY * self._tried)
        role = f"{self._role}{self._place}"
        key = replace(self._key, role=role, vote=self._made)
        tools = self._context.grants.get("overseer", ())
        reply = await reply_in_turns(self._context, tools, key, request, left)
        self._spent = plus(self._spent, reply.spent)
        return reply.completion

    def members(self, count: int) -> Sequence["StepDesk"]:
        """Places for `count` who ask side by side, each with a share of what is left here."""
        first = len(self._members)
        seats = [
            StepDesk(self._context, self._key, self._tried, share, f"{self._place}.{first + i}")
            for i, share in enumerate(self.left.split(count))
        ]
        self._members += seats
        return seats
