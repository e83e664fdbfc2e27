"""A human's override of a node, and the tree that it recomputes, without a run folder."""

from collections.abc import Callable
from dataclasses import dataclass

from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, System
from reflux.graphs.recompute import check_editable, revise, revised_context, root_answer
from reflux.graphs.traces.revisions import newest
from reflux.graphs.traces.search import find_question


@dataclass(frozen=True)
class Revised:
    """The newest revision, and its outcome; None if nothing changed."""

    id: str
    outcome: Outcome | None


async def override(
    context: AmplifyContext,
    question_id: str,
    path: str,
    answer: str | None = None,
    system: Callable[[AmplifyContext], System] = Amplified,
) -> Revised:
    """Replace a node's answer, or ask the node again if `answer` is None; then answer the root."""
    store = context.recorded_client.store
    revision_id = await revise(store, question_id, path, answer)
    if revision_id is None:
        return Revised(newest(store, question_id), None)
    if (outcome := root_answer(store, revision_id)) is not None:
        return Revised(revision_id, outcome)
    _, text = find_question(store, revision_id)
    outcome = await system(revised_context(context, revision_id)).answer(text, revision_id)
    check_editable(store, revision_id)
    return Revised(revision_id, outcome)
