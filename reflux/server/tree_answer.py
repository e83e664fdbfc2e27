"""A chat request answered by H with copies of X."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from langchain_core import messages as lc
from langchain_core.messages import BaseMessage

from reflux.agents.redaction import redact
from reflux.agents.types import Completion
from reflux.ask_options import AskOptions, save_options
from reflux.conversation import cut_at, question_of
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.state import Outcome, exchange_error
from reflux.graphs.ask import Amplified, answer_all, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.tree import tokens_of
from reflux.graphs.voting.voting import Variant, VotePolicy
from reflux.server.chat_reply import Emit, Reply, Said, asked_anew, seed_of
from reflux.server.chat_request import (
    AssistantMessage,
    ChatRequest,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
    text_of,
)
from reflux.server.errors import ApiError
from reflux.server.jobs import Put
from reflux.server.pending import Waiting, asks_humans
from reflux.server.served_models import Tree
from reflux.server.settings import ServeSettings


class TreeAnswer:
    """H answers, with many copies of X; the text is said when it is accepted."""

    def __init__(
        self,
        run: OpenRun,
        settings: ServeSettings,
        tree: Tree,
        x: str,
        request: ChatRequest,
        waiting: Waiting,
    ) -> None:
        """
        Raises:
            ApiError: it is asked for what a tree cannot give.
            UsageError: the question cannot be asked.
        """
        for name in _not_amplified(request):
            raise ApiError(
                400,
                f"{name}: the amplified system cannot give this; leave it out, or ask `base`, a "
                "student or an endpoint's model",
                param=name,
            )
        self._run = run
        self._asked = asked_anew(run, tree.task.name if tree.task else "")
        self._tree = tree
        self._waiting = waiting
        self._stops = request.stops
        self._heat = request.temperature
        self.question = redact(_question(tree, request.messages))
        self.trajectory = self._asked.question_id(self.question)
        self.model = x
        self.context = _context(run, settings, tree, x, request)
        check_askable(self.question, self.context)

    async def answer(self, put: Put[Said], emit: Emit) -> Reply:
        """Let the tree grow until its answer is accepted.

        Raises:
            EndpointError: X or H could not be asked.
            ApiError: no answer was accepted.
        """
        context = replace(self.context, emit=emit)
        row = {"id": self.trajectory, "text": self.question, **vars(self._asked)}
        store = self._run.store
        # With `options`, a person's edit recomputes the tree as it was asked. One commit takes
        # both.
        await asyncio.gather(
            store.add_question(row),
            save_options(store, self.trajectory, self._how()),
        )
        async with marked_when_stopped(store, self.trajectory):
            if asks_humans(self._tree.overseer):
                answered = self._waiting.answer(self.trajectory, self.question, context, put)
                return self._reply(await answered)
            (outcome,) = await answer_all(Amplified(context), self._asked, [self.question])
            return self._reply(outcome)

    def _how(self) -> AskOptions:
        """Kept with the question, so that it can be gone on with, and edited."""
        context, task = self.context, self._tree.task
        limits, max_votes = context.limits, context.answer_tokens(self.question)
        caps = (limits.depth, limits.calls, limits.tokens, limits.seconds)
        return AskOptions(
            "" if task else self._tree.name,
            context.model,
            (),
            *caps,
            max_tokens=max_votes,
            task=task.name if task else "",
            temperature=self._heat,
            seed=context.seed,
        )

    def _reply(self, outcome: Outcome) -> Reply:
        if outcome["status"] == "failed" and self.context.recorded_client.outage is not None:
            raise self.context.recorded_client.outage
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
        if self._tree.task is not None:
            answer = self._tree.task.to_user(self.question, answer)
        text = cut_at(answer, self._stops)
        reason = "length" if outcome["status"] == "truncated" else "stop"
        completion = Completion(text, finish_reason=reason)
        return Reply([completion], *tokens_of(self._run.store, self.trajectory))


def _context(
    run: OpenRun, settings: ServeSettings, tree: Tree, x: str, request: ChatRequest
) -> AmplifyContext:
    votes = VotePolicy() if tree.task else VotePolicy(max_votes=1)
    if (heat := request.temperature) is not None:
        votes = replace(votes, temperature=heat, variants=(Variant(temperature=heat),))
    context = AmplifyContext(
        RecordedClient(run.cache, run.store),
        x,
        (tree.overseer,) if tree.overseer is not None else (),
        limits=settings.limits,
        votes=votes,
        seed=seed_of(request),
        max_tokens=request.most_tokens or settings.max_tokens,
    )
    if tree.task is None:
        return context
    context = task_context(context, tree.task)
    max_votes = request.most_tokens
    return context if max_votes is None else replace(context, max_tokens=max_votes)


def _question(tree: Tree, messages: Sequence[Message]) -> str:
    if tree.task is not None:
        # A task's questions stand alone, in the task's own form.
        return tree.task.from_user(text_of(messages[-1].content))
    return question_of([_as_said(message) for message in messages])


def _as_said(message: Message) -> BaseMessage:
    """A message as a conversation holds it; of a tool's call only the tool's name is told."""
    text = text_of(message.content)
    match message:
        case SystemMessage():
            return lc.SystemMessage(text, name=message.name)
        case UserMessage():
            return lc.HumanMessage(text, name=message.name)
        case ToolMessage():
            return lc.ToolMessage(text, tool_call_id=message.tool_call_id)
        case AssistantMessage():
            called = [call.function.name for call in message.tool_calls or ()]
            calls: list[lc.ToolCall] = [{"name": name, "args": {}, "id": ""} for name in called]
            return lc.AIMessage(text, name=message.name, tool_calls=calls)


def _not_amplified(request: ChatRequest) -> list[str]:
    """What of a request only a model that answers alone can give."""
    asked = {
        "response_format": request.schema_text,
        "logprobs": request.logprobs,
        "tools": request.tools,
        "n": (request.n or 1) > 1,
    }
    return [name for name, value in asked.items() if value]
