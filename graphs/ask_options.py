"""Where a question comes from, and what it is asked with; both are recorded, so that its tree can
be resumed, and edited, the same way."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reflux.agents.errors import UsageError
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import Variant, VotePolicy

ALONE = "none"
"""Name of the overseer that is left out: the agent continues the conversation alone."""

OF_A_PROGRAM = " of a program"
"""Ends the name of an overseer whose questions nothing but that program can ask again."""


@dataclass(frozen=True)
class Origin:
    """Where a question comes from. All but `run` is part of its id."""

    run: str
    """The run's random id, for provenance."""
    round: int
    system: str
    task: str
    split: str

    @classmethod
    def new(cls, run: str, prefix: str, task: str = "") -> "Origin":
        """The origin of a question that is a separate trajectory, whatever was asked before."""
        return cls(run, -1, f"{prefix}-{uuid.uuid4().hex[:12]}", task, "asked")

    def question_id(self, text: str) -> str:
        """Id of a root question (hex, 16), the same whenever a run of the same purpose asks it.

        The run's own id is left out, so a renamed or copied folder replays its record, and what
        is ordered by id has one order in every run of a config.
        """
        body = "\x1f".join([str(self.round), self.system, self.task, self.split, text])
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    def row(self, text: str) -> dict[str, Any]:
        """A root question as a row of the table `questions`."""
        return {"id": self.question_id(text), "text": text, **vars(self)}


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
    candidates: int = 0
    """Decompositions to weigh against the direct answer; 0: the overseer's answer stands."""
    endpoint: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables of the endpoint that was asked, without its key; empty for a server's."""
    route: Mapping[str, str] = field(default_factory=dict[str, str])
    """The evaluation that a router was fitted on: `file` and `digest`; empty without one."""
    demos: Mapping[str, str] = field(default_factory=dict[str, str])
    """`file` and `digest` of the overseer's demonstrations; empty without any."""
    cascade: Mapping[str, float] = field(default_factory=dict[str, float])
    """The `threshold` from which on the agent is sure enough to answer alone, and the `temperature`
    and `offset` of its confidence; empty to have every question divided."""
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What untrusted text may reach: the fields of a `reflux.Policy`; empty without one."""

    @classmethod
    def of(cls, context: AmplifyContext, overseer: str = "") -> "AskOptions":
        """The options of a context that a program has made.

        What options cannot name, such as the program's own checker, makes the overseer one of the
        program: nothing else can ask the question the same way.

        Args:
            overseer: the name by which a command finds the overseer; by default its own name.
        """
        name = overseer or (context.overseers[0].name if context.overseers else "")
        has_own = context.verifiers or context.experts or context.tools or context.grants
        if has_own or context.has_rules:
            name += OF_A_PROGRAM
        return cls(
            name,
            context.model,
            limits=context.limits,
            max_tokens=context.max_tokens if isinstance(context.max_tokens, int) else None,
            max_votes=context.votes.max_votes,
            seed=context.seed,
            candidates=context.weighing.decompositions if context.weighing else 0,
            cascade=context.cascade.to_json() if context.cascade else {},
            policy=context.policy.to_json() if context.policy else {},
        )

    def votes(self) -> VotePolicy:
        """The votes of each question that is answered directly."""
        policy = VotePolicy() if self.task else VotePolicy(max_votes=1)
        if self.max_votes is not None:
            policy = VotePolicy(max_votes=self.max_votes)
        if self.temperature is None:
            return policy
        variants = (Variant(temperature=self.temperature),)
        return replace(policy, temperature=self.temperature, variants=variants)


def options_of(store: TraceStore, question_id: str) -> AskOptions | None:
    """What a question was asked with, a revision like its original; None if nothing is recorded.

    Raises:
        UsageError: another version of Reflux recorded it.
    """
    sql = "SELECT detail FROM judgements WHERE question=? AND kind='how' ORDER BY id LIMIT 1"
    if (row := next(store.select(sql, (first_of(question_id),)), None)) is None:
        return None
    values: dict[str, Any] = json.loads(row["detail"])
    try:
        values |= {"tools": tuple(values["tools"]), "limits": Limits(**values["limits"])}
        return AskOptions(**values)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{question_id} was asked by another version of Reflux ({error}); ask it again"
        ) from error
