"""A person's word in a recorded tree: an answer edited, or a question asked again.

The root is run once more as a revision (`reflux.graphs.traces.revisions`). What did not depend on
the word is replayed; the node's ancestors recompute, and every later question that held its answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from reflux.agents.errors import RefluxError
from reflux.agents.redaction import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.ask import Amplified, System
from reflux.graphs.traces.database import read_apart
from reflux.graphs.traces.revisions import (
    Override,
    newest,
    number_of,
    override_json,
    overrides_made,
    overrides_of,
    revision,
)
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import held, load_tree


@dataclass(frozen=True)
class Revised:
    """What a person's word led to."""

    id: str
    """Of the revision; that of the trajectory itself where nothing was to be changed."""
    outcome: Outcome | None
    """None where the word changed nothing."""


async def override(
    context: AmplifyContext,
    question_id: str,
    path: str,
    answer: str | None = None,
    system: Callable[[AmplifyContext], System] = Amplified,
) -> Revised:
    """Put an answer in the place of a node's, or without one have the node asked again.

    It is the newest revision that is revised, whichever is named. The same word again, after a
    stop, goes on with what it had begun; an answer equal to the accepted one changes nothing.

    Args:
        context: as the root was asked in; what differs from then is asked anew.
        system: what answered the root.

    Raises:
        UsageError: there is no such node.
    """
    store = context.recorded_client.store
    made = await revise(store, question_id, path, answer)
    if made is None:
        return Revised(newest(store, question_id), None)
    if (outcome := root_answer(store, made)) is not None:
        return Revised(made, outcome)
    revised = system(revised_context(context, made))
    outcome = await revised.answer(text_of(store, made), made)
    check_editable(store, made)
    return Revised(made, outcome)


def revised_context(context: AmplifyContext, question_id: str) -> AmplifyContext:
    """The context in which a revision is answered."""
    return replace(context, overrides=overrides_of(context.recorded_client.store, question_id))


async def revise(store: TraceStore, question_id: str, path: str, answer: str | None) -> str | None:
    """Begin a revision with a person's word and return its id; None where nothing would change.

    An answer to the root ends the revision at once: nothing is to be recomputed.

    Raises:
        UsageError: there is no such node.
    """
    last = newest(store, question_id)
    id, node = await read_apart(store.path, lambda rows: held(rows, last, path))
    answer = None if answer is None else redact(answer).strip()
    if begun := _begun(store, last, path, answer):
        return begun
    if is_accepted(node.status) and answer is not None and node.answer == answer:
        return None
    known = overrides_of(store, last).get(path)
    again = known.again if known is not None else 0
    ended = store.how_ended(id, path)
    word = Override(
        ended["question"] if ended else node.question,
        answer,
        again + (answer is None),
        *_spent(store, id, path),
    )
    return await _append(store, last, path, word)


def _begun(store: TraceStore, last: str, path: str, answer: str | None) -> str | None:
    """The newest revision, where this very word began it and it has no outcome yet."""
    if store.how_ended(last) is not None:
        return None
    same = any(
        at == path and detail["answer"] == answer for at, detail in overrides_made(store, last)
    )
    return last if same else None


async def _append(store: TraceStore, last: str, path: str, word: Override) -> str:
    (row,) = store.select("SELECT * FROM questions WHERE id = ?", (last,))
    kept = {name: row[name] for name in ("run", "round", "system", "task", "split", "text")}
    detail = override_json(word)
    while True:
        made = revision(last, number_of(last) + 1)
        await store.add_question({"id": made, **kept, "revises": last})
        await store.add_judgement(made, path, "override", True, detail, author="person", key="0")
        if overrides_made(store, made) == [(path, detail)]:
            break
        last = made  # Somebody else was the first to put a word in there.
    if path == "" and word.answer is not None:
        ended = {"question": word.question, "answer": word.answer, "status": "ok", "error": None}
        spent = {"calls": word.calls, "cached": word.calls, "tokens": word.tokens}
        detail = {**ended, "by": "person", "spent": spent}
        await store.add_judgement(made, "", "outcome", True, detail, author="person", key="0")
    return made


def root_answer(store: TraceStore, question_id: str) -> Outcome | None:
    """The outcome of a revision whose root a person answered."""
    for path, word in overrides_made(store, question_id):
        if path == "" and word["answer"] is not None:
            calls, tokens = word["calls"], word["tokens"]
            return {
                "answer": word["answer"],
                "status": "ok",
                "error": None,
                "spent": {"calls": calls, "cached": calls, "tokens": tokens},
            }
    return None


def check_editable(store: TraceStore, question_id: str) -> None:
    """A word that no node took is an error, not a tree that looks edited.

    Raises:
        RefluxError: at the word's place another question stood.
    """
    for path, word in overrides_made(store, question_id):
        node = next((n for n in load_tree(store, question_id).walk() if n.path == path), None)
        if word["answer"] is not None and (node is None or node.answered_by != "person"):
            raise RefluxError(
                f"the answer to {path} was not taken up: at its place stands "
                f"{node.question if node else None!r}, it was for {word['question']!r}; H took "
                "other steps than before, so look at the tree and edit it as it is now"
            )


def under_way(store: TraceStore, question_id: str) -> tuple[str, str | None] | None:
    """(path, answer) of the word that began a revision whose root has no outcome yet, and waits for
    nobody; None of any other trajectory."""
    waits = store.select(
        "SELECT 1 FROM judgements WHERE question = ? AND kind = 'deferred' LIMIT 1", (question_id,)
    )
    if store.how_ended(question_id) is not None or next(waits, None) is not None:
        return None
    return next(((path, word["answer"]) for path, word in overrides_made(store, question_id)), None)


def text_of(store: TraceStore, question_id: str) -> str:
    """The text of a root question."""
    (row,) = store.select("SELECT text FROM questions WHERE id = ?", (question_id,))
    return row["text"]


def _spent(store: TraceStore, question_id: str, path: str) -> tuple[int, int]:
    """Calls and tokens of a node and all below it."""
    (row,) = store.select(
        "SELECT count(*) AS calls, sum(prompt_tokens + completion_tokens) AS tokens FROM calls"
        " WHERE question = :q AND kind = 'model' AND error IS NULL"
        " AND (path = :p OR substr(path, 1, length(:p) + 1) = :p || '/')",
        {"q": question_id, "p": path},
    )
    return row["calls"], row["tokens"] or 0
