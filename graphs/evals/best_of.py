"""Best of n: X asked n times without H, and the majority; what amplification must beat.

Accuracy at equal tokens asks whether H's way of spending tokens is better than more votes (Wang
et al. 2022, self-consistency). n is the most votes whose tokens, prompts among them and over all
the questions together, are no more than those of the amplified system; at least 1.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, RefluxError
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.interrupts import with_spend_limit
from reflux.graphs.amplify.sampling import NodeRef, Reply, record_answer, sample_answer
from reflux.graphs.amplify.state import Outcome, Status, plus

MOST = 10_000
"""Votes on one question, at the most."""


@dataclass
class BestOf:
    """n copies of X on the whole question: the first greedy, the others sampled.

    The most frequent answer of those that the check accepts wins, or of all where it accepts none;
    among equals the earliest. Of answers that say the same the first one's words are given.
    """

    context: AmplifyContext
    votes: int
    same_answer: Callable[[str], str] = str.strip
    """Brings answers that say the same to equal text."""

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Ask all votes side by side."""
        context = with_spend_limit(self.context)
        place = NodeRef(question, question_id, "")
        limits = context.limits
        shares = Budget(limits.calls, limits.tokens).split(self.votes)
        replies = await asyncio.gather(
            *(_ask(context, place, number, share) for number, share in enumerate(shares))
        )
        said = [reply for reply in replies if isinstance(reply, Reply)]
        texts = [context.normalise(reply.completion.text) for reply in said]
        passed = [text for text in texts if context.checker.check(question, text).ok]
        words: dict[str, str] = {}
        for text in passed or texts:
            words.setdefault(self.same_answer(text), text)
        # Keeps the order of appearance.
        counts = Counter(words[self.same_answer(text)] for text in passed or texts)
        answer = max(counts, key=lambda text: counts[text]) if counts else None
        status, error = _ended(replies, bool(passed))
        outcome: Outcome = {
            "answer": answer,
            "status": status,
            "error": error,
            "spent": plus(*(reply.spent for reply in said)),
        }
        counted = {
            "votes": len(said),
            "refused": len(texts) - len(passed),
            "tally": counts.most_common(),
        }
        await record_answer(context, place, outcome, counted)
        return outcome


async def _ask(context: AmplifyContext, place: NodeRef, number: int, share: Budget) -> Reply | str:
    if share.empty:
        return "no calls or tokens left: raise limits.calls or limits.tokens"
    if (lacking := context.spend_limit.lacks) is not None:
        return f"no {lacking} left"
    try:
        return await sample_answer(context, place, number, share)
    except EndpointError as failure:
        return str(failure)


def _ended(replies: Sequence[Reply | str], passed: bool) -> tuple[Status, str | None]:
    """A vote that is missing makes another system of it, so the question is not answered."""
    lost = [reply for reply in replies if isinstance(reply, str)]
    if lost:
        return "failed", lost[0]
    return ("ok" if passed else "rejected"), None


@dataclass(frozen=True)
class EqualTokens:
    """How many votes best-of-n was given, and why."""

    votes: int
    tokens: int
    """Of best-of-n, over all questions."""
    amplified_tokens: int

    @property
    def dearer(self) -> bool:
        """True where even one vote takes more than the amplified system."""
        return self.tokens > self.amplified_tokens


async def equal_votes(
    tokens_of: Callable[[int], Awaitable[int]], amplified_tokens: int
) -> EqualTokens:
    """Find n. `tokens_of(n)` has every question asked n times, and tells the tokens.

    One vote more is tried only where it fits at the mean price of those so far.

    Raises:
        RefluxError: the endpoint tells no tokens.
    """
    first = await tokens_of(1)
    if first == 0:
        raise RefluxError(
            "best-of-n takes as many votes as the amplified system takes tokens, and the endpoint "
            "reports none: name their number, for example best-of-8"
        )
    votes = max(1, min(MOST, amplified_tokens // first))
    tokens = await tokens_of(votes)
    while tokens > amplified_tokens and votes > 1:  # Later votes are longer than the first.
        votes -= 1
        tokens = await tokens_of(votes)
    while votes < MOST and tokens * (votes + 1) <= amplified_tokens * votes:
        more = await tokens_of(votes + 1)
        if more > amplified_tokens:
            break
        votes, tokens = votes + 1, more
    return EqualTokens(votes, tokens, amplified_tokens)
