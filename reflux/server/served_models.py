"""The models of a server by name, and how each answers a conversation.

    amplified              overseer of the settings, with copies of the agent
    amplified:OVERSEER     another overseer, by its name
    amplified:TASK         scripted overseer of the run's own task

All other names are those of `reflux.models`. Names are resolved anew for each request: a student
that is promoted while the server runs is served without a restart.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from openai.types import Model

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import asks_humans
from reflux.agents.prompts import redact
from reflux.agents.tools.protocol import Grants
from reflux.agents.types import ChatRequest as ModelRequest
from reflux.agents.types import Completion, Sampling, ToolSpec
from reflux.ask_context import NO_GRANTS, context_of
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.state import exchange_error, failed_outcome
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.graphs.conversation import answer_chat, cut_at, question_of
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.tree import tokens_of
from reflux.models import BASE, STUDENT, about_base, model_named
from reflux.overseers import candidates_of, demos_of, id_of_overseer, overseer_named, with_demos
from reflux.server.chat_reply import Emit, Put, Reply, usage_of
from reflux.server.chat_request import HINTS, ChatRequest, Function, Message
from reflux.server.errors import ApiError
from reflux.server.pending import Waiting
from reflux.server.settings import ServeSettings
from reflux.tasks import own_task

AMPLIFIED = "amplified"


@dataclass(frozen=True)
class Tree:
    """An overseer with copies of the agent."""

    name: str
    overseer: Overseer | None
    """None if the task brings its own."""
    task: Task | None = None


class ServedModels:
    """The models of one server by name."""

    def __init__(
        self, folder: RunFolder, settings: ServeSettings, overseers: Mapping[str, Overseer]
    ) -> None:
        """
        Raises:
            UsageError: the settings name an unknown overseer, or an endpoint like another model.
        """
        self._folder = folder
        self._settings = settings
        self.overseers = overseers
        self.task = own_task(folder)
        """The run's own."""
        self.grants: Grants | RefluxError = NO_GRANTS
        """Its tools while the server runs, or why they did not open."""
        self._trees = {name: Tree(name, overseer) for name, overseer in overseers.items()}
        if self.task is not None:
            self._trees.setdefault(self.task.name, Tree(self.task.name, None, self.task))
        if settings.overseer not in self._trees and ":" in settings.overseer:
            own = overseer_named(id_of_overseer(settings.overseer, folder))
            self._trees[settings.overseer] = Tree(settings.overseer, own)
        if settings.overseer not in self._trees:
            known = ", ".join(self._trees)
            raise UsageError(f"no overseer is called {settings.overseer!r}; there are {known}")
        if settings.demos:
            chosen = self._trees[settings.overseer]
            if chosen.overseer is None:
                raise UsageError("--demos needs --overseer model: a task has its own overseer")
            with_demos(chosen.overseer, demos_of(settings.demos))
        for name in settings.endpoints:
            if name in (BASE, STUDENT) or name.split(":")[0] == AMPLIFIED:
                raise UsageError(f"an endpoint is called {name!r}, which means something else here")

    def listed(self) -> list[Model]:
        """All models: the tree of the run's own task first, which such a run can answer best."""
        own = [self.task.name] if self.task else []
        trees = dict.fromkeys([*own, "", *self._trees])
        registry = self._folder.registry
        promoted = registry.current()
        about = about_base(self._folder)
        about_trees = about if self.agent() == BASE else ""
        return [
            *(
                listed_model(f"{AMPLIFIED}:{name}" if name else AMPLIFIED, about=about_trees)
                for name in trees
            ),
            listed_model(BASE, about=about),
            *([listed_model(STUDENT, promoted.created)] if promoted else []),
            *(listed_model(student.id, student.created) for student in registry.list("agent")),
            *map(listed_model, self._settings.endpoints),
        ]

    def find(self, name: str) -> str | Tree:
        """The tree of a name, or one model's name in the call log.

        Raises:
            ApiError: no model has the name.
        """
        kind, colon, overseer = name.partition(":")
        if kind == AMPLIFIED and (not colon or overseer in self._trees):
            return self._trees[overseer or self._settings.overseer]
        try:
            return model_named(self._folder, name, self._settings.endpoints)
        except UsageError as error:
            if name in (student.id for student in self._folder.registry.list()):
                raise  # The student is damaged.
            known = ", ".join(model.id for model in self.listed())
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; there are {known}",
                param="model",
                code="model_not_found",
            ) from error

    def agent(self) -> str:
        """The name of the agent at this moment."""
        model = self._settings.model
        return self._folder.current_model() if model in ("", STUDENT) else model

    def answer_to(self, request: ChatRequest, run: OpenRun, waiting: Waiting) -> "ChatAnswer":
        """Begin the answer to a request.

        Raises:
            ApiError: there is no such model, or it cannot give what the request asks for.
            UsageError: the question cannot be asked.
        """
        model = self.find(request.model)
        if isinstance(model, Tree):
            return _tree_answer(
                run, self._settings, model, self.agent(), request, waiting, self.grants
            )
        return _direct_answer(run, self._settings, model, request)


def listed_model(name: str, created: str = "", about: str = "") -> Model:
    """A model as OpenAI's list holds it, and what can be expected of it, if that is to be said."""
    seconds = int(datetime.fromisoformat(created).timestamp()) if created else 0
    more: dict[str, Any] = {"description": about} if about else {}
    return Model(id=name, created=seconds, object="model", owned_by="reflux", **more)


@dataclass(frozen=True)
class ChatAnswer:
    """The answer to one chat request, not yet computed."""

    trajectory: str
    compute: Callable[[Put, Emit], Awaitable[Reply]]
    """Takes receivers for the parts and for the events of the tree. Raises EndpointError if a model
    could not be asked, ApiError if no answer was accepted."""
    grows_tree: bool = False


def _direct_answer(
    run: OpenRun, settings: ServeSettings, model: str, request: ChatRequest
) -> ChatAnswer:
    """One model goes on with the conversation; a streamed reply is put in pieces."""
    origin = Origin.new(run.folder.id, "serve")
    question = _transcript(request.messages)
    max_tokens = request.token_limit or settings.max_tokens
    seed = _draw_seed(request)
    options = AskOptions(
        ALONE, model, max_tokens=max_tokens, temperature=request.temperature, seed=seed
    )
    requests = _model_requests(request, model, max_tokens, seed)

    async def compute(put: Put, emit: Emit) -> Reply:
        replies = await answer_chat(
            run.recorded_client,
            origin,
            question,
            requests,
            options=options,
            hear=(lambda vote, delta: put((vote, delta))) if request.stream else None,
            emit=emit,
        )
        prompt_tokens = sum(reply.prompt_tokens for reply in replies)
        completion_tokens = sum(reply.completion_tokens for reply in replies)
        return Reply(replies, usage_of(prompt_tokens, completion_tokens), request.stream)

    return ChatAnswer(origin.question_id(redact(question)), compute)


def _transcript(messages: Sequence[Message]) -> str:
    """The conversation as its trajectory shows it; the call holds the messages themselves."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _model_requests(
    request: ChatRequest, model: str, max_tokens: int, seed: int
) -> list[ModelRequest]:
    """The conversation as one model request for each choice, which differ in their seeds."""
    turns = tuple(message.turn() for message in request.messages)
    if turns[0][0] != "system":  # Without one, templates add a system message themselves.
        turns = (("system", ""), *turns)
    sampling = Sampling(
        temperature=request.temperature or 0.0,
        max_tokens=max_tokens,
        top_logprobs=max(1, request.top_logprobs or 0) if request.logprobs else 0,
        stop=request.stops,
    )
    specs = tuple(_spec_of(tool.function) for tool in request.callable_tools)
    extra = json.dumps(fields) if (fields := request.extra()) else ""
    samplings = (replace(sampling, seed=(seed + i) % 2**32) for i in range(request.n))
    return [
        ModelRequest(model, turns, each, vote, specs, request.schema_text, extra)
        for vote, each in enumerate(samplings)
    ]


def _spec_of(function: Function) -> ToolSpec:
    parameters = function.parameters or {"type": "object", "properties": {}}
    return ToolSpec(function.name, function.description or "", json.dumps(parameters))


def _draw_seed(request: ChatRequest) -> int:
    """The seed; random if none is given and the temperature is over 0."""
    if request.seed is not None:
        return request.seed % (2**32 - 1)  # The greatest means a random one to llama.cpp.
    return secrets.randbelow(2**31) if request.temperature else 0


def _tree_answer(
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
        question = redact(question_of(_langchain_messages(request.messages)))
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
        seed=_draw_seed(request),
        route=settings.route,
        demos=settings.demos if tree.name == settings.overseer else {},
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
