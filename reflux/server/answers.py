"""What answers a chat request: one model that goes on with the conversation, or a tree."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from langchain_core import messages as lc
from langchain_core.messages import BaseMessage

from reflux.agents.prompts import redact
from reflux.agents.types import ChatRequest as ModelRequest
from reflux.agents.types import Completion, Sampling
from reflux.ask_context import asks_humans, context_of
from reflux.conversation import cut_at, question_of
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.state import exchange_error, failed_outcome
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.graphs.conversation import answer_chat
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.tree import tokens_of
from reflux.server.chat_reply import Emit, Put, Reply, seed_of
from reflux.server.chat_request import (
    AssistantMessage,
    ChatRequest,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
    text_of,
    turn_of,
)
from reflux.server.errors import ApiError
from reflux.server.pending import Waiting
from reflux.server.served_models import Tree
from reflux.server.settings import ServeSettings


class ChatAnswer(Protocol):
    """The answer to one chat request."""

    trajectory: str

    async def answer(self, put: Put, emit: Emit) -> Reply:
        """Compute it: `put` takes its parts as they come, `emit` the events of its tree.

        Raises:
            EndpointError: a model could not be asked.
            ApiError: no answer was accepted.
        """
        ...


class DirectAnswer:
    """One model goes on with the conversation."""

    def __init__(
        self, run: OpenRun, settings: ServeSettings, model: str, request: ChatRequest
    ) -> None:
        self._run = run
        self._origin = Origin.new(run.folder.id, "serve")
        self._question = _transcript(request.messages)
        self._stream = bool(request.stream)
        max_tokens = request.token_limit or settings.max_tokens
        self._options = AskOptions(
            ALONE,
            model,
            max_tokens=max_tokens,
            temperature=request.temperature,
            seed=seed_of(request),
        )
        self._requests = [
            _model_request(request, self._options, max_tokens, vote)
            for vote in range(request.n or 1)
        ]
        self.trajectory = self._origin.question_id(redact(self._question))

    async def answer(self, put: Put, emit: Emit) -> Reply:
        """Ask the model; a streamed reply is put in pieces."""
        replies = await answer_chat(
            RecordedClient(self._run.cache, self._run.store),
            self._origin,
            self._question,
            self._requests,
            options=self._options,
            hear=(lambda vote, delta: put((vote, delta))) if self._stream else None,
            emit=emit,
        )
        prompt_tokens = sum(reply.prompt_tokens for reply in replies)
        completion_tokens = sum(reply.completion_tokens for reply in replies)
        return Reply(replies, prompt_tokens, completion_tokens, self._stream)


def _model_request(
    request: ChatRequest, options: AskOptions, max_tokens: int, vote: int
) -> ModelRequest:
    turns = tuple(map(turn_of, request.messages))
    if turns[0][0] != "system":  # Without one, templates add a system message themselves.
        turns = (("system", ""), *turns)
    sampling = Sampling(
        temperature=options.temperature or 0.0,
        max_tokens=max_tokens,
        top_logprobs=max(1, request.top_logprobs or 0) if request.logprobs else 0,
        seed=(options.seed + vote) % 2**32,
        stop=request.stops,
    )
    tools = request.tools if request.tools and request.tool_choice != "none" else ()
    specs = tuple(tool.spec() for tool in tools)
    return ModelRequest(options.model, turns, sampling, vote, specs, request.schema_text)


def _transcript(messages: Sequence[Message]) -> str:
    """The conversation as its trajectory shows it; the call holds the messages themselves."""
    if len(messages) == 1:
        return text_of(messages[0].content)
    return "\n\n".join(f"{message.role}: {text_of(message.content)}" for message in messages)


class TreeAnswer:
    """An overseer with copies of the agent; the text is sent when it is accepted."""

    def __init__(
        self,
        run: OpenRun,
        settings: ServeSettings,
        tree: Tree,
        agent: str,
        request: ChatRequest,
        waiting: Waiting,
    ) -> None:
        """
        Raises:
            ApiError: the request asks for what a tree cannot give.
            UsageError: the question cannot be asked.
        """
        for name in _not_amplified(request):
            raise ApiError(
                400,
                f"{name}: the amplified system cannot give this; leave it out, or ask `base`, a "
                "student or an endpoint's model",
                param=name,
            )
        task = tree.task
        self._task = task
        self._run = run
        self._waiting = waiting if asks_humans(tree.overseer) else None
        self._stops = request.stops
        self._question = redact(_question(tree, request.messages))
        self._origin = Origin.new(run.folder.id, "serve", task.name if task else "")
        self._options = AskOptions(
            "" if task else tree.name,
            agent,
            limits=settings.limits,
            max_tokens=request.token_limit or (None if task else settings.max_tokens),
            task=task.name if task else "",
            temperature=request.temperature,
            seed=seed_of(request),
        )
        recorded_client = RecordedClient(run.cache, run.store)
        overseers = {tree.name: tree.overseer} if tree.overseer is not None else {}
        self._context = context_of(recorded_client, self._options, overseers)
        check_askable(self._question, self._context)
        self.trajectory = self._origin.question_id(self._question)

    async def answer(self, put: Put, emit: Emit) -> Reply:
        """Grow the tree until its answer is accepted; a human may have to reply on the way."""
        context = replace(self._context, emit=emit)
        question, origin, options = self._question, self._origin, self._options
        if self._waiting is None:
            answered = await ask(context, question, origin, options=options)
        else:
            saver = await self._waiting.checkpoints()
            async with self._waiting.client(self.trajectory, put) as wait:
                answered = await ask(
                    context, question, origin, options=options, checkpoints=saver, wait=wait
                )
        outcome = answered.check_endpoint().outcome or failed_outcome("a human has not replied")
        answer = outcome["answer"]
        if exchange_error(outcome) is not None or answer is None:
            best = "" if answer is None else f"; the best so far: {answer}"
            raise ApiError(
                422,
                f"no answer was accepted ({outcome['status']}: {outcome['error']}){best} "
                f"(trajectory {self.trajectory})",
                "not_accepted",
                code=outcome["status"],
            )
        if self._task is not None:
            answer = self._task.to_user(self._question, answer)
        reason = "length" if outcome["status"] == "truncated" else "stop"
        completion = Completion(cut_at(answer, self._stops), finish_reason=reason)
        return Reply([completion], *tokens_of(self._run.store, self.trajectory))


def _question(tree: Tree, messages: Sequence[Message]) -> str:
    if tree.task is not None:  # A task's questions stand alone, in the task's own form.
        return tree.task.from_user(text_of(messages[-1].content))
    return question_of([_langchain_message(message) for message in messages])


def _langchain_message(message: Message) -> BaseMessage:
    """A message as a conversation holds it; a tool call leaves its name only."""
    text = text_of(message.content)
    match message:
        case SystemMessage():
            return lc.SystemMessage(text, name=message.name)
        case UserMessage():
            return lc.HumanMessage(text, name=message.name)
        case ToolMessage():
            return lc.ToolMessage(text, tool_call_id=message.tool_call_id)
        case AssistantMessage():
            names = [call.function.name for call in message.tool_calls or ()]
            calls: list[lc.ToolCall] = [{"name": name, "args": {}, "id": ""} for name in names]
            return lc.AIMessage(text, name=message.name, tool_calls=calls)


def _not_amplified(request: ChatRequest) -> list[str]:
    """The fields of a request that only a model without an overseer can serve."""
    fields = {
        "response_format": request.schema_text,
        "logprobs": request.logprobs,
        "tools": request.tools,
        "n": (request.n or 1) > 1,
    }
    return [name for name, value in fields.items() if value]
