"""Answers that a tree gives to a conversation: an overseer, with copies of the agent."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import asks_humans
from reflux.agents.redaction import redact
from reflux.agents.tools.protocol import Grants
from reflux.agents.types import Completion
from reflux.ask_context import NO_GRANTS, context_of
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.screening import check_askable
from reflux.graphs.amplify.state import exchange_error, failed_outcome
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.conversation import cut_at, question_of
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.spending import tokens_of
from reflux.overseers import candidates_of
from reflux.routing import recorded_cascade
from reflux.server.chat_reply import Emit, Put, Reply, usage_of
from reflux.server.chat_request import HINTS, ChatRequest, Message
from reflux.server.errors import ApiError
from reflux.server.pending import Waiting
from reflux.server.settings import ServeSettings


@dataclass(frozen=True)
class Tree:
    """An overseer with copies of the agent."""

    name: str
    overseer: Overseer | None
    """None if the task brings its own."""
    task: Task | None = None


@dataclass(frozen=True)
class ChatAnswer:
    """The answer to one chat request, not yet computed."""

    trajectory: str
    compute: Callable[[Put, Emit], Awaitable[Reply]]
    """Takes receivers for the parts and for the events of the tree. Raises EndpointError if a model
    could not be asked, ApiError if no answer was accepted."""
    grows_tree: bool = False
    recorded_as: str = ""
    """The trajectory of which this is one call; empty where it is a trajectory of its own."""


def draw_seed(request: ChatRequest) -> int:
    """The seed; random if none is given and the temperature is over 0."""
    if request.seed is not None:
        return request.seed % (2**32 - 1)  # The greatest means a random one to llama.cpp.
    return secrets.randbelow(2**31) if request.temperature else 0


def tree_answer(
    run: OpenRun,
    settings: ServeSettings,
    tree: Tree,
    agent: str,
    request: ChatRequest,
    waiting: Waiting,
    grants: Grants | RefluxError,
) -> ChatAnswer:
    """Grow a tree until its answer is accepted; a human may have to reply on the way."""
    _check_amplifiable(request)
    task = tree.task
    if task is not None and isinstance(grants, RefluxError):
        raise UsageError(f"the tools of {task.name} did not open: {grants}") from grants
    if task is not None:  # A task's questions stand alone, in the task's own form.
        question = redact(task.from_user(request.messages[-1].content))
    else:
        messages = _langchain_messages(request.messages)
        question = redact(question_of(messages, marked=bool(settings.policy)))
    origin = Origin.new(run.folder.id, "serve", task.name if task else "")
    trajectory = origin.question_id(question)
    options = AskOptions(
        "" if task else tree.name,
        agent,
        limits=settings.limits,
        max_tokens=request.token_limit or (None if task else settings.max_tokens),
        task=task.name if task else "",
        candidates=candidates_of(None if task else tree.overseer, settings.candidates),
        temperature=request.temperature,
        seed=draw_seed(request),
        route=settings.route,
        demos=settings.demos if tree.name == settings.overseer else {},
        cascade=recorded_cascade(run.folder.registry, agent, settings.cascade),
        policy=settings.policy,
    )
    overseers = {tree.name: tree.overseer} if tree.overseer is not None else {}
    granted = grants if task is not None and not isinstance(grants, RefluxError) else NO_GRANTS
    context = context_of(run, options, overseers, granted)
    check_askable(question, context)

    async def compute(put: Put, emit: Emit) -> Reply:
        observed = replace(context, emit=emit)
        if any(map(asks_humans, context.overseers)):
            saver = await waiting.checkpoints()
            async with waiting.client(trajectory, put) as wait:
                answered = await ask(
                    observed, question, origin, options=options, checkpoints=saver, wait=wait
                )
        else:
            answered = await ask(observed, question, origin, options=options)
        outcome = answered.check_endpoint().outcome or failed_outcome("a human has not replied")
        answer = outcome["answer"]
        if exchange_error(outcome) is not None or answer is None:
            best = "" if answer is None else f"; the best so far: {answer}"
            raise ApiError(
                422,
                f"no answer was accepted ({outcome['status']}: {outcome['error']}){best} "
                f"(trajectory {trajectory})",
                "not_accepted",
                code=outcome["status"],
            )
        if task is not None:
            answer = task.to_user(question, answer)
        reason = "length" if outcome["status"] == "truncated" else "stop"
        completion = Completion(cut_at(answer, request.stops), finish_reason=reason)
        return Reply([completion], usage_of(*tokens_of(run.store, trajectory)))

    return ChatAnswer(trajectory, compute, grows_tree=True)


def _check_amplifiable(request: ChatRequest) -> None:
    """Check that a tree can give what a request asks for.

    Raises:
        ApiError: only a single model can.
    """
    fields = {
        "response_format": request.schema_text,
        "logprobs": request.logprobs,
        "tools": request.callable_tools,
        "n": request.n > 1,
        **{name: value for name, value in request.passed_on().items() if name not in HINTS},
    }
    for name in (name for name, value in fields.items() if value):
        raise _only_single(name, "is not supported by trees: leave it out", "unsupported_parameter")
    if (role := request.messages[-1].role) != "user":
        problem = f"end with the role {role}, and a tree answers a user's question: send one"
        raise _only_single("messages", problem, "unsupported_value")


def _only_single(param: str, problem: str, code: str) -> ApiError:
    message = f"{param} {problem}, or ask `base`, a student or an endpoint's model"
    return ApiError(400, message, param=param, code=code)


def _langchain_messages(messages: Sequence[Message]) -> list[BaseMessage]:
    """The messages as a conversation holds them; a tool call leaves its name only."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        row |= message.model_dump(include={"name", "tool_call_id"}, exclude_defaults=True)
        if message.tool_calls:
            names = [call.function.name for call in message.tool_calls]
            row["tool_calls"] = [{"name": name, "args": {}, "id": ""} for name in names]
        rows.append(row)
    return convert_to_messages(rows)
