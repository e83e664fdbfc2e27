"""Calls that got no reply: what else of their question is asked, and how they are found later.

What comes after a lost call depends on its reply. Where a question is to be taken up again when the
endpoint is back, nothing after the loss may be on record: its replay would find other requests.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from reflux.agents.errors import EndpointError
from reflux.graphs.traces.store import TraceStore

FAILED = "(finish_reason GLOB 'error*' OR finish_reason GLOB 'refused*')"
"""Of the columns of a call: it failed at its endpoint."""
_lost: ContextVar[list[EndpointError] | None] = ContextVar("lost", default=None)
"""The calls that a question has lost; None where it goes on without them."""


@contextmanager
def ending_at_a_loss() -> Generator[None]:
    """A question that is asked in this block asks nothing more once a call of it is lost."""
    token = _lost.set([])
    try:
        yield
    finally:
        _lost.reset(token)


def check_loss() -> None:
    """Check before each call and step that the question has lost none.

    Raises:
        EndpointError: the one that it has lost.
    """
    if lost := _lost.get():
        raise lost[0]


def note_loss(error: EndpointError) -> None:
    """Note a call without a reply; one that was refused alone is lost to nobody."""
    lost = _lost.get()
    if lost is not None and (error.is_final or not error.refused):
        lost.append(error)


def find_failure(store: TraceStore, question: str, after: int = 0) -> EndpointError | None:
    """The newest failure of a question's calls after a call's number; None if all got replies.

    A failure that may pass goes before a refusal: the question may end otherwise next time.
    """
    calls = " FROM calls WHERE question=? AND id > ? AND kind IN ('model', 'graph')"
    of = (question, after)
    sql = f"SELECT id, error, finish_reason{calls} AND {FAILED} ORDER BY id"
    failures = list(store.select(sql, of))
    if not failures:
        return None
    ((last,),) = store.select("SELECT max(id)" + calls, of)
    transient = [row for row in failures if row["finish_reason"].startswith("error")]
    row = (transient or failures)[-1]
    status = row["finish_reason"].partition(" ")[2]
    error = EndpointError(row["error"])
    error.refused, error.status = not transient, int(status) if status else None
    error.is_last = failures[-1]["id"] == last
    return error
