"""One model goes on with a conversation: there is no tree, and every reply is on record."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from reflux.agents.clients.chat_protocol import Delta
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.prompts import redact
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.amplify.context import silent
from reflux.graphs.amplify.state import Status, accepted_status, is_accepted
from reflux.graphs.ask import Origin, join, recorded
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.traces.events import Event, answered, called
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey

Listener = Callable[[int, Delta], None]
"""Gets each piece of each reply, with the reply's position."""


async def answer_chat(
    recorded_client: RecordedClient,
    origin: Origin,
    text: str,
    requests: Sequence[ChatRequest],
    *,
    options: AskOptions | None = None,
    hear: Listener | None = None,
    emit: Callable[[Event], None] = silent,
) -> list[Completion]:
    """Reply to each request, in parallel; the first reply is the recorded answer.

    Args:
        text: the conversation as one question, under which it is recorded.
        requests: the same conversation with different seeds; at least one.
        hear: None for whole replies.

    Raises:
        EndpointError: a reply did not come; the others were stopped.
    """
    text = redact(text)
    question_id = origin.question_id(text)

    async def answer(vote: int, request: ChatRequest) -> Completion:
        key = CallKey(question_id, "", "answer", vote=vote)
        reply = await _reply(recorded_client, key, request, vote, hear)
        emit(called("", "answer", request.model, reply, {}))
        return reply

    async def judge(answer: str | None, status: Status, error: str | None) -> None:
        detail: dict[str, Any] = {"question": text, "answer": answer, "status": status}
        detail |= {"error": error, "votes": len(requests)}
        ok = is_accepted(status)
        await recorded_client.store.add_judgement(question_id, "", "direct", ok, detail, key="0.0")
        emit(answered("", True, detail))

    async with recorded(recorded_client.store, text, origin, options):
        with recorded_client.spans.run(question_id, vars(origin)) as span:
            try:
                replies = await join([answer(vote, each) for vote, each in enumerate(requests)])
            except EndpointError as error:
                await judge(None, "failed", str(error))
                raise
            status = accepted_status(has_check=False, truncated=replies[0].truncated)
            if replies[0].prints_call:
                status = "rejected"
            await judge(replies[0].text, status, None)
            span.ended(status)
    return replies


async def _reply(
    recorded_client: RecordedClient,
    key: CallKey,
    request: ChatRequest,
    position: int,
    hear: Listener | None,
) -> Completion:
    # An endpoint that refuses a schema is asked without it for a whole reply, never for a stream.
    if hear is None and not request.schema:
        return await recorded_client.ask(key, request)
    reply: Completion | None = None
    async with aclosing(recorded_client.stream(key, request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Completion):
                reply = piece
            elif hear is not None:
                hear(position, piece)
    if reply is None:
        raise RefluxError("a stream ended without its reply; please report this")
    return reply
