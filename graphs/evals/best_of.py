"""Best of n: the majority of n answers to the whole question, which amplification has to beat."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.policy.policy import joined
from reflux.agents.verifiers import verdict_of
from reflux.graphs.amplify.context import AmplifyContext, Reply
from reflux.graphs.amplify.direct_answer import NodeRef, record_answer, sample_answer
from reflux.graphs.amplify.flow import permitted
from reflux.graphs.amplify.interrupts import with_spend_limit
from reflux.graphs.amplify.state import Outcome, Status, accepted_status, plus

MAX_VOTES = 10_000
"""Maximum votes of best-of-n on one question."""


@dataclass(frozen=True)
class EqualTokens:
    """The number of votes of best-of-n that costs the amplified system's tokens."""

    votes: int
    tokens: int
    amplified_tokens: int

    @property
    def dearer(self) -> bool:
        """True where even one vote takes more than the amplified system."""
        return self.tokens > self.amplified_tokens


async def equal_votes(
    tokens_of: Callable[[int], Awaitable[int]], amplified_tokens: int
) -> EqualTokens:
    """Find the largest n whose tokens, prompts included, don't exceed amplified's; at least 1.

    `tokens_of(n)` runs best-of-n on every question and returns its tokens.

    Raises:
        RefluxError: the endpoint reports no tokens.
    """
    first = await tokens_of(1)
    if first == 0:
        raise RefluxError(
            "best-of-n takes as many votes as the amplified system takes tokens, and the endpoint "
            "reports none: name the number of votes, for example best-of-8"
        )
    votes = max(1, min(MAX_VOTES, amplified_tokens // first))
    while (tokens := await tokens_of(votes)) > amplified_tokens and votes > 1:
        votes -= 1  # Later votes are longer than the first.
    # One vote more is tried only where it fits at the mean price of those so far.
    while votes < MAX_VOTES and tokens * (votes + 1) <= amplified_tokens * votes:
        if (more := await tokens_of(votes + 1)) > amplified_tokens:
            break
        votes, tokens = votes + 1, more
    return EqualTokens(votes, tokens, amplified_tokens)


@dataclass
class BestOf:
    """Best of n: the majority of n answers of the agent to the whole question, without an overseer.

    At equal tokens it tests whether decomposition spends tokens better than more votes do (Wang et
    al. 2022, self-consistency). The first vote is greedy, the others are sampled. The most frequent
    answer of those that pass the check wins, or of all where none passes; the earliest of equals.
    """

    context: AmplifyContext
    votes: int
    same_answer: Callable[[str], str] = str.strip

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Ask all votes concurrently."""
        context = with_spend_limit(self.context)
        node = NodeRef(question, question_id, "")
        budgets = Budget(context.limits.calls, context.limits.tokens).split(self.votes)
        results = await asyncio.gather(
            *(_vote(context, node, index, budget) for index, budget in enumerate(budgets))
        )
        replies = [result for result in results if isinstance(result, Reply)]
        errors = [result for result in results if isinstance(result, str)]
        texts = [context.normalise(reply.completion.text) for reply in replies]
        passed = [text for text in texts if verdict_of(context.checker, question, text).ok]
        wording: dict[str, str] = {}
        for text in passed or texts:
            wording.setdefault(self.same_answer(text), text)
        # A Counter keeps the order of appearance, which decides among equals.
        counts = Counter(wording[self.same_answer(text)] for text in passed or texts)
        answer = max(counts, key=lambda text: counts[text]) if counts else None
        status: Status = "rejected"
        if passed and answer is not None:
            complete = {
                self.same_answer(text)
                for reply, text in zip(replies, texts, strict=True)
                if not reply.completion.truncated
            }
            is_cut = self.same_answer(answer) not in complete
            status = accepted_status(has_check=context.has_rules, truncated=is_cut)
        outcome: Outcome = {
            "answer": answer,
            # With a missing vote it is another system, so the question counts as not answered.
            "status": "failed" if errors else status,
            "error": errors[0] if errors else None,
            "spent": plus(*(reply.spent for reply in replies)),
        }
        detail = {
            "votes": len(replies),
            "refused": len(texts) - len(passed),
            "tally": counts.most_common(),
        }
        labels = joined(node.labels_under(context), *(reply.labels for reply in replies))
        outcome = permitted(context, "", outcome, labels)
        await record_answer(context, node, outcome, detail)
        return outcome


async def _vote(context: AmplifyContext, node: NodeRef, index: int, budget: Budget) -> Reply | str:
    """One vote, or why there is none."""
    if budget.empty:
        return "no calls or tokens left: raise limits.calls or limits.tokens"
    if (resource := context.spend_limit.lacks) is not None:
        return f"no {resource} left"
    try:
        return await sample_answer(context, node, index, budget)
    except EndpointError as error:
        return str(error)
