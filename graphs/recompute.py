"""A human edits an answer in a recorded tree, or has a question asked again; the tree recomputes.

The root runs again as a revision (`reflux.graphs.traces.revisions`). The node's ancestors and every
later question that held its answer recompute; everything else is replayed.
"""

from dataclasses import replace

from reflux.agents.errors import RefluxError
from reflux.agents.redaction import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, human_outcome, is_accepted
from reflux.graphs.traces.database import read_apart
from reflux.graphs.traces.revisions import (
    Override,
    newest,
    number_of,
    overrides_made,
    overrides_of,
    revision,
)
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import held, load_tree


def revised_context(context: AmplifyContext, question_id: str) -> AmplifyContext:
    """The context in which a revision is answered."""
    return replace(context, overrides=overrides_of(context.recorded_client.store, question_id))


async def revise(store: TraceStore, question_id: str, path: str, answer: str | None) -> str | None:
    """Begin a revision: replace a node's answer, or ask the node again if `answer` is None. Return
    its id; None if nothing would change.

    The newest revision is revised, whichever is named. The same override after a stop resumes the
    revision that it began. An answer to the root ends the revision at once.

    Raises:
        UsageError: there is no such node.
    """
    latest = newest(store, question_id)
    id, node = await read_apart(store.path, lambda rows: held(rows, latest, path))
    answer = None if answer is None else redact(answer).strip()
    begun = [(node, detail["answer"]) for node, detail in overrides_made(store, latest)]
    if (path, answer) in begun and store.how_ended(latest) is None:
        return latest  # The same override began it, and it has no outcome yet.
    if is_accepted(node.status) and answer is not None and node.answer == answer:
        return None
    earlier = overrides_of(store, latest).get(path, Override("", None))
    ending = store.how_ended(id, path)
    question = ending["question"] if ending else node.question
    again = earlier.again + (answer is None)
    change = Override(question, answer, again, *_spent(store, id, path))
    (row,) = store.select("SELECT * FROM questions WHERE id = ?", (latest,))
    names = ("run", "round", "system", "task", "split", "text", "source", "about")
    origin = {name: row[name] for name in names}
    detail = vars(change)
    while True:
        id = revision(latest, number_of(latest) + 1)
        await store.add_question({"id": id, **origin, "revises": latest})
        await store.add_judgement(id, path, "override", True, detail, author="human", key="0")
        if overrides_made(store, id) == [(path, detail)]:
            break
        latest = id  # Another process added an override first.
    if (outcome := root_answer(store, id)) is not None:
        detail = {"question": question, **outcome, "by": "human"}
        await store.add_judgement(id, "", "outcome", True, detail, author="human", key="0")
    return id


def root_answer(store: TraceStore, question_id: str) -> Outcome | None:
    """The outcome of a revision whose root a human answered."""
    for path, change in overrides_made(store, question_id):
        if path == "" and change["answer"] is not None:
            return human_outcome(change["answer"], change["calls"], change["tokens"])
    return None


def check_editable(store: TraceStore, question_id: str) -> None:
    """An override that no node took is an error, not a tree that looks edited.

    Raises:
        RefluxError: the node that it names has another question now.
    """
    for path, change in overrides_made(store, question_id):
        node = next((n for n in load_tree(store, question_id).walk() if n.path == path), None)
        if change["answer"] is not None and (node is None or node.answered_by != "human"):
            raise RefluxError(
                f"the answer to {path} was not taken up: the node now asks "
                f"{node.question if node else None!r}, the answer was for {change['question']!r}; "
                "the overseer took other steps than before, so edit the tree as it is now"
            )


def under_way(store: TraceStore, question_id: str) -> tuple[str, str | None] | None:
    """(path, answer) of the override of a revision that has no outcome yet and waits for no human;
    None for any other trajectory."""
    deferred = "SELECT 1 FROM judgements WHERE question = ? AND kind = 'deferred' LIMIT 1"
    waits = next(store.select(deferred, (question_id,)), None) is not None
    if waits or store.how_ended(question_id) is not None:
        return None
    for path, change in overrides_made(store, question_id):
        return path, change["answer"]
    return None


def _spent(store: TraceStore, question_id: str, path: str) -> tuple[int, int]:
    """Calls and tokens of a node and all below it."""
    (row,) = store.select(
        "SELECT count(*) AS calls, sum(prompt_tokens + completion_tokens) AS tokens FROM calls"
        " WHERE question = :q AND kind = 'model' AND error IS NULL"
        " AND (path = :p OR substr(path, 1, length(:p) + 1) = :p || '/')",
        {"q": question_id, "p": path},
    )
    return row["calls"], row["tokens"] or 0
