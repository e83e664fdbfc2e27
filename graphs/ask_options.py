"""What a question is asked with, recorded beside it: its tree can go on, and be edited, the same
way."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.verifiers.rules import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import Variant, VotePolicy

ALONE = "none"
"""Name of the overseer that is left out: the agent goes on with the conversation alone."""

OF_A_PROGRAM = " of a program"
"""Ends the name of an overseer whose questions nothing but that program can ask again."""


@dataclass(frozen=True)
class AskOptions:
    """Everything that decides how one question is answered, in plain JSON types."""

    overseer: str
    """Empty if the task brings its own."""
    model: str
    """Name of the agent."""
    tools: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    max_tokens: int | None = None
    """Tokens of one answer; None for the task's own limit."""
    task: str = ""
    max_votes: int | None = None
    """None: one vote, or as many as a task's questions get by default."""
    temperature: float | None = None
    """None: the first vote is greedy, and the others have the policy's temperature."""
    seed: int = 0

    @classmethod
    def of(cls, context: AmplifyContext) -> "AskOptions":
        """The options of a context that a program has made.

        What options cannot name, such as the program's own checker, makes the overseer one of the
        program: nothing else can ask the question the same way.
        """
        name = context.overseers[0].name if context.overseers else ""
        has_own = context.verifiers or context.experts or context.tools or context.grants
        if has_own or not isinstance(context.checker, RuleChecker) or context.checker.rules:
            name += OF_A_PROGRAM
        max_tokens = context.max_tokens if isinstance(context.max_tokens, int) else None
        return cls(
            name,
            context.model,
            limits=context.limits,
            max_tokens=max_tokens,
            max_votes=context.votes.max_votes,
            seed=context.seed,
        )

    def votes(self) -> VotePolicy:
        """The votes of each question that is answered directly."""
        policy = VotePolicy() if self.task else VotePolicy(max_votes=1)
        if self.max_votes is not None:
            policy = VotePolicy(max_votes=self.max_votes)
        if self.temperature is None:
            return policy
        variants = (Variant(temperature=self.temperature),)
        return VotePolicy(
            max_votes=policy.max_votes, temperature=self.temperature, variants=variants
        )


async def save_options(store: TraceStore, question_id: str, options: AskOptions) -> None:
    """Record what a question is asked with."""
    await store.add_judgement(question_id, "", "how", None, asdict(options), key="0")


def options_of(store: TraceStore, question_id: str) -> AskOptions | None:
    """What a question was asked with, a revision like its original; None if nothing is recorded.

    Raises:
        UsageError: another version of Reflux recorded it.
    """
    rows = store.select(
        "SELECT detail FROM judgements WHERE question=? AND kind='how' ORDER BY id LIMIT 1",
        (first_of(question_id),),
    )
    if (row := next(rows, None)) is None:
        return None
    values: dict[str, Any] = json.loads(row["detail"])
    try:
        return AskOptions(
            **{**values, "tools": tuple(values["tools"]), "limits": Limits(**values["limits"])}
        )
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{question_id} was asked by another version of Reflux ({error}); ask it again"
        ) from error
