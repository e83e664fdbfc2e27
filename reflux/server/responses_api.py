"""`/v1/responses`: the Responses API over the same answers as chat completions.

A request becomes a chat request (`ResponsesRequest.chat`), and its answer is computed like any
other. A response that is kept is a judgement on its trajectory, so `previous_response_id` works
after a restart; the conversation behind it counts towards `body_bytes`, as if the client had sent
it. Deleting a response hides it from clients; the run's record is append-only.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from reflux.agents.types import Turn
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.store import TraceStore
from reflux.server.chat_api import redacted, respond
from reflux.server.chat_reply import AnswerPart, Emit, Put, Reply, reasoning_line
from reflux.server.chat_request import CalledFunction, Message, ToolCall
from reflux.server.errors import ApiError
from reflux.server.responses_reply import ResponseFormat
from reflux.server.responses_request import InputItem, ResponsesRequest, contradiction
from reflux.server.state import ERRORS, ServerState, State
from reflux.server.tree_answers import ChatAnswer

router = APIRouter(prefix="/v1/responses", responses=ERRORS)
KIND = "response"
"""Kind of the judgements that keep responses; the newest of a trajectory counts."""
MAX_CHAIN = 1_000
"""Maximum responses behind one `previous_response_id`."""
RENAMED = {"messages": "input", "response_format": "text.format"}
"""Fields of chat requests by their names here, for errors."""


def conversation(store: TraceStore, items: Sequence[InputItem]) -> list[Message]:
    """The items as messages: calls join the assistant's message before them.

    Raises:
        ApiError: an item refers to one that is not kept.
    """
    messages: list[Message] = []
    for index, item in enumerate(items):
        if item.type == "item_reference":
            item = _referenced(store, item.id, f"input[{index}].id")
        match item.type:
            case "function_call":
                function = CalledFunction(name=item.name, arguments=item.arguments)
                call = ToolCall(id=item.call_id, function=function)
                last = messages.pop() if messages and messages[-1].role == "assistant" else None
                content, calls = (last.content, last.tool_calls) if last else ("", ())
                messages.append(
                    Message(role="assistant", content=content, tool_calls=(*calls, call))
                )
            case "function_call_output":
                messages.append(
                    Message(role="tool", content=item.output, tool_call_id=item.call_id)
                )
            case "message" if item.role:
                messages.append(Message(role=item.role, content=item.content))
            case _:  # Models never see earlier reasoning.
                pass
    return messages


def _referenced(store: TraceStore, id: str, param: str) -> InputItem:
    kept = _find(store, id.split("_")[1]) if id.count("_") > 1 else None
    items = kept["response"]["output"] if kept else []
    item = next((item for item in items if item["id"] == id), None)
    if item is None:
        message = f"{param} refers to {id[:80]!r}, which is not kept: send the item itself"
        raise ApiError(400, message, param=param, code="item_not_found")
    return InputItem.model_validate(item)


def history(store: TraceStore, id: str | None, max_bytes: int) -> list[Message]:
    """The conversation that ends with a response, without instructions.

    Raises:
        ApiError: a response is not kept, or the conversation is over `max_bytes`.
    """
    turns: list[Turn] = []
    size, param = 0, "previous_response_id"
    for _ in range(MAX_CHAIN):
        if id is None:
            return [_message(turn) for turn in turns]
        if (kept := _find(store, id.removeprefix("resp_"))) is None:
            message = f"{param} refers to {id[:80]!r}, which is not kept: send the conversation"
            raise ApiError(400, message, param=param, code="previous_response_not_found")
        turns[:0] = kept["turns"]
        size += len(json.dumps(kept["turns"]))
        if size > max_bytes:
            break
        id = kept["response"]["previous_response_id"]
    message = (
        f"{param} continues a conversation of over {max_bytes} bytes or {MAX_CHAIN} responses: "
        "begin a new one, or raise `body_bytes` in the server's config"
    )
    raise ApiError(400, message, param=param, code="context_length_exceeded")


def _message(turn: Turn) -> Message:
    role, content, *extra = turn
    return Message.model_validate(
        {"role": role, "content": content, **json.loads(*extra or ["{}"])}
    )


def _find(store: TraceStore, trajectory: str) -> dict[str, Any] | None:
    """What is kept of a response."""
    sql = "SELECT detail FROM judgements WHERE question=? AND path='' AND kind=? ORDER BY id DESC"
    row = next(store.select(f"{sql} LIMIT 1", (trajectory, KIND)), None)
    detail: dict[str, Any] | None = json.loads(row["detail"]) if row else None
    return detail if detail and not detail.get("deleted") else None


def kept(
    answer: ChatAnswer, store: TraceStore, form: ResponseFormat, turns: Sequence[Turn] | None
) -> ChatAnswer:
    """The same answer, whose reply has a tree's progress as its reasoning, and is kept.

    Args:
        turns: what was said since the previous response; None to keep nothing.
    """

    async def compute(put: Put, emit: Emit) -> Reply:
        lines: list[str] = []

        def note(part: AnswerPart) -> None:
            if isinstance(part, str):
                lines.append(part)
            put(part)

        def follow(event: Event) -> None:
            if answer.grows_tree:
                lines.append(reasoning_line(event))
            emit(event)

        reply = await answer.compute(note, follow)
        choice = reply.choices[0]
        choice = replace(choice, reasoning=choice.reasoning or "".join(lines))
        reply = replace(reply, choices=[choice])
        if turns is not None:
            calls = [call.to_json() for call in choice.tool_calls]
            said = Message.model_validate(
                {"role": "assistant", "content": choice.text, "tool_calls": calls}
            )
            detail = {"response": form.response(reply), "turns": [*turns, said.turn()]}
            await store.add_judgement(answer.trajectory, "", KIND, None, redacted(detail))
        return reply

    return replace(answer, compute=compute)


@router.post(
    "", response_model=dict[str, Any], responses={200: {"content": {"text/event-stream": {}}}}
)
async def create_response(body: ResponsesRequest, state: State, request: Request) -> Response:
    """Answer a conversation, whole or as a stream of typed events."""
    store = state.run.store
    earlier = history(store, body.previous_response_id, state.settings.body_bytes)
    try:
        said = conversation(store, body.input)
    except ValidationError as error:
        raise contradiction(error, "input") from error
    chat = body.chat([*earlier, *said])
    try:
        answer = state.models.answer_to(chat, state.run, state.waiting, request.headers)
    except ApiError as error:
        raise _renamed(error) from error
    top = (body.top_logprobs or 0) if body.with_logprobs else None
    form = ResponseFormat(answer.trajectory, body.echo(), top)
    turns = [message.turn() for message in said] if body.store else None
    return await respond(request, state, chat, kept(answer, store, form, turns), form)


def _renamed(error: ApiError) -> ApiError:
    """An error of a chat request by the names of this API."""
    param = error.detail.param or ""
    name = RENAMED.get(param, param)
    message = name + error.detail.message.removeprefix(param)
    return ApiError(error.status, message, param=name or None, code=error.detail.code)


@router.get("/{id}", response_model=dict[str, Any])
async def show_response(id: str, state: State) -> Response:
    """Show a response that was kept."""
    return Response(json.dumps(_kept(state, id)["response"]), media_type="application/json")


@router.delete("/{id}")
async def delete_response(id: str, state: State) -> dict[str, Any]:
    """Delete a response: it can be neither shown nor continued afterwards."""
    _kept(state, id)
    trajectory = id.removeprefix("resp_")
    await state.run.store.add_judgement(trajectory, "", KIND, None, {"deleted": True})
    return {"id": id, "object": "response", "deleted": True}


def _kept(state: ServerState, id: str) -> dict[str, Any]:
    if (detail := _find(state.run.store, id.removeprefix("resp_"))) is None:
        message = f"no response is kept under {id[:80]!r}"
        raise ApiError(404, message, param="response_id", code="not_found")
    return detail
