"""Which questions may be asked, and the state in which a root question begins."""

from reflux.agents.errors import UsageError
from reflux.agents.prompts import question_problem
from reflux.agents.redaction import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import AmplifyState, NodeState, fresh_state


def begin(question: str, question_id: str, context: AmplifyContext) -> AmplifyState:
    """The state of a root question before its first step.

    Raises:
        UsageError: more attempts must agree, or be weighed, than there are.
    """
    limits, question, weighing = context.limits, redact(question), context.weighing
    ways = weighing.decompositions if weighing is not None else 0
    agreed = context.checks.confirm
    for name, value, least in (
        ("checks.confirm", agreed, agreed),
        ("candidates", ways, 1 + ways),
    ):
        if least > max(1, limits.attempts):
            raise UsageError(
                f"{name} is {value} and limits.attempts only {limits.attempts}: raise "
                f"limits.attempts to {least} or more"
            )
    root: NodeState = {
        "question": question,
        "question_id": question_id,
        "path": "",
        "depth": 0,
        "ancestors": [],
        "calls": limits.calls,
        "tokens": limits.tokens,
        "retries": context.asked_before("", question),
    }
    return fresh_state(root)


def screened(state: AmplifyState, context: AmplifyContext) -> str | None:
    """Why the question must not be asked; None where it may be."""
    question = state["question"]
    if (reason := question_problem(question, context.limits.question_chars)) is not None:
        return reason
    if context.canonical(question) in map(context.canonical, state["ancestors"]):
        return f"CycleError: {question!r} repeats one of its ancestors"
    return None


def check_askable(question: str, context: AmplifyContext) -> None:
    """Validate a root question before anything is asked or recorded.

    Raises:
        UsageError: it cannot be asked in this context.
    """
    if (reason := screened(begin(question, "", context), context)) is not None:
        raise UsageError(f"{reason}; ask another")
