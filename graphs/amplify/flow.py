"""How untrusted text flows through the tree: what an overseer sees of it, and with which labels its
step goes on (`reflux.agents.policy`). Without a policy nothing here changes anything."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reflux.agents.overseers.protocol import Overseer, WrappedOverseer
from reflux.agents.overseers.scripted import HumanOverseer, ScriptedOverseer
from reflux.agents.policy.data import (
    Block,
    block_of,
    blocks_of,
    hidden,
    labels_in,
    plain,
    revealed,
)
from reflux.agents.policy.policy import Policy, joined, texts, values
from reflux.agents.policy.typed import NAMES, TYPED, ValueType
from reflux.agents.prompts import informed_prompt
from reflux.agents.types import Answer, Ask, Chain, Exchange, Step, SubQuestion
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import AmplifyState, NodeState, Outcome, SubTask

COMBINED_CHARS = 8_000
"""Characters of the sub-answers that a copy combines."""
AS = "as-"
"""Begins the name under which a model as overseer finds a type among its tools."""


def node_labels(state: NodeState, context: AmplifyContext) -> tuple[str, ...]:
    """The labels of a question: of its blocks, and of what the step that asked it had seen."""
    if context.policy is None:
        return ()
    return joined(state.get("labels", ()), labels_in(state["question"]))


def question_problem(task: SubTask, context: AmplifyContext) -> str | None:
    """Why the policy lets a sub-question not be asked; None where it does."""
    if context.policy is None:
        return None
    labels = node_labels(task, context)
    return context.policy.question_problem(labels, len(task["question"]), task["to"])


def read_labels(state: AmplifyState, context: AmplifyContext) -> tuple[str, ...]:
    """The labels of all that whoever checks the answer to a question reads."""
    answers = (entry.get("labels", ()) for entry in state["transcript"])
    proposed = state.get("answer_labels", ())
    return joined(node_labels(state, context), proposed, *answers) if context.policy else ()


def permitted(
    context: AmplifyContext, path: str, outcome: Outcome, labels: Iterable[str]
) -> Outcome:
    """The outcome of a direct answer with its labels; the root's fails if the policy lets no answer
    be made of what these stand for."""
    outcome, policy = labelled(outcome, labels), context.policy
    problem = policy.answer_problem(outcome.get("labels", ())) if policy and not path else None
    if problem is None:
        return outcome
    return {**outcome, "answer": None, "status": "failed", "error": problem}


def labelled(outcome: Outcome, labels: Iterable[str]) -> Outcome:
    """The outcome with the labels of its answer; the same without any."""
    return {**outcome, "labels": list(labels)} if labels else outcome


def proposal(
    state: AmplifyState, context: AmplifyContext, answer: str | None, labels: Sequence[str]
) -> dict[str, Any]:
    """A proposed answer; the root's only if the policy lets it be made of what it is made of."""
    if context.policy is None or not labels:
        return {"proposal": answer}
    problem = None if state["depth"] else context.policy.answer_problem(labels)
    if problem is not None:
        return {"proposal": None, "error": problem}
    return {"proposal": answer, "answer_labels": [*joined(state.get("answer_labels", ()), labels)]}


def filling(outcome: Outcome) -> str:
    """A sub-answer as it goes into another sub-question: untrusted text as a block."""
    answer, labels = outcome["answer"] or "", texts(outcome.get("labels", ()))
    return str(block_of(answer, labels)) if labels else answer


def labels_on(entry: Mapping[str, Any], needs: Iterable[Outcome]) -> list[str]:
    """The labels of a sub-question's text beside its blocks: of the step that asked it, and of the
    values that were filled in."""
    filled = (values(outcome.get("labels", ())) for outcome in needs)
    return [*joined(entry.get("labels", ()), *filled)]


def entry_of(question: str, outcome: Outcome, error: str | None) -> dict[str, Any]:
    """One entry of the state's transcript."""
    entry = {"question": question, "answer": outcome["answer"], "error": error}
    labels = outcome.get("labels")
    return entry | ({"labels": labels} if labels else {})


def _innermost(overseer: Overseer) -> Overseer:
    while isinstance(overseer, WrappedOverseer):
        overseer = overseer.inner
    return overseer


def _is_code(overseer: Overseer) -> bool:
    """True of a script, and of a human: no text instructs it, so only what it passes on counts."""
    return isinstance(_innermost(overseer), ScriptedOverseer | HumanOverseer)


def view_of(overseer: Overseer, policy: Policy | None) -> Policy | None:
    """The policy that says what this overseer sees: a human reads what is hidden from models."""
    if policy is None or not isinstance(_innermost(overseer), HumanOverseer):
        return policy
    return replace(policy, overseer="delimited")


def transcript_of(state: AmplifyState, policy: Policy | None = None) -> list[Exchange]:
    """The transcript as a model sees it: what is untrusted delimited, or hidden if the policy hides
    it from overseers. Without a policy, as it is."""
    return [_exchange(entry, policy) for entry in state["transcript"]]


def _exchange(entry: Mapping[str, Any], policy: Policy | None) -> Exchange:
    question, answer, error = entry["question"], entry["answer"], entry["error"]
    labels = texts(entry.get("labels", ()))
    if policy is None:
        return Exchange(question, answer, error)
    hides = policy.overseer == "hidden"
    if labels and answer is not None:
        answer = (lambda block: block.handle if hides else str(block))(block_of(answer, labels))
    if error is not None and (labels or labels_in(question)):  # It may quote what it read.
        error = "failed" if hides else str(block_of(error, labels or labels_in(question)))
    return Exchange(hidden(question), answer, error)  # Its data stands where it was asked.


def shown(text: str, policy: Policy | None) -> str:
    """A question as an overseer sees it."""
    return hidden(text) if policy is not None and policy.overseer == "hidden" else text


def to_combine(
    state: AmplifyState, context: AmplifyContext, overseer: Overseer, labels: Iterable[str]
) -> str | None:
    """What a copy is asked in the place of an overseer that answers, with these labels, from
    sub-answers that were hidden from it; None for any other answer.

    Whoever combines can only answer, so it may read what the overseer, which could ask, must not.
    """
    policy = context.policy
    if policy is None or policy.overseer != "hidden" or _is_code(overseer) or texts(labels):
        return None
    if not any(texts(entry.get("labels", ())) for entry in state["transcript"]):
        return None
    read = transcript_of(state, replace(policy, overseer="delimited"))
    return informed_prompt(state["question"], read, COMBINED_CHARS)


def step_labels(
    state: AmplifyState, context: AmplifyContext, overseer: Overseer
) -> tuple[str, ...]:
    """The labels of whatever an overseer says next, for what it has seen: values, and a model all
    that was not hidden from it. Those that its words carry themselves, as blocks, are not among
    them."""
    policy = context.policy
    if policy is None:
        return ()
    labels = state.get("labels", ())
    answers = joined(*(entry.get("labels", ()) for entry in state["transcript"]))
    if _is_code(overseer) or policy.overseer == "hidden":
        return joined(labels, values(answers))
    return joined(labels, labels_in(state["question"]), answers)


def known_blocks(state: AmplifyState) -> dict[str, Block]:
    """What the handles of a step may stand for: the question's data, and answers to it, by id."""
    blocks = blocks_of(state["question"])
    for entry in state["transcript"]:
        labels = texts(entry.get("labels", ()))
        blocks += blocks_of(entry["question"])
        if labels and entry["answer"] is not None:
            blocks.append(block_of(entry["answer"], labels))
    return {block.id: block for block in blocks}


def labels_of(step: Step, state: AmplifyState) -> tuple[str, ...]:
    """The labels that an answer carries by itself: of the blocks and handles in it."""
    text = step.text if isinstance(step, Answer) else ""
    return labels_in(revealed(text, known_blocks(state))) if text else ()


def expanded(step: Step, state: AmplifyState, context: AmplifyContext, overseer: Overseer) -> Step:
    """The step with the data that its handles stand for; in an answer with its text alone.

    Where a model passes no data on in its first sub-questions, each of them that goes to a copy
    gets all of the question's: small models drop what they do not understand.
    """
    policy = context.policy
    if policy is None:
        return step
    blocks = known_blocks(state)
    if isinstance(step, Answer):
        return replace(step, text=plain(revealed(step.text, blocks)))
    if isinstance(step, Chain):
        return replace(step, first=revealed(step.first, blocks))
    if not isinstance(step, Ask):
        return step
    subs = [replace(_typed(sub), text=revealed(sub.text, blocks)) for sub in step.subquestions]
    passes_on = state["transcript"] or any(blocks_of(sub.text) for sub in subs)
    if not passes_on and not _is_code(overseer):
        data = "\n".join(str(block) for block in blocks_of(state["question"]))
        subs = [replace(s, text=f"{s.text}\n{data}") if data and _reads(s) else s for s in subs]
    return replace(step, subquestions=tuple(subs))


def _typed(sub: SubQuestion) -> SubQuestion:
    """A sub-question to a type that was offered as a tool."""
    name = sub.to.removeprefix(f"tool:{AS}")
    return replace(sub, to=f"{TYPED}{name}") if name != sub.to and name in NAMES else sub


def _reads(sub: SubQuestion) -> bool:
    return sub.to.partition(":")[0] in ("", "typed", "expert", "experts")


def types_offered(question: str, policy: Policy | None) -> dict[str, str]:
    """The types that a model as overseer may have a text read as, described, by name."""
    if policy is None or not labels_in(question):
        return {}
    return {f"{AS}{kind}": f"It reads data and replies {NAMES[kind]}." for kind in policy.types}


def quarantined(context: AmplifyContext, kind: ValueType) -> AmplifyContext:
    """The context of a copy that answers in a type: without tools, and a reply without a value
    loses its vote."""
    wordings = context.wordings
    return replace(
        context,
        normalise=lambda reply: kind.read(reply) or reply.strip(),
        checker=RuleChecker({f"{TYPED}{kind.kind}": lambda _, text: kind.read(text) == text}),
        grants={role: tools for role, tools in context.grants.items() if role != "answer"},
        # Last, where small models heed it.
        wordings=lambda question: [f"{each}\n{kind.instruction}" for each in wordings(question)],
        same=None,
    )
