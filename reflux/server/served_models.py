"""The models of a server by name, and how each answers a conversation.

    amplified              overseer of the settings, with copies of the agent
    amplified:OVERSEER     another overseer, by its name
    amplified:TASK         scripted overseer of the run's own task

All other names are those of `reflux.models`. Names are resolved anew for each request: a student
that is promoted while the server runs is served without a restart.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from openai.types import Model

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.redaction import redact
from reflux.agents.tools.protocol import Grants
from reflux.agents.types import ChatRequest as ModelRequest
from reflux.agents.types import Sampling, ToolSpec
from reflux.ask_context import NO_GRANTS
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.ask import Origin
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.graphs.conversation import answer_chat
from reflux.graphs.traces.recording.placing import Places
from reflux.models import BASE, STUDENT, about_base, model_named
from reflux.overseers import demos_of, id_of_overseer, overseer_named, with_demos
from reflux.server.aliases import AliasAnswer, check_aliases, placed, route
from reflux.server.chat_reply import Emit, Put, Reply, usage_of
from reflux.server.chat_request import ChatRequest, Function, Message
from reflux.server.errors import ApiError
from reflux.server.pending import Waiting
from reflux.server.settings import ServeSettings
from reflux.server.tree_answers import ChatAnswer, Tree, draw_seed, tree_answer
from reflux.tasks import own_task

AMPLIFIED = "amplified"
NO_HEADERS: Mapping[str, str] = {}


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
        self.places: Places | None = None
        """Of the trajectories that ask for aliases, while the server runs."""
        check_aliases(settings, self.find, self._is_own)

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
            *map(listed_model, dict.fromkeys((*self._settings.alias, *self._settings.endpoints))),
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

    def _is_own(self, name: str) -> bool:
        """Whether a name is that of a model of the run."""
        students = (student.id for student in self._folder.registry.list())
        return name.partition(":")[0] in (BASE, STUDENT, AMPLIFIED) or name in students

    def answer_to(
        self,
        request: ChatRequest,
        run: OpenRun,
        waiting: Waiting,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> ChatAnswer:
        """Begin the answer to a request, whose headers may name its trajectory.

        Raises:
            ApiError: there is no such model, or it cannot give what the request asks for.
            UsageError: the question cannot be asked.
        """
        name = request.model
        target = self._settings.alias.get(name)
        if target is not None and not isinstance(self._found(target), Tree):
            return self._alias_answer(request, run, headers)
        model = self.find(target or name)
        if isinstance(model, Tree):
            return tree_answer(
                run, self._settings, model, self.agent(), request, waiting, self.grants
            )
        return _direct_answer(run, self._settings, model, request)

    def _found(self, name: str) -> str | Tree | None:
        with suppress(RefluxError):
            return self.find(name)

    def _alias_answer(
        self, request: ChatRequest, run: OpenRun, headers: Mapping[str, str]
    ) -> ChatAnswer:
        settings = self._settings
        if self.places is None:
            raise UsageError("the server is not running")
        max_tokens, seed = request.token_limit or settings.max_tokens, draw_seed(request)
        place = placed(self.places, request, headers)
        answer = AliasAnswer(
            run,
            self.places,
            place,
            route(place, request.model, settings, self.find),
            lambda model: _model_requests(request, model, max_tokens, seed),
            settings.fallback,
            headers,
            bool(request.stream),
        )
        return ChatAnswer(answer.id, answer.compute, recorded_as=place.id)


def listed_model(name: str, created: str = "", about: str = "") -> Model:
    """A model as OpenAI's list holds it, and what can be expected of it, if that is to be said."""
    seconds = int(datetime.fromisoformat(created).timestamp()) if created else 0
    more: dict[str, Any] = {"description": about} if about else {}
    return Model(id=name, created=seconds, object="model", owned_by="reflux", **more)


def _direct_answer(
    run: OpenRun, settings: ServeSettings, model: str, request: ChatRequest
) -> ChatAnswer:
    """One model goes on with the conversation; a streamed reply is put in pieces."""
    origin = Origin.new(run.folder.id, "serve")
    question = _transcript(request.messages)
    max_tokens = request.token_limit or settings.max_tokens
    seed = draw_seed(request)
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
